"""Intervals: worked numbers, laws, and the promise that matters: A/A intervals cover 1.0 as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from compressor.measurement.statistics import (
    bootstrap_mean,
    bootstrap_rates,
    bootstrap_rows,
    fit_line,
    mean_interval,
    paired_accuracy,
    paired_ratio,
    robust_ratio,
    t_interval,
    wilson,
)

SESSIONS, ROUNDS = 2_000, 10


def simulated_sessions(
    *, n_candidates: int, phi: float, tails: float, ramp: float, is_shuffled: bool, seed: int, rounds: int = ROUNDS
) -> NDArray[np.float64]:
    """Log-costs of two equal candidates among others in complete blocks: (sessions, rounds, 2).

    Each window's log-cost is the machine's drift (AR(1) with coefficient `phi`, and a ramp over the session) plus
    heavy-tailed noise (Student with `tails` degrees of freedom).
    """
    rng = np.random.default_rng(seed)
    n_windows = rounds * n_candidates
    drift = np.empty((SESSIONS, n_windows))
    drift[:, 0] = rng.standard_normal(SESSIONS)
    for window in range(1, n_windows):
        kick = rng.standard_normal(SESSIONS)
        drift[:, window] = phi * drift[:, window - 1] + math.sqrt(1 - phi**2) * kick
    costs = drift + rng.standard_t(tails, (SESSIONS, n_windows)) + ramp * np.arange(n_windows)
    blocks = 0.02 * costs.reshape(SESSIONS, rounds, n_candidates)
    place = rng.random((SESSIONS, rounds, n_candidates)).argsort(axis=2) if is_shuffled else None
    if place is None:
        return blocks[:, :, :2]
    return np.take_along_axis(blocks, place[:, :, :2], axis=2)


def coverage(costs: NDArray[np.float64]) -> float:
    """Share of sessions whose printed interval holds the true ratio, 1.0."""
    low, high = t_interval(costs[:, :, 0] - costs[:, :, 1])
    return float(np.mean((low <= 0) & (high >= 0)))


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("tails", [3.0, 5.0])
@pytest.mark.parametrize("n_candidates", [2, 8])
def test_the_interval_covers_as_it_says_under_drift_and_heavy_tails(
    phi: float, tails: float, n_candidates: int
) -> None:
    costs = simulated_sessions(n_candidates=n_candidates, phi=phi, tails=tails, ramp=0.2, is_shuffled=True, seed=1)
    assert 0.93 <= coverage(costs) <= 0.97


def test_a_fixed_order_would_not_keep_the_promise() -> None:
    """Why blocks are shuffled: under a ramp whoever runs second always looks dearer."""
    costs = simulated_sessions(n_candidates=2, phi=0.9, tails=5.0, ramp=1.0, is_shuffled=False, seed=1)
    assert coverage(costs) < 0.93


def test_the_simulation_and_the_printed_interval_are_one_formula() -> None:
    costs = simulated_sessions(n_candidates=3, phi=0.5, tails=4.0, ramp=0.0, is_shuffled=True, seed=3)[0]
    printed = paired_ratio(list(np.exp(costs[:, 0])), list(np.exp(costs[:, 1])))
    low, high = t_interval((costs[:, 0] - costs[:, 1])[None, :])
    assert printed.ci95 == pytest.approx((math.exp(low[0]), math.exp(high[0])))


def test_paired_ratio_worked_by_hand() -> None:
    ratio = paired_ratio([2.0, 4.0, 8.0], [1.0, 1.0, 1.0])
    # logs are ln2 x (1, 2, 3): mean 2, sd 1, so the interval is 2 +- 4.3027 / sqrt(3)
    half = 4.302653 / math.sqrt(3)
    assert ratio.value == pytest.approx(4.0)
    assert ratio.ci95 == pytest.approx((2 ** (2 - half), 2 ** (2 + half)), rel=1e-5)
    assert ratio.bootstrap_ci95 is None


def test_robust_ratio_worked_by_hand() -> None:
    """Log-ratios 0 ... 5: their Walsh averages lie symmetrically around 2.5, and six rounds leave the extremes."""
    found = robust_ratio([math.exp(x) for x in range(6)], [1.0] * 6)
    assert math.log(found.value) == pytest.approx(2.5)
    assert found.ci95 is not None and [math.log(end) for end in found.ci95] == pytest.approx([0.0, 5.0])
    assert robust_ratio([1.0] * 5, [2.0] * 5).ci95 is None  # 1 in 16 is more than 5 %


@pytest.mark.parametrize("n", [6, 12, 18, 36])
def test_robust_interval_is_that_of_the_signed_rank_test(n: int) -> None:
    """A ratio lies inside just when the test of scipy does not reject it."""
    rng = np.random.default_rng(n)
    logs = rng.normal(0.1, 0.05, n)
    found = robust_ratio(np.exp(logs).tolist(), [1.0] * n)
    assert found.ci95 is not None
    low, high = (math.log(end) for end in found.ci95)
    for shift in (low + 1e-9, high - 1e-9):
        assert stats.wilcoxon(logs - shift, method="exact").pvalue > 0.05
    for shift in (low - 1e-9, high + 1e-9):
        assert stats.wilcoxon(logs - shift, method="exact").pvalue <= 0.05


def test_a_few_disturbed_rounds_do_not_move_the_robust_ratio() -> None:
    rng = np.random.default_rng(0)
    logs = rng.normal(math.log(0.8), 0.01, 18)
    logs[:2] += 1.0
    found, mean = robust_ratio(np.exp(logs).tolist(), [1.0] * 18), paired_ratio(np.exp(logs).tolist(), [1.0] * 18)
    assert found.value == pytest.approx(0.8, rel=0.02) and mean.value > 0.87
    assert found.ci95 is not None and found.ci95[0] < 0.8 < found.ci95[1] < 0.85


def test_too_few_rounds_have_a_value_and_no_interval() -> None:
    assert paired_ratio([2.0, 2.0], [1.0, 1.0]).ci95 is None
    assert mean_interval([1.0, 2.0]) is None


@pytest.mark.parametrize(
    ("costs", "others", "text"),
    [([1.0], [1.0, 2.0], "same rounds"), ([], [], "same rounds"), ([1.0, 0.0], [1.0, 1.0], "positive")],
)
def test_costs_that_cannot_be_paired(costs: list[float], others: list[float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        paired_ratio(costs, others)


POSITIVE = st.floats(1e-6, 1e6)


@settings(deadline=None)
@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=3, max_size=12))
def test_swapping_the_two_inverts_the_ratio(pairs: list[tuple[float, float]]) -> None:
    there = paired_ratio([a for a, _ in pairs], [b for _, b in pairs])
    back = paired_ratio([b for _, b in pairs], [a for a, _ in pairs])
    assert there.value * back.value == pytest.approx(1.0)
    assert there.ci95 is not None and back.ci95 is not None
    assert there.ci95[0] * back.ci95[1] == pytest.approx(1.0)
    assert there.ci95[0] <= there.value * (1 + 1e-9) and there.value <= there.ci95[1] * (1 + 1e-9)


@settings(deadline=None)
@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=12))
def test_swapping_the_two_inverts_the_robust_ratio(pairs: list[tuple[float, float]]) -> None:
    there = robust_ratio([a for a, _ in pairs], [b for _, b in pairs])
    back = robust_ratio([b for _, b in pairs], [a for a, _ in pairs])
    assert there.value * back.value == pytest.approx(1.0)
    assert (there.ci95 is None) == (back.ci95 is None) == (len(pairs) < 6)
    if there.ci95 is not None and back.ci95 is not None:
        assert there.ci95[0] * back.ci95[1] == pytest.approx(1.0)


def test_the_bootstrap_agrees_with_students_interval_on_normal_data() -> None:
    values = stats.norm.ppf((np.arange(10) + 0.5) / 10)
    low, high = bootstrap_mean(values, seed=0)
    t_low, t_high = mean_interval(list(values)) or (math.nan, math.nan)
    assert (high - low) == pytest.approx(t_high - t_low, rel=0.1)


def test_disagreeing_intervals_are_noticed() -> None:
    calm = paired_ratio(list(1 + 0.01 * stats.norm.ppf((np.arange(10) + 0.5) / 10)), [1.0] * 10)
    wild = paired_ratio([1.0] * 9 + [2.0], [1.0] * 10)
    assert not calm.intervals_disagree
    assert wild.intervals_disagree


def test_wilson_worked_by_hand() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-4)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe (1998), table I


def test_mcnemar_and_its_difference_worked_by_hand() -> None:
    """Bonett and Price (2012): 10 rows gained, 3 lost of 100: (11 - 4) / 102 +- 1.96 se."""
    correct = np.array([True] * 10 + [False] * 3 + [True] * 87)
    other = np.array([False] * 10 + [True] * 3 + [True] * 87)
    found = paired_accuracy(correct, other)
    assert found.delta == pytest.approx(0.07)
    p1, p2 = 11 / 102, 4 / 102
    half = 1.959964 * math.sqrt((p1 + p2 - (p1 - p2) ** 2) / 102)
    assert found.ci95 == pytest.approx((p1 - p2 - half, p1 - p2 + half))
    # exact binomial: P(at most 3 of 13) x 2
    assert found.p_value == pytest.approx(2 * sum(math.comb(13, k) for k in range(4)) / 2**13)


def test_equal_answers_leave_room_for_doubt() -> None:
    same = np.array([True, False] * 50)
    found = paired_accuracy(same, same)
    assert found.delta == 0.0
    assert found.p_value == 1.0
    assert found.ci95[0] < -0.01 and found.ci95[1] > 0.01


def test_bootstrap_of_rows_is_about_right_for_a_mean() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    low, high = bootstrap_rows(lambda i: float(values[i].mean()), 400, seed=1) or (math.nan, math.nan)
    assert low == pytest.approx(values.mean() - 1.96 / 20, abs=0.02)
    assert high == pytest.approx(values.mean() + 1.96 / 20, abs=0.02)
    assert bootstrap_rows(lambda i: 1.0, 1, seed=0) is None


def test_perplexity_bootstrap_pairs_windows() -> None:
    """The same windows drawn for both: a constant factor between two models has no spread."""
    rng = np.random.default_rng(0)
    counts = rng.integers(50, 60, 40).astype(float)
    sums = counts * rng.normal(3.0, 0.5, 40)
    own, difference = bootstrap_rates(sums, counts, seed=0, others=sums)
    assert own is not None and own[0] < math.exp(sums.sum() / counts.sum()) < own[1]
    assert difference == (0.0, 0.0)
    assert bootstrap_rates(sums[:1], counts[:1], seed=0) == (None, None)


@settings(deadline=None)
@given(st.floats(0.001, 100), st.floats(-5, 5))
def test_a_line_gives_its_slope_back(slope: float, intercept: float) -> None:
    lengths = [16.0, 64.0, 128.0]
    line = fit_line(lengths, [intercept + slope * n for n in lengths])
    assert line.slope == pytest.approx(slope, rel=1e-6)
    assert line.intercept == pytest.approx(intercept, abs=1e-4 + 1e-6 * slope)


def test_one_length_has_no_slope() -> None:
    with pytest.raises(ValueError, match="two different output lengths"):
        fit_line([16.0, 16.0], [1.0, 2.0])
