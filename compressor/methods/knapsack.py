"""Choose one option per group: the least total loss within a total cost, and the whole front of such choices at once.

Multiple-choice knapsack by dynamic programming over Pareto fronts: after each group only the choices that no other
beats in both cost and loss are carried on. Costs are added up as they are, not rounded into bins, so the answer is
exact as long as the front stays below `max_points`; beyond that neighbouring points are thinned, and a budget is still
never exceeded. HALP (arXiv 2110.10811) and SPDY (arXiv 2201.13096) solve the same problem over rounded costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compressor.errors import UserError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Limits: TypeAlias = Sequence[tuple[Sequence[ArrayLike], float]]
"""(table, most that may be spent of it) pairs."""


@dataclass(frozen=True)
class Front:
    """All choices worth making, from the cheapest to the best.

    Attributes:
        costs: (n,) increasing.
        losses: (n,) decreasing.
        choices: (n, n_groups) option number of each group.
    """

    costs: Floats
    losses: Floats
    choices: Integers

    def within(self, budget: float) -> int:
        """The best point that costs no more than the budget, but for the rounding of the sum (1e-12 of it).

        Raises:
            UserError: even the cheapest choice costs more; the least reachable cost is named.
        """
        affordable = int(np.searchsorted(self.costs, budget * (1 + 1e-12), side="right"))
        if affordable == 0:
            raise UserError(
                f"a budget of {budget:.6g} cannot be met: the least that any choice costs is {self.costs[0]:.6g}",
                hint="raise the budget, or allow options that remove more",
            )
        return affordable - 1


def pareto_front(costs: Sequence[ArrayLike], losses: Sequence[ArrayLike], max_points: int = 20_000) -> Front:
    """The front of total cost against total loss over all ways to pick one option per group.

    Args:
        costs: per group, the cost of each option. Any unit; must be finite.
        losses: per group, the loss of each option, same lengths.
        max_points: thinning starts beyond this many points.

    Raises:
        ValueError: no groups, a group without options, lengths that differ, or values that are not finite.
    """
    _check(costs, losses)
    total_cost, total_loss = np.zeros(1), np.zeros(1)
    steps: list[tuple[Integers, Integers]] = []  # per group: which earlier point, which option
    for group_cost, group_loss in zip(costs, losses, strict=True):
        cost = np.add.outer(total_cost, np.asarray(group_cost, dtype=np.float64)).ravel()
        loss = np.add.outer(total_loss, np.asarray(group_loss, dtype=np.float64)).ravel()
        kept = _thin(cost, _undominated(cost, loss), max_points)
        steps.append((kept // len(np.asarray(group_cost)), kept % len(np.asarray(group_cost))))
        total_cost, total_loss = cost[kept], loss[kept]
    choices = np.empty((len(total_cost), len(steps)), dtype=np.int64)
    point = np.arange(len(total_cost))
    for group in reversed(range(len(steps))):
        parent, option = steps[group]
        choices[:, group] = option[point]
        point = parent[point]
    return Front(total_cost, total_loss, choices)


def combine(weighted: Sequence[tuple[float, Sequence[ArrayLike]]]) -> list[Floats]:
    """One cost table from several (energy + m1 x latency + m2 x bytes), for a limit handled by its multiplier.

    Args:
        weighted: (multiplier, table) pairs; all tables have the same groups and options.
    """
    first = weighted[0][1]
    return [
        np.asarray(sum(factor * np.asarray(table[group], dtype=np.float64) for factor, table in weighted))
        for group in range(len(first))
    ]


def solve_limited(
    costs: Sequence[ArrayLike],
    losses: Sequence[ArrayLike],
    budget: float,
    limits: Limits,
    n_bisections: int = 40,
) -> Integers:
    """The best choice within a budget and further limits (latency, bytes), each by bisecting its multiplier.

    A Lagrangian relaxation: the answer keeps every limit but need not be the best of all that do.

    Args:
        costs, losses, budget: as in `pareto_front` and `Front.within`.
        limits: (table, most that may be spent of it) pairs.

    Returns:
        (n_groups,) option numbers.

    Raises:
        UserError: no choice keeps the budget and all limits that this search can find.
    """
    if not limits:
        front = pareto_front(costs, losses)
        best: Integers = front.choices[front.within(budget)]
        return best
    multipliers = np.zeros(len(limits))
    for _ in range(4):  # each multiplier moves the others' optimum; a few rounds settle it
        for number in range(len(limits)):
            multipliers[number] = _bisect(costs, losses, budget, limits, multipliers, number, n_bisections)
    choice = _best_under(costs, losses, budget, limits, multipliers)
    if choice is None:
        raise UserError(
            f"no choice was found that costs at most {budget:.6g} and keeps the limits "
            + ", ".join(f"{most:.6g}" for _, most in limits),
            hint="loosen a limit",
        )
    return choice


def total(table: Sequence[ArrayLike], choice: Integers) -> float:
    """What a choice adds up to in a table."""
    return float(sum(np.asarray(group)[option] for group, option in zip(table, choice, strict=True)))


def _bisect(
    costs: Sequence[ArrayLike],
    losses: Sequence[ArrayLike],
    budget: float,
    limits: Limits,
    multipliers: Floats,
    number: int,
    n_bisections: int,
) -> float:
    """The smallest multiplier of one limit that keeps it, the others held."""
    trial = multipliers.copy()
    low, high = 0.0, float(sum(np.ptp(np.asarray(group)) for group in losses)) or 1.0
    scale = min(float(np.ptp(np.asarray(group))) for group in limits[number][0] if np.ptp(np.asarray(group)) > 0)
    high = high / scale
    for step in range(n_bisections):
        trial[number] = 0.0 if step == 0 else (low + high) / 2
        choice = _best_under(costs, losses, budget, limits, trial, ignore_others=number)
        if choice is not None:
            if step == 0:
                return 0.0
            high = float(trial[number])
        else:
            low = float(trial[number])
    return high


def _best_under(
    costs: Sequence[ArrayLike],
    losses: Sequence[ArrayLike],
    budget: float,
    limits: Limits,
    multipliers: Floats,
    ignore_others: int | None = None,
) -> Integers | None:
    penalised = combine([(1.0, losses), *((m, table) for m, (table, _) in zip(multipliers, limits, strict=True))])
    front = pareto_front(costs, penalised)
    choice = front.choices[front.within(budget)]
    checked = limits if ignore_others is None else [limits[ignore_others]]
    return choice if all(total(table, choice) <= most * (1 + 1e-12) for table, most in checked) else None


def _undominated(cost: Floats, loss: Floats) -> Integers:
    """Points that no other beats, by increasing cost; of equal points the first."""
    order = np.lexsort((loss, cost))
    best_before = np.minimum.accumulate(loss[order])
    better = np.concatenate(([True], loss[order][1:] < best_before[:-1]))
    return order[better]


def _thin(cost: Floats, kept: Integers, max_points: int) -> Integers:
    """At most max_points of an increasing front: the first and last point and the best within each cost bin."""
    if len(kept) <= max_points:
        return kept
    spread = cost[kept]
    bins = np.floor((spread - spread[0]) / (spread[-1] - spread[0]) * (max_points - 2)).astype(np.int64)
    last_of_bin = np.concatenate((bins[1:] != bins[:-1], [True]))
    last_of_bin[0] = True
    return kept[last_of_bin]


def _check(costs: Sequence[ArrayLike], losses: Sequence[ArrayLike]) -> None:
    if len(costs) == 0 or len(costs) != len(losses):
        raise ValueError(f"{len(costs)} groups of costs and {len(losses)} groups of losses")
    for number, (cost, loss) in enumerate(zip(costs, losses, strict=True)):
        cost, loss = np.asarray(cost, dtype=np.float64), np.asarray(loss, dtype=np.float64)
        if cost.ndim != 1 or cost.shape != loss.shape or cost.size == 0:
            raise ValueError(f"group {number} has costs of shape {cost.shape} and losses of shape {loss.shape}")
        if not (np.isfinite(cost).all() and np.isfinite(loss).all()):
            raise ValueError(f"group {number} has a cost or loss that is not finite")
