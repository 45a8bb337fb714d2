"""Quality of every task beside classification and causal language models: metrics, intervals, paired differences.

Rows are drawn again and again (bootstrap) in the units in which they were sampled: sentences and not their words,
queries and not their passages, questions and not their windows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.data.scores import answer_f1, entities, exact_match, f1_of, ndcg, pearson, rmse, spearman
from compressor.errors import UserError
from compressor.measurement import statistics as st
from compressor.measurement.arrays import Array
from compressor.measurement.inputs import PreparedRows, Question
from compressor.measurement.outputs import log_softmax
from compressor.measurement.quality import (
    N_OWN_METRIC_RESAMPLES,
    Judged,
    Metric,
    distance_rows,
    kl,
    paired_by_bootstrap,
)
from compressor.runtime.predict import best_span
from compressor.schema.report import Quality
from compressor.spec.tasks import Task

Answers = Mapping[str, Array]
Drawn = Callable[[Array], float]
"""Numbers of units (n,) -> the score over these."""


@dataclass(frozen=True)
class Scored:
    """One metric over units that can be drawn.

    Attributes:
        n: units.
        own: the candidate's score over some of them.
        other: the baseline's; None for the baseline itself.
    """

    n: int
    own: Drawn
    other: Drawn | None

    def difference(self, units: Array) -> float:
        """The candidate's score less the baseline's, over the same units."""
        assert self.other is not None
        return self.own(units) - self.other(units)


def judge_task(
    judged: Judged, task: Task, rows: PreparedRows, answers: Answers, baseline: Answers | None, classes: Sequence[str]
) -> tuple[Quality, ...]:
    """Quality of a candidate on an encoder's test rows.

    A metric that has no value on these rows (a correlation with a constant) is left out.

    Args:
        answers: as `outputs.write_outputs` reduced them.
        baseline: the baseline's, on the same rows; None for the baseline itself.
        classes: names of the head's classes.
    """
    match task.kind:
        case "classes":
            return _judge_sets(judged, rows, answers, baseline)
        case "number":
            return _judge_numbers(judged, rows, answers, baseline)
        case "token_class":
            return _judge_words(judged, rows, answers, baseline, classes)
        case "span":
            return _judge_spans(judged, rows, answers, baseline)
        case "masked_token":
            return _judge_masked(judged, rows, answers, baseline)
        case "embedding":
            return _judge_embeddings(judged, rows, answers, baseline)
        case "class" | "next_token":
            raise AssertionError("quality.py judges these")


def _rows_of(judged: Judged, rows: PreparedRows, scored: Mapping[str, Scored], n: int) -> list[Quality]:
    found = []
    for metric in judged.metrics:
        one = scored[metric]
        every = np.arange(one.n)
        value = one.own(every)
        if not np.isfinite(value):
            continue
        n_resamples = N_OWN_METRIC_RESAMPLES if metric in judged.own_metrics else 1_999
        ci = st.bootstrap_rows(one.own, one.n, seed=judged.seed, n_resamples=n_resamples)
        paired = None
        if one.other is not None:
            bounds = st.bootstrap_rows(one.difference, one.n, seed=judged.seed, n_resamples=n_resamples)
            paired = paired_by_bootstrap(judged, one.difference(every), bounds)
        found.append(judged.row(metric, value, ci, n, paired, rows.settings))
    return found


def _scored(n: int, score: Callable[[Answers, Array], float], answers: Answers, baseline: Answers | None) -> Scored:
    """A score that needs the answers and the units drawn."""
    return Scored(n, lambda i: score(answers, i), None if baseline is None else (lambda i: score(baseline, i)))


def _of_counts(
    judge: Callable[[Answers], Array], total: Callable[[Array], float], answers: Answers, baseline: Answers | None
) -> Scored:
    """A score from sums of what is counted in each unit, (n, k)."""
    own = judge(answers)
    other = None if baseline is None else judge(baseline)
    return Scored(
        len(own),
        lambda i: total(own[i].sum(axis=0)),
        None if other is None else (lambda i: total(other[i].sum(axis=0))),
    )


def _of_values(judge: Callable[[Answers], Array], answers: Answers, baseline: Answers | None) -> Scored:
    """The mean of one value of each unit, (n,); units where it is NaN are left out."""
    own = judge(answers)
    other = None if baseline is None else judge(baseline)
    return Scored(len(own), lambda i: _mean(own[i]), None if other is None else (lambda i: _mean(other[i])))


def _share(total: Array) -> float:
    return float(total[0] / total[1]) if total[1] else float("nan")


def _mean(values: Array) -> float:
    there = values[np.isfinite(values)]
    return float(there.mean()) if there.size else float("nan")


def _own(
    judged: Judged,
    references: Array,
    predicted: Callable[[Answers], Array],
    answers: Answers,
    baseline: Answers | None,
) -> dict[str, Scored]:
    """The user's own metrics, over predictions and references."""

    def by(metric: Metric) -> Callable[[Answers, Array], float]:
        return lambda a, i: float(metric(predicted(a)[i], references[i]))

    return {
        name: _scored(len(references), by(metric), answers, baseline) for name, metric in judged.own_metrics.items()
    }


# Sets of classes -----------------------------------------------------------------------------------------------------


def _judge_sets(judged: Judged, rows: PreparedRows, answers: Answers, baseline: Answers | None) -> tuple[Quality, ...]:
    labels = rows.labels
    assert labels is not None
    if answers["logits"].shape != labels.shape:
        raise UserError(
            f"the labels have {labels.shape[1]} classes, and the model tells {answers['logits'].shape[1]} apart",
            where="data.test",
        )
    n_classes = labels.shape[1]

    def told(a: Answers) -> Array:
        return (a["logits"] > 0).astype(np.int64)

    def counts(a: Answers) -> Array:
        """Right, told and true of each row and class, (n, 3 C)."""
        return np.concatenate([told(a) * labels, told(a), labels], axis=1)

    def micro(total: Array) -> float:
        right, named, true = total.reshape(3, n_classes).sum(axis=1)
        return f1_of(int(right), int(named), int(true))

    def macro(total: Array) -> float:
        right, named, true = total.reshape(3, n_classes)
        seen = named + true > 0
        return float(np.mean(2 * right[seen] / (named + true)[seen])) if seen.any() else 0.0

    scored = {
        "micro_f1": _of_counts(counts, micro, answers, baseline),
        "macro_f1": _of_counts(counts, macro, answers, baseline),
        "subset_accuracy": _of_values(lambda a: (told(a) == labels).all(axis=1).astype(float), answers, baseline),
        **_own(judged, labels, told, answers, baseline),
    }
    found = _rows_of(judged, rows, scored, len(labels))
    if baseline is not None and baseline["logits"].shape == answers["logits"].shape:
        log_p, log_q = (_yes_and_no(a["logits"]) for a in (baseline, answers))
        divergence = kl(log_p, log_q).reshape(labels.shape).sum(axis=1)
        found += distance_rows(judged, (told(answers) == told(baseline)).all(axis=1), divergence, rows.settings)
    return tuple(found)


def _yes_and_no(logits: Array) -> Array:
    """(n, C) -> log-probabilities (n C, 2): each class is a yes or no of its own."""
    flat = logits.reshape(-1)
    return log_softmax(np.stack([np.zeros_like(flat), flat], axis=1))


# Numbers and rankings ------------------------------------------------------------------------------------------------


def _judge_numbers(
    judged: Judged, rows: PreparedRows, answers: Answers, baseline: Answers | None
) -> tuple[Quality, ...]:
    labels, groups = rows.labels, rows.groups
    assert labels is not None

    def told(a: Answers) -> Array:
        return a["logits"][:, 0].astype(float)

    scored = {
        "pearson": _scored(len(labels), lambda a, i: pearson(told(a)[i], labels[i]), answers, baseline),
        "spearman": _scored(len(labels), lambda a, i: spearman(told(a)[i], labels[i]), answers, baseline),
        "rmse": _scored(len(labels), lambda a, i: rmse(told(a)[i], labels[i]), answers, baseline),
        **_own(judged, labels, told, answers, baseline),
    }
    if groups is not None:
        members = [np.flatnonzero(groups == query) for query in range(int(groups.max()) + 1)]
        scored["ndcg_at_10"] = _of_values(
            lambda a: np.array([ndcg(labels[one], told(a)[one]) for one in members]), answers, baseline
        )
    found = _rows_of(judged, rows, scored, len(labels))
    if baseline is not None:
        ours, theirs = told(answers), told(baseline)
        value = spearman(ours, theirs)
        if np.isfinite(value):
            ci = st.bootstrap_rows(lambda i: spearman(ours[i], theirs[i]), len(labels), seed=judged.seed)
            found.append(judged.row("spearman_to_baseline", value, ci, len(labels), None, rows.settings))
    return tuple(found)


# Words ---------------------------------------------------------------------------------------------------------------


def _judge_words(
    judged: Judged, rows: PreparedRows, answers: Answers, baseline: Answers | None, classes: Sequence[str]
) -> tuple[Quality, ...]:
    labels, groups = rows.labels, rows.groups
    assert labels is not None and groups is not None
    n_rows = int(groups.max()) + 1
    ends = np.searchsorted(groups, np.arange(n_rows + 1))

    def told(a: Answers) -> Array:
        best: Array = a["logits"].argmax(axis=1)
        return best

    def hits(a: Answers) -> Array:
        """Right and all words of each sentence, (n, 2)."""
        right = np.bincount(groups, weights=told(a) == labels, minlength=n_rows)
        return np.stack([right, np.bincount(groups, minlength=n_rows)], axis=1)

    def counts(a: Answers) -> Array:
        """Right, told and true entities of each sentence, (n, 3)."""
        found = []
        best = told(a)
        for start, end in itertools.pairwise(ends):
            named, true = (entities([classes[tag] for tag in tags[start:end]]) for tags in (best, labels))
            found.append([len(named & true), len(named), len(true)])
        return np.array(found)

    scored = {
        "entity_f1": _of_counts(counts, lambda total: f1_of(*map(int, total)), answers, baseline),
        "token_accuracy": _of_counts(hits, _share, answers, baseline),
        **_own(judged, labels, told, answers, baseline),
    }
    found = _rows_of(judged, rows, scored, n_rows)
    if baseline is not None and baseline["logits"].shape == answers["logits"].shape:
        divergence = kl(log_softmax(baseline["logits"]), log_softmax(answers["logits"]))
        found += distance_rows(judged, told(answers) == told(baseline), divergence, rows.settings)
    return tuple(found)


# Answers in a text ---------------------------------------------------------------------------------------------------


def _judge_spans(judged: Judged, rows: PreparedRows, answers: Answers, baseline: Answers | None) -> tuple[Quality, ...]:
    questions = rows.questions
    may_have_none = bool(rows.settings["may_have_no_answer"])
    own = [best_answer(one, answers, may_have_none=may_have_none) for one in questions]
    other = None if baseline is None else [best_answer(one, baseline, may_have_none=may_have_none) for one in questions]

    def scored_by(score: Callable[[str, tuple[str, ...]], float]) -> Scored:
        mine, theirs = (
            None if told is None else np.array([score(one, q.answers) for one, q in zip(told, questions, strict=True)])
            for told in (own, other)
        )
        assert mine is not None
        return Scored(
            len(questions),
            lambda i: float(mine[i].mean()),
            None if theirs is None else (lambda i: float(theirs[i].mean())),
        )

    scored = {"answer_f1": scored_by(answer_f1), "exact_match": scored_by(exact_match)}
    scored |= {name: scored_by(metric) for name, metric in judged.own_metrics.items()}
    found = _rows_of(judged, rows, scored, len(questions))
    if other is not None:
        n_agree = sum(one == two for one, two in zip(own, other, strict=True))
        share, ci = n_agree / len(own), st.wilson(n_agree, len(own))
        found.append(judged.row("top1_agreement", share, ci, len(own), None, rows.settings))
    return tuple(found)


def best_answer(question: Question, answers: Answers, *, may_have_none: bool) -> str:
    """The part of the text with the largest score of start and end; "" where no answer scores more, if that may be."""
    best, text = -np.inf, ""
    nothing = np.inf
    for (first, last), offsets in zip(question.windows, question.offsets, strict=True):
        start, end = answers["start_logits"][first:last], answers["end_logits"][first:last]
        nothing = min(nothing, float(start[0] + end[0]))
        found = best_span(start, end, [b > 0 for _, b in offsets])
        if found is not None and found[2] > best:
            best = found[2]
            text = question.text[offsets[found[0]][0] : offsets[found[1]][1]]
    return "" if may_have_none and nothing > best else text


# Hidden tokens -------------------------------------------------------------------------------------------------------


def _judge_masked(
    judged: Judged, rows: PreparedRows, answers: Answers, baseline: Answers | None
) -> tuple[Quality, ...]:
    groups, targets = rows.groups, rows.targets
    assert groups is not None and targets is not None
    n_rows = int(groups.max()) + 1
    hidden = np.bincount(groups, minlength=n_rows)

    def nll(a: Answers) -> Array:
        return np.stack([np.bincount(groups, weights=a["token_nll"], minlength=n_rows), hidden], axis=1)

    def hits(a: Answers) -> Array:
        return np.stack([np.bincount(groups, weights=a["top1"] == targets, minlength=n_rows), hidden], axis=1)

    scored = {
        "masked_perplexity": _of_counts(nll, lambda total: float(np.exp(total[0] / total[1])), answers, baseline),
        "masked_accuracy": _of_counts(hits, _share, answers, baseline),
        **_own(judged, targets, lambda a: a["top1"], answers, baseline),
    }
    found = _rows_of(judged, rows, scored, int(targets.size))
    if baseline is not None and baseline["kept_log_probs"].shape == answers["kept_log_probs"].shape:
        divergence = kl(baseline["kept_log_probs"].astype(float), answers["kept_log_probs"].astype(float))
        found += distance_rows(judged, answers["top1"] == baseline["top1"], divergence, rows.settings)
    return tuple(found)


# Vectors -------------------------------------------------------------------------------------------------------------


def _judge_embeddings(
    judged: Judged, rows: PreparedRows, answers: Answers, baseline: Answers | None
) -> tuple[Quality, ...]:
    scored: dict[str, Scored] = {}
    n = len(answers["vectors"])
    if rows.pairs is not None and rows.labels is not None:
        pairs, labels, n = rows.pairs, rows.labels, len(rows.pairs)

        def cosines(a: Answers) -> Array:
            unit = _unit(a["vectors"])
            alike: Array = (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(axis=1)
            return alike

        mine, theirs = cosines(answers), None if baseline is None else cosines(baseline)
        scored["spearman"] = Scored(
            n,
            lambda i: spearman(mine[i], labels[i]),
            None if theirs is None else (lambda i: spearman(theirs[i], labels[i])),
        )
        scored["ndcg_at_10"] = _of_values(lambda a: _retrieval(a["vectors"], pairs, labels), answers, baseline)
        scored |= _own(judged, labels, cosines, answers, baseline)
    found = _rows_of(judged, rows, scored, n) if scored else []
    if baseline is not None and baseline["vectors"].shape == answers["vectors"].shape:
        near = (_unit(answers["vectors"]) * _unit(baseline["vectors"])).sum(axis=1)
        ci = st.bootstrap_rows(lambda i: float(near[i].mean()), near.size, seed=judged.seed)
        found.append(judged.row("cosine_to_baseline", float(near.mean()), ci, int(near.size), None, rows.settings))
    return tuple(found)


def _retrieval(vectors: Array, pairs: Array, labels: Array) -> Array:
    """nDCG@10 of each query over all passages of the split; those that no row names with it are of no relevance."""
    unit = _unit(vectors)
    queries, passages = np.unique(pairs[:, 0]), np.unique(pairs[:, 1])
    place = {int(passage): number for number, passage in enumerate(passages)}
    found = []
    for query in queries:
        gains = np.zeros(len(passages))
        for (_, passage), label in zip(pairs[pairs[:, 0] == query], labels[pairs[:, 0] == query], strict=True):
            gains[place[int(passage)]] = max(gains[place[int(passage)]], label)
        found.append(ndcg(gains, unit[passages] @ unit[query]))
    return np.array(found)


def _unit(vectors: Array) -> Array:
    wide = vectors.astype(np.float64)
    unit: Array = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return unit
