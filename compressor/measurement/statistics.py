"""Intervals: every claim of a report is made, or withheld, by one of these functions.

Costs are compared as paired log-ratios over rounds. Each round runs every candidate once, in random order, so a
drift of the machine adds the same to both halves of a pair up to a term whose sign the order has drawn at random:
under drift the differences stay symmetric and nearly uncorrelated, and Student's interval keeps its promise
(shown by simulation in the tests). Heavy tails widen it; they do not break it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Bounds = tuple[float, float]

CONFIDENCE = 0.95
N_RESAMPLES = 9_999
# Beyond this share of the half width the two intervals of a ratio tell different stories, so both are printed.
DISAGREEMENT = 0.20


@dataclass(frozen=True)
class PairedRatio:
    """A cost ratio over the rounds of one session.

    Attributes:
        value: geometric mean of the rounds' ratios; of `robust_ratio` their pseudo-median.
        ci95: Student's t-interval of the mean log-ratio, None below three rounds; of `robust_ratio` its own.
        bootstrap_ci95: expanded percentile bootstrap of the same mean; None below five rounds, which have too few
            different resamples, and of `robust_ratio`.
        n_rounds: pairs that went in.
    """

    value: float
    ci95: Bounds | None
    bootstrap_ci95: Bounds | None
    n_rounds: int

    @property
    def intervals_disagree(self) -> bool:
        """Whether an end of the bootstrap lies off Student's by more than 20 % of the half width: print both then."""
        if self.ci95 is None or self.bootstrap_ci95 is None:
            return False
        half = math.log(self.ci95[1] / self.ci95[0]) / 2
        apart = (abs(math.log(one / two)) for one, two in zip(self.ci95, self.bootstrap_ci95, strict=True))
        return max(apart) > DISAGREEMENT * half


def paired_ratio(costs: Sequence[float], baseline_costs: Sequence[float], *, seed: int = 0) -> PairedRatio:
    """The ratio of two candidates' costs, paired by round.

    Args:
        costs: one positive cost a round.
        baseline_costs: the baseline's cost in the same rounds.

    Raises:
        ValueError: unequal lengths, no rounds, or a cost that is not positive.
    """
    log_ratios = _log_ratios(costs, baseline_costs)
    value = math.exp(float(log_ratios.mean()))
    if log_ratios.size < 3:
        return PairedRatio(value, None, None, log_ratios.size)
    low, high = (float(bound[0]) for bound in t_interval(log_ratios[None, :]))
    t_bounds = (math.exp(low), math.exp(high))
    if log_ratios.size < 5:
        return PairedRatio(value, t_bounds, None, int(log_ratios.size))
    b_low, b_high = bootstrap_mean(log_ratios, seed=seed)
    return PairedRatio(value, t_bounds, (math.exp(b_low), math.exp(b_high)), int(log_ratios.size))


def robust_ratio(costs: Sequence[float], baseline_costs: Sequence[float]) -> PairedRatio:
    """The ratio of two costs, paired by round, of which some rounds were disturbed: a few bursts do not move it.

    The Hodges-Lehmann estimate (the median of the means of all pairs of log-ratios, each with itself too) and the
    exact interval that Wilcoxon's signed-rank test gives it (Hollander and Wolfe, "Nonparametric Statistical Methods",
    section 3.3); None below six rounds, which cannot give 95 %.

    Args:
        costs, baseline_costs: as for `paired_ratio`.

    Raises:
        ValueError: as for `paired_ratio`.
    """
    log_ratios = _log_ratios(costs, baseline_costs)
    n = log_ratios.size
    first, second = np.triu_indices(n)
    walsh = np.sort((log_ratios[first] + log_ratios[second]) / 2)  # (n (n + 1) / 2,)
    value, n_below = math.exp(float(np.median(walsh))), _signed_rank_tail(n)
    if n_below == 0:
        return PairedRatio(value, None, None, n)
    return PairedRatio(value, (math.exp(walsh[n_below - 1]), math.exp(walsh[-n_below])), None, n)


def _signed_rank_tail(n: int) -> int:
    """How many values of the signed-rank statistic of n pairs, from 0 up, have 2.5 % together or less."""
    ways = np.ones(1)  # of each sum of a subset of 1 ... n
    for rank in range(1, n + 1):
        ways = np.convolve(ways, np.r_[1.0, np.zeros(rank - 1), 1.0])
    return int((ways.cumsum() / 2.0**n <= (1 - CONFIDENCE) / 2).sum())


def _log_ratios(costs: Sequence[float], baseline_costs: Sequence[float]) -> Floats:
    numerator, denominator = np.asarray(costs, float), np.asarray(baseline_costs, float)  # (rounds,)
    if numerator.shape != denominator.shape or numerator.size == 0:
        raise ValueError(f"a paired ratio needs the same rounds: {numerator.size} against {denominator.size}")
    if not (np.all(numerator > 0) and np.all(denominator > 0)):
        raise ValueError("a paired ratio needs positive costs")
    log_ratios: Floats = np.log(numerator / denominator)  # (rounds,)
    return log_ratios


def t_interval(samples: Floats) -> tuple[Floats, Floats]:
    """Student's 95 % interval of the mean of each row: (low, high), each (n_rows,).

    Args:
        samples: (n_rows, n) with n >= 2.
    """
    n = samples.shape[1]
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * samples.std(axis=1, ddof=1) / math.sqrt(n)
    mean = samples.mean(axis=1)
    return mean - half, mean + half


def mean_interval(values: Sequence[float]) -> Bounds | None:
    """Student's 95 % interval of a mean; None below three values."""
    if len(values) < 3:
        return None
    low, high = t_interval(np.asarray(values, float)[None, :])
    return float(low[0]), float(high[0])


def bootstrap_mean(values: Floats, *, seed: int) -> Bounds:
    """Expanded percentile bootstrap of a mean.

    The plain percentile interval is too short by sqrt((n-1)/n) and by the ratio of the normal to the t quantile, which
    at five rounds is a third. Hesterberg (2015, "What Teachers Should Know About the Bootstrap", section 4.1.1) widens
    the percentiles so that it agrees with Student's on normal data; where it then disagrees, the data are not normal.
    """
    n = values.size
    tail = stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf((1 - CONFIDENCE) / 2, n - 1))
    if np.all(values == values[0]):
        return float(values[0]), float(values[0])
    draws = np.random.default_rng(seed).integers(0, n, (N_RESAMPLES, n))  # (resamples, n)
    means = values[draws].mean(axis=1)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def wilson(successes: int, n: int) -> Bounds:
    """Wilson's 95 % interval of a proportion."""
    interval = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class PairedDifference:
    """A difference on the same rows: `delta` = this - other, its 95 % interval and the test's p-value."""

    delta: float
    ci95: Bounds
    test: str
    p_value: float | None


def paired_accuracy(correct: npt.NDArray[np.bool_], other_correct: npt.NDArray[np.bool_]) -> PairedDifference:
    """Difference of two accuracies on the same rows: exact McNemar test, Bonett-Price interval.

    Bonett and Price (2012) add one row to each kind of disagreement, which keeps the interval honest where two
    candidates hardly ever disagree: a bootstrap of all-equal rows would claim a difference of exactly 0.

    Raises:
        ValueError: no rows, or unequal numbers of them.
    """
    if correct.shape != other_correct.shape or correct.size == 0:
        raise ValueError("paired accuracies need the same rows")
    n = correct.size
    gained, lost = int(np.sum(correct & ~other_correct)), int(np.sum(~correct & other_correct))
    p_value = float(stats.binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
    p_gained, p_lost = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = 1.959964 * math.sqrt((p_gained + p_lost - (p_gained - p_lost) ** 2) / (n + 2))
    middle = p_gained - p_lost
    return PairedDifference(
        (gained - lost) / n, (max(middle - half, -1.0), min(middle + half, 1.0)), "mcnemar", p_value
    )


def bootstrap_rows(
    statistic: Callable[[npt.NDArray[np.int64]], float], n: int, *, seed: int, n_resamples: int = 1_999
) -> Bounds | None:
    """Percentile bootstrap of any statistic over rows; None below two rows.

    Args:
        statistic: takes row numbers (n,) and returns a number, or NaN where it has no value on that resample.
    """
    if n < 2:
        return None
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng.integers(0, n, n)) for _ in range(n_resamples)])
    values = values[np.isfinite(values)]
    if values.size < n_resamples // 2:
        return None
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def bootstrap_rates(
    sums: Floats, counts: Floats, *, seed: int, others: Floats | None = None, n_resamples: int = 4_999
) -> tuple[Bounds | None, Bounds | None]:
    """Bootstrap over windows of exp(sum / count), and of its difference to another candidate on the same windows.

    Args:
        sums: negative log-likelihood of each window (windows,), nats.
        counts: tokens (or bytes) predicted in each window (windows,).
        others: the other candidate's `sums`.

    Returns:
        (interval of the perplexity, interval of this - other); None below two windows, or without `others`.
    """
    n = sums.size
    if n < 2:
        return None, None
    draws = np.random.default_rng(seed).integers(0, n, (n_resamples, n))  # (resamples, windows)
    totals = counts[draws].sum(axis=1)
    rates = np.exp(sums[draws].sum(axis=1) / totals)
    ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(rates, ends)
    if others is None:
        return (float(low), float(high)), None
    d_low, d_high = np.quantile(rates - np.exp(others[draws].sum(axis=1) / totals), ends)
    return (float(low), float(high)), (float(d_low), float(d_high))


@dataclass(frozen=True)
class Line:
    """A least-squares line: `slope` per unit of x and `intercept`."""

    slope: float
    intercept: float


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Cost against output length: the slope is the cost of one more token.

    Raises:
        ValueError: fewer than two different lengths, from which no slope can be had.
    """
    if len(set(x)) < 2:
        raise ValueError("a slope needs at least two different output lengths")
    fit = stats.linregress(x, y)
    return Line(float(fit.slope), float(fit.intercept))
