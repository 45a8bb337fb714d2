"""The choice equals brute force, and budgets hold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import UserError
from compressor.methods.knapsack import pareto_front, solve_limited, total


def sixty_fourths(most: int) -> st.SearchStrategy[float]:
    """Numbers whose sums are exact, so that brute force and budget differ by nothing or by far more than rounding."""
    return st.integers(0, 64 * most).map(lambda n: n / 64)


values = sixty_fourths(100)
groups = st.lists(st.lists(st.tuples(values, values), min_size=1, max_size=5), min_size=1, max_size=6)


def tables(pairs: list[list[tuple[float, float]]]) -> tuple[list[list[float]], list[list[float]]]:
    return [[c for c, _ in group] for group in pairs], [[loss for _, loss in group] for group in pairs]


def every_choice(costs: list[list[float]], losses: list[list[float]]) -> list[tuple[float, float]]:
    return [
        (total(costs, np.array(choice)), total(losses, np.array(choice)))
        for choice in itertools.product(*(range(len(group)) for group in costs))
    ]


@given(groups, sixty_fourths(600))
def test_the_choice_equals_brute_force(pairs: list[list[tuple[float, float]]], budget: float) -> None:
    costs, losses = tables(pairs)
    within = [loss for cost, loss in every_choice(costs, losses) if cost <= budget]
    front = pareto_front(costs, losses)
    if not within:
        with pytest.raises(UserError, match="the least that any choice costs is"):
            front.within(budget)
        return
    point = front.within(budget)
    assert front.losses[point] == pytest.approx(min(within), rel=1e-9, abs=1e-9)
    assert total(costs, front.choices[point]) == pytest.approx(front.costs[point])
    assert total(losses, front.choices[point]) == pytest.approx(front.losses[point])
    assert front.costs[point] <= budget * (1 + 1e-9)


@given(groups)
def test_the_front_is_strictly_monotone(pairs: list[list[tuple[float, float]]]) -> None:
    front = pareto_front(*tables(pairs))
    assert (np.diff(front.costs) > 0).all() and (np.diff(front.losses) < 0).all()


def test_a_thinned_front_keeps_the_budget_and_stays_close() -> None:
    rng = np.random.default_rng(0)
    costs = [np.sort(rng.random(7)) for _ in range(24)]
    losses = [np.sort(rng.random(7))[::-1] ** 2 for _ in range(24)]
    exact, thinned = pareto_front(costs, losses, 10**9), pareto_front(costs, losses, 500)
    assert len(thinned.costs) <= 500 < len(exact.costs)
    for budget in (6.0, 10.0, 14.0):
        point = thinned.within(budget)
        assert total(costs, thinned.choices[point]) <= budget
        assert thinned.losses[point] == pytest.approx(exact.losses[exact.within(budget)], rel=0.02)


def test_a_budget_out_of_reach_names_the_least() -> None:
    front = pareto_front([[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [1.0, 0.0]])
    with pytest.raises(UserError, match=r"a budget of 3 cannot be met: the least that any choice costs is 4\n"):
        front.within(3.0)


@given(st.integers(0, 300))
def test_further_limits_are_kept(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs, seconds, losses = (rng.integers(1, 50, (4, 4)).astype(float) for _ in range(3))
    budget, most = 110.0, 90.0
    feasible = [
        total(list(losses), np.array(choice))
        for choice in itertools.product(range(4), repeat=4)
        if total(list(costs), np.array(choice)) <= budget and total(list(seconds), np.array(choice)) <= most
    ]
    try:
        choice = solve_limited(list(costs), list(losses), budget, [(list(seconds), most)])
    except UserError:
        return  # the relaxation may miss a narrow corner; it must never return a choice that breaks a limit
    assert total(list(costs), choice) <= budget and total(list(seconds), choice) <= most
    assert total(list(losses), choice) >= min(feasible) - 1e-9


def test_limits_cost_nothing_when_they_do_not_bind() -> None:
    costs, losses = [[1.0, 2.0], [1.0, 3.0]], [[5.0, 0.0], [4.0, 0.0]]
    assert solve_limited(costs, losses, 5.0, [(costs, 100.0)]).tolist() == [1, 1]
    assert solve_limited(costs, losses, 5.0, [([[0.0, 9.0], [0.0, 1.0]], 5.0)]).tolist() == [0, 1]


def test_malformed_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="2 groups of costs and 1 groups of losses"):
        pareto_front([[1.0], [1.0]], [[1.0]])
    with pytest.raises(ValueError, match="group 0 has a cost or loss that is not finite"):
        pareto_front([[float("nan")]], [[1.0]])
