"""Swaps lower the true loss and never break a budget; steps to a budget reach it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.methods.refining import refine, refit_to_budget

COSTS = [[0.0, 1.0, 2.0]] * 3
LOSSES = [[4.0, 1.0, 0.0]] * 3


def interacting(options: tuple[int, ...]) -> float:
    """The summed losses, and a penalty where the first two are both small: what sums cannot see."""
    summed = sum(group[number] for group, number in zip(LOSSES, options, strict=True))
    return summed + (5.0 if options[0] < 2 and options[1] < 2 else 0.0)


def test_swaps_find_what_the_sum_of_scores_cannot_see() -> None:
    found = refine(COSTS, LOSSES, (1, 1, 1), 3.0, interacting, n_moves=30)
    within = [options for options in product(range(3), repeat=3) if sum(options) <= 3]
    assert found.loss == min(interacting(options) for options in within) < found.loss_before == 8.0
    assert 0 < found.n_accepted <= found.n_tried <= 30


def test_no_moves_leave_the_choice() -> None:
    found = refine(COSTS, LOSSES, (1, 1, 1), 3.0, interacting, n_moves=0)
    assert found.options == (1, 1, 1) and found.loss == found.loss_before == 8.0 and found.n_tried == 0


def test_further_limits_hold_during_swaps() -> None:
    latency = [[0.0, 1.0, 9.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]
    found = refine(COSTS, LOSSES, (1, 1, 1), 3.0, interacting, n_moves=30, limits=[(latency, 4.0)])
    assert found.options[0] < 2 and found.options[1] == 2
    assert sum(group[number] for group, number in zip(latency, found.options, strict=True)) <= 4.0


def test_progress_is_told_for_every_move() -> None:
    seen: list[tuple[int, int]] = []
    found = refine(
        COSTS,
        LOSSES,
        (1, 1, 1),
        3.0,
        interacting,
        n_moves=4,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(number, 4) for number in range(1, found.n_tried + 1)]


@given(
    sizes=st.lists(st.integers(2, 5), min_size=1, max_size=5),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**16),
)
def test_steps_to_a_budget_keep_it_wherever_a_choice_can(sizes: list[int], share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = [sorted(rng.uniform(0, 1, n).tolist()) for n in sizes]
    losses = [sorted(rng.uniform(0, 1, n).tolist(), reverse=True) for n in sizes]
    least, most = sum(group[0] for group in costs), sum(group[-1] for group in costs)
    budget = least + share * (most - least) + 1e-9
    start = [int(rng.integers(n)) for n in sizes]
    options = refit_to_budget(costs, losses, start, budget)
    spent = sum(group[number] for group, number in zip(costs, options, strict=True))
    assert spent <= budget
    room = budget - spent
    for group, number in enumerate(options):  # nothing better fits any more by one step
        for other in range(sizes[group]):
            if losses[group][other] < losses[group][number]:
                assert costs[group][other] - costs[group][number] > room - 1e-9


@given(seed=st.integers(0, 2**16), n_moves=st.integers(0, 12))
def test_swaps_never_cost_more_and_never_lose_more(seed: int, n_moves: int) -> None:
    rng = np.random.default_rng(seed)
    costs = [sorted(rng.uniform(0, 1, 4).tolist()) for _ in range(3)]
    losses = [sorted(rng.uniform(0, 1, 4).tolist(), reverse=True) for _ in range(3)]
    noise = {options: float(rng.uniform(0, 1)) for options in product(range(4), repeat=3)}
    start = tuple(int(rng.integers(4)) for _ in range(3))
    budget = sum(group[number] for group, number in zip(costs, start, strict=True))
    found = refine(costs, losses, start, budget, lambda options: noise[options], n_moves=n_moves)
    assert sum(group[number] for group, number in zip(costs, found.options, strict=True)) <= budget * (1 + 1e-9)
    assert found.loss == pytest.approx(noise[found.options]) and found.loss <= found.loss_before == noise[start]
