"""Improve a choice on the model's true loss: trade a level of one sublayer for a level of another at no more cost.

The search adds up what each option does alone and cannot see how removals interact. A few dozen moves, each judged on
the whole model with all its options in place, repair the worst of that (DarwinLM, arXiv 2502.07780, and SPDY, arXiv
2201.13096, search on true losses too).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compressor.methods.knapsack import Limits

Options = tuple[int, ...]
Table = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Refined:
    """What the moves made of a choice.

    Attributes:
        options: number of the option of each group.
        loss, loss_before: true losses after and before.
        n_tried, n_accepted: moves.
    """

    options: Options
    loss: float
    loss_before: float
    n_tried: int
    n_accepted: int


def refine(
    costs: Table,
    losses: Table,
    start: Sequence[int],
    budget: float,
    true_loss: Callable[[Options], float],
    *,
    n_moves: int,
    limits: Limits = (),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Refined:
    """Try moves in the order of what the summed scores promise; keep those that lower the true loss.

    A move raises one group by one or two options and lowers another, or raises one alone where the budget has room.

    Args:
        costs, losses: per group, of each option.
        start: option of each group, within the budget.
        budget: most that all groups together may cost.
        true_loss: of a choice.
        n_moves: true losses to evaluate, the start's not counted.
        limits: further tables and the most that may be spent of each.
    """
    tables: Limits = [(costs, budget), *limits]
    options = tuple(int(number) for number in start)
    before = best = true_loss(options)
    seen, n_tried, n_accepted = {options}, 0, 0
    while n_tried < n_moves:
        moves = [move for move in _moves(losses, options) if move not in seen and _fits(tables, move)]
        if not moves:
            break
        move = min(moves, key=lambda one: _sum(losses, one) + 1e-9 * _sum(costs, one))
        seen.add(move)
        n_tried += 1
        loss = true_loss(move)
        on_progress(n_tried, n_moves)
        if loss < best:
            options, best, n_accepted = move, loss, n_accepted + 1
    return Refined(options, best, before, n_tried, n_accepted)


def refit_to_budget(costs: Table, losses: Table, start: Sequence[int], budget: float, limits: Limits = ()) -> Options:
    """The nearest choice that keeps a budget: the cheapest steps down until it fits, then the best steps up that do.

    Gives the lowest choice that steps down can reach where even that does not fit.
    """
    tables: Limits = [(costs, budget), *limits]
    options = tuple(int(number) for number in start)
    while not _fits(tables, options):
        steps = [
            (_rise(losses, options, group, number) / saved, group, number)
            for group, chosen in enumerate(options)
            for number in range(len(costs[group]))
            if (saved := costs[group][chosen] - costs[group][number]) > 0
        ]
        if not steps:
            return options
        _, group, number = min(steps)
        options = (*options[:group], number, *options[group + 1 :])
    while True:
        ups = [
            move
            for group in range(len(options))
            for number in range(len(costs[group]))
            if losses[group][number] < losses[group][options[group]]
            and _fits(tables, move := (*options[:group], number, *options[group + 1 :]))
        ]
        if not ups:
            return options
        options = min(ups, key=lambda move: _sum(losses, move))


def _moves(losses: Table, options: Options) -> list[Options]:
    moves = []
    for up, chosen in enumerate(options):
        for rise in (1, 2):
            if chosen + rise >= len(losses[up]):
                continue
            raised = (*options[:up], chosen + rise, *options[up + 1 :])
            moves.append(raised)
            for down, other in enumerate(options):
                for fall in (1, 2):
                    if down != up and other >= fall:
                        moves.append((*raised[:down], other - fall, *raised[down + 1 :]))
    return moves


def _fits(tables: Limits, options: Options) -> bool:
    return all(_sum(table, options) <= most * (1 + 1e-12) for table, most in tables)  # type: ignore[arg-type]


def _sum(table: Table, options: Options) -> float:
    return sum(group[number] for group, number in zip(table, options, strict=True))


def _rise(losses: Table, options: Options, group: int, number: int) -> float:
    return losses[group][number] - losses[group][options[group]]
