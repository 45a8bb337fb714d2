"""From answers to figures: each metric, its interval, and its paired difference to the baseline on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from compressor.errors import DataError, UserError
from compressor.measurement import statistics as st
from compressor.measurement.arrays import Array
from compressor.measurement.inputs import PreparedRows
from compressor.measurement.outputs import log_softmax
from compressor.schema.report import Interval, Paired, Quality
from compressor.spec.tasks import Task

Metric = Callable[[Any, Any], float]
"""A user's own metric: (predictions, references) -> float. Class ids, or for a language model next-token ids."""
Ids = npt.NDArray[np.int64]

SUITE_VERSION = 1
"""Raised whenever the same answers would be reduced to other numbers; part of the cache's key."""
N_OWN_METRIC_RESAMPLES = 200
DIVERGENCE = "kl_to_baseline"


@dataclass(frozen=True)
class Judged:
    """What quality needs to know of the place: rows, their name, and whom to compare with.

    Attributes:
        dataset: name of the data, for the report.
        baseline: id of the baseline.
        seed: of every bootstrap.
        metrics: names to report, in order.
        own_metrics: the user's functions among them.
    """

    dataset: str
    baseline: str
    seed: int
    metrics: tuple[str, ...]
    own_metrics: Mapping[str, Metric]

    def row(
        self, metric: str, value: float, ci: st.Bounds | None, n: int, paired: Paired | None, settings: dict[str, Any]
    ) -> Quality:
        """A row of the report, on the test split."""
        return Quality(
            metric=metric,
            dataset=self.dataset,
            split="test",
            value=value,
            ci95=interval(ci),
            n=n,
            paired=paired,
            settings=settings,
        )


def choose_metrics(task: Task, asked: Sequence[str], own: Mapping[str, Metric], rows: Dataset) -> tuple[str, ...]:
    """The metrics to report: those asked for, or all of the task's that these rows can show, and the user's own.

    Raises:
        UserError: a metric that is neither.
        DataError: one that is asked for and that the rows cannot show.
    """
    unknown = [name for name in asked if name not in task.metrics and name not in own]
    if unknown:
        raise UserError(
            f"no metric {unknown[0]!r} for {task.name}",
            where="evaluate.metrics",
            hint=f"there are {', '.join([*task.metrics, *own])}; others go in as compressor.run(..., metrics=...)",
        )
    lacks = {name: lack for name in task.metrics if (lack := _lack(name, task, rows)) is not None}
    for name in asked:
        if name in lacks and not (name == "ndcg_at_10" and "label" in rows.column_names):
            raise DataError(f"{name} cannot be had: {lacks[name]}", where="data.test", hint="leave it out")
    named = tuple(asked) or tuple(name for name in task.metrics if name not in lacks)
    return named + tuple(name for name in own if name not in named)


def _lack(metric: str, task: Task, rows: Dataset) -> str | None:
    """Why these rows say nothing by a metric; None where they do."""
    if task.kind not in ("embedding", "number"):
        return None
    if "label" not in rows.column_names:
        return "the rows have no second text with a label"
    if metric == "ndcg_at_10":
        several = len(set(rows["text"])) < len(rows)
        return None if several else "no query has several passages"
    return None if len(set(rows["label"])) > 1 else "all rows have the same label"


def interval(bounds: st.Bounds | None) -> Interval | None:
    """The report's type for a pair of bounds."""
    return None if bounds is None else Interval(low=bounds[0], high=bounds[1])


# Classification ------------------------------------------------------------------------------------------------------


def judge_labels(
    judged: Judged, rows: PreparedRows, answers: Mapping[str, Array], baseline: Mapping[str, Array] | None
) -> tuple[Quality, ...]:
    """Quality of a classifier.

    Args:
        answers: `logits` (n, classes).
        baseline: the baseline's, on the same rows; None for the baseline itself.

    Raises:
        UserError: labels that the head does not have.
    """
    labels = rows.labels
    assert labels is not None
    n_classes = answers["logits"].shape[1]
    if labels.min() < 0 or labels.max() >= n_classes:
        raise UserError(
            f"labels reach {int(labels.max())}, but the model tells {n_classes} classes apart", where="data.test"
        )
    predicted: Ids = answers["logits"].argmax(axis=1)
    other: Ids | None = None if baseline is None else baseline["logits"].argmax(axis=1)
    found = []
    for metric in judged.metrics:
        if metric == "accuracy":
            value, ci, paired = _accuracy(judged, predicted, other, labels)
        else:
            own = judged.own_metrics.get(metric)
            score = own if own is not None else partial(_OF_CLASSES[metric], n_classes=n_classes)
            n_resamples = 1_999 if own is None else N_OWN_METRIC_RESAMPLES
            value, ci, paired = _bootstrapped(judged, score, predicted, other, labels, n_resamples)
        found.append(judged.row(metric, value, ci, labels.size, paired, rows.settings))
    if baseline is not None and baseline["logits"].shape == answers["logits"].shape:
        divergence = kl(log_softmax(baseline["logits"]), log_softmax(answers["logits"]))
        found += distance_rows(judged, predicted == other, divergence, rows.settings)
    return tuple(found)


def _accuracy(
    judged: Judged, predicted: Ids, other: Ids | None, labels: Ids
) -> tuple[float, st.Bounds | None, Paired | None]:
    correct = predicted == labels
    paired = None
    if other is not None:
        difference = st.paired_accuracy(correct, other == labels)
        low, high = difference.ci95
        paired = Paired(
            against=judged.baseline,
            delta=difference.delta,
            ci95=Interval(low=low, high=high),
            test=difference.test,
            p_value=difference.p_value,
        )
    return float(correct.mean()), st.wilson(int(correct.sum()), correct.size), paired


def _bootstrapped(
    judged: Judged, score: Metric, predicted: Ids, other: Ids | None, references: Ids, n_resamples: int
) -> tuple[float, st.Bounds | None, Paired | None]:
    """Any score of (predictions, references), its interval and its difference by resampling rows."""
    n = references.size
    value = float(score(predicted, references))
    ci = st.bootstrap_rows(
        lambda i: float(score(predicted[i], references[i])), n, seed=judged.seed, n_resamples=n_resamples
    )
    if other is None:
        return value, ci, None
    delta = value - float(score(other, references))
    bounds = st.bootstrap_rows(
        lambda i: float(score(predicted[i], references[i])) - float(score(other[i], references[i])),
        n,
        seed=judged.seed,
        n_resamples=n_resamples,
    )
    return value, ci, paired_by_bootstrap(judged, delta, bounds)


def macro_f1(predicted: Ids, labels: Ids, n_classes: int) -> float:
    """Unweighted mean over classes of 2 TP / (2 TP + FP + FN); a class in neither list is left out."""
    confusion = np.bincount(labels * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)
    hits, union = np.diag(confusion), confusion.sum(axis=0) + confusion.sum(axis=1)  # union = 2 TP + FP + FN
    seen = union > 0
    return float(np.mean(2 * hits[seen] / union[seen]))


def matthews(predicted: Ids, labels: Ids, n_classes: int) -> float:
    """Correlation of predicted and true classes (Gorodkin 2004, R_K); 0 where either names one class only."""
    n, hits = labels.size, int((predicted == labels).sum())
    told = np.bincount(predicted, minlength=n_classes).astype(float)
    true = np.bincount(labels, minlength=n_classes).astype(float)
    spread = (n**2 - (told**2).sum()) * (n**2 - (true**2).sum())
    return float((hits * n - (told * true).sum()) / np.sqrt(spread)) if spread else 0.0


_OF_CLASSES: dict[str, Callable[..., float]] = {"macro_f1": macro_f1, "matthews": matthews}


# Language models -----------------------------------------------------------------------------------------------------


def judge_tokens(
    judged: Judged, rows: PreparedRows, answers: Mapping[str, Array], baseline: Mapping[str, Array] | None
) -> tuple[Quality, ...]:
    """Quality of a language model from its next-token predictions.

    Args:
        answers: `window_nll` (windows,), `top1` (tokens,), `kept_log_probs` (kept, V), as the worker reduced them.
        baseline: the baseline's, on the same windows; None for the baseline itself.
    """
    assert rows.targets is not None and rows.window_tokens is not None and rows.window_bytes is not None
    found = []
    counts = {"token_perplexity": rows.window_tokens, "byte_perplexity": rows.window_bytes}
    n_tokens = int(rows.window_tokens.sum())
    for metric in judged.metrics:
        if metric in counts:
            other = None if baseline is None else baseline["window_nll"]
            value, ci, paired = _perplexity(judged, answers["window_nll"], other, counts[metric])
        else:
            top1 = None if baseline is None else baseline["top1"]
            own = judged.own_metrics[metric]
            value, ci, paired = _bootstrapped(judged, own, answers["top1"], top1, rows.targets, N_OWN_METRIC_RESAMPLES)
        found.append(judged.row(metric, value, ci, n_tokens, paired, rows.settings))
    if baseline is not None and baseline["kept_log_probs"].shape == answers["kept_log_probs"].shape:
        divergence = kl(baseline["kept_log_probs"].astype(float), answers["kept_log_probs"].astype(float))
        found += distance_rows(judged, answers["top1"] == baseline["top1"], divergence, rows.settings)
    return tuple(found)


def judge_decode_path(
    judged: Judged, rows: PreparedRows, cached: Mapping[str, Array], uncached: Mapping[str, Array]
) -> Quality:
    """Token perplexity through the KV cache, beside that of one pass over the same windows.

    Dynamic quantisation picks its ranges from what it sees at once, so one token at a time gives other answers than a
    whole window; the cost of decoding must be quoted with the quality of decoding.
    """
    assert rows.window_tokens is not None
    n = rows.window_tokens.size
    value, ci, _ = _perplexity(judged, cached["window_nll"], None, rows.window_tokens)
    same, _, _ = _perplexity(judged, uncached["window_nll"][:n], None, rows.window_tokens)
    settings = {**rows.settings, "uncached_on_same_windows": same}
    return judged.row("token_perplexity", value, ci, int(rows.window_tokens.sum()), None, settings)


def _perplexity(
    judged: Judged, sums: Array, other: Array | None, counts: Array
) -> tuple[float, st.Bounds | None, Paired | None]:
    ci, delta_ci = st.bootstrap_rates(sums, counts, seed=judged.seed, others=other)
    value = float(np.exp(sums.sum() / counts.sum()))
    if other is None:
        return value, ci, None
    return value, ci, paired_by_bootstrap(judged, value - float(np.exp(other.sum() / counts.sum())), delta_ci)


# Both ----------------------------------------------------------------------------------------------------------------


def kl(log_p: Array, log_q: Array) -> npt.NDArray[np.float64]:
    """KL(p || q) of each row in nats, from log-probabilities (n, classes); p is the baseline's."""
    result: npt.NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return result


def distance_rows(judged: Judged, agree: Array, divergence: Array, settings: dict[str, Any]) -> list[Quality]:
    """How far the answers moved from the baseline's, right or wrong."""
    n_agree, n = int(agree.sum()), int(agree.size)
    ci = st.bootstrap_rows(lambda i: float(divergence[i].mean()), divergence.size, seed=judged.seed)
    return [
        judged.row("top1_agreement", n_agree / n, st.wilson(n_agree, n), n, None, settings),
        judged.row(DIVERGENCE, float(divergence.mean()), ci, int(divergence.size), None, settings),
    ]


def paired_by_bootstrap(judged: Judged, delta: float, bounds: st.Bounds | None) -> Paired | None:
    """The report's type for a difference that was drawn again and again."""
    if bounds is None:
        return None
    return Paired(
        against=judged.baseline,
        delta=delta,
        ci95=Interval(low=bounds[0], high=bounds[1]),
        test="bootstrap",
        p_value=None,
    )
