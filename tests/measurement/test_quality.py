"""From answers to figures, on answers made up by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, matthews_corrcoef

from compressor.errors import UserError
from compressor.measurement.inputs import PreparedRows
from compressor.measurement.outputs import log_softmax
from compressor.measurement.quality import (
    Judged,
    choose_metrics,
    judge_decode_path,
    judge_labels,
    judge_tokens,
    kl,
    macro_f1,
    matthews,
)
from compressor.spec.tasks import TASKS

ENCODER, DECODER = TASKS["sequence-classification"], TASKS["causal-lm"]


def judged(*metrics: str) -> Judged:
    return Judged(dataset="rows", baseline="teacher", seed=0, metrics=metrics, own_metrics={})


def one_hot(predictions: list[int], n_classes: int = 3) -> np.ndarray:
    return np.eye(n_classes)[predictions] * 4.0


def rows_of(labels: list[int]) -> PreparedRows:
    return PreparedRows("logits", Path(), "", {"batch": 8}, labels=np.array(labels))


def test_macro_f1_worked_by_hand() -> None:
    # class 0: TP 2, FP 1, FN 0 -> 4/5; class 1: TP 1, FP 0, FN 1 -> 2/3; class 2 appears nowhere and is left out
    assert macro_f1(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), 3) == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_macro_f1_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    predicted, labels = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    assert macro_f1(predicted, labels, 4) == pytest.approx(f1_score(labels, predicted, average="macro"))


def test_accuracy_and_its_paired_difference() -> None:
    labels = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    right, off = one_hot(labels), one_hot([*labels[:7], 0, 0, 1])
    (quality, *_) = judge_labels(judged("accuracy"), rows_of(labels), {"logits": off}, {"logits": right})
    assert quality.value == pytest.approx(0.7)
    assert quality.n == 10
    assert quality.split == "test"
    assert quality.paired is not None
    assert quality.paired.delta == pytest.approx(-0.3)
    assert quality.paired.p_value == pytest.approx(0.25)  # 2 x (1/2)^3


def test_distances_to_the_baseline() -> None:
    labels = [0, 1, 2, 0]
    base, moved = one_hot(labels), one_hot([0, 1, 2, 1])
    *_, agreement, divergence = judge_labels(judged("accuracy"), rows_of(labels), {"logits": moved}, {"logits": base})
    assert (agreement.metric, agreement.value) == ("top1_agreement", 0.75)
    p = math.exp(4) / (math.exp(4) + 2)
    q = 1 / (math.exp(4) + 2)
    # on the one row that differs two classes swap p and q
    assert divergence.value == pytest.approx((p * math.log(p / q) + q * math.log(q / p)) / 4)
    assert divergence.metric == "kl_to_baseline"


def test_the_baseline_has_no_distances() -> None:
    found = judge_labels(judged("accuracy", "macro_f1"), rows_of([0, 1]), {"logits": one_hot([0, 1])}, None)
    assert [row.metric for row in found] == ["accuracy", "macro_f1"]
    assert all(row.paired is None for row in found)


def test_perplexities_worked_by_hand() -> None:
    rows = PreparedRows(
        "tokens",
        Path(),
        "",
        {"context": 4},
        window_tokens=np.array([2, 3]),
        window_bytes=np.array([7, 8]),
        targets=np.array([1, 2, 3, 1, 2]),
    )
    answers = {
        "window_nll": np.array([4.0, 6.0]),
        "top1": np.array([1, 2, 3, 1, 0]),
        "kept_log_probs": np.log(np.array([[0.5, 0.5], [0.9, 0.1]])),
    }
    base = {
        "window_nll": np.array([3.0, 5.0]),
        "top1": np.array([1, 2, 3, 1, 2]),
        "kept_log_probs": np.log(np.array([[0.5, 0.5], [0.5, 0.5]])),
    }
    token, byte, agreement, divergence = judge_tokens(
        judged("token_perplexity", "byte_perplexity"), rows, answers, base
    )
    assert token.value == pytest.approx(math.exp(10 / 5))
    assert byte.value == pytest.approx(math.exp(10 / 15))
    assert token.n == byte.n == 5
    assert token.paired is not None and token.paired.delta == pytest.approx(math.exp(2) - math.exp(8 / 5))
    assert agreement.value == pytest.approx(0.8)
    assert divergence.value == pytest.approx((0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)) / 2)
    assert divergence.n == 2


def test_the_decode_path_stands_beside_the_uncached_one_on_the_same_windows() -> None:
    rows = PreparedRows("tokens_cached", Path(), "", {"path": "decode"}, window_tokens=np.array([2]))
    quality = judge_decode_path(judged(), rows, {"window_nll": np.array([5.0])}, {"window_nll": np.array([4.0, 100.0])})
    assert quality.value == pytest.approx(math.exp(2.5))
    assert quality.settings == {"path": "decode", "uncached_on_same_windows": pytest.approx(math.exp(2.0))}
    assert quality.ci95 is None  # one window has no spread


def test_kl_is_zero_for_equal_answers_and_positive_otherwise() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 7))
    other = np.random.default_rng(1).normal(size=(5, 7))
    assert kl(log_softmax(logits), log_softmax(logits)) == pytest.approx(np.zeros(5))
    assert np.all(kl(log_softmax(logits), log_softmax(other)) > 0)


def test_metrics_are_the_tasks_own_where_none_is_asked_for() -> None:
    rows = Dataset.from_dict({"text": ["a"]})
    assert choose_metrics(DECODER, (), {}, rows) == ("token_perplexity", "byte_perplexity")
    assert choose_metrics(ENCODER, ("macro_f1",), {"mine": lambda p, r: 0.0}, rows) == ("macro_f1", "mine")
    with pytest.raises(UserError, match="there are token_perplexity, byte_perplexity; others go in as"):
        choose_metrics(DECODER, ("accuracy",), {}, rows)


@settings(deadline=None)
@given(labels=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_matthews_is_that_of_scikit_learn(labels: list[tuple[int, int]]) -> None:
    predicted, true = (np.array(side) for side in zip(*labels, strict=True))
    assert matthews(predicted, true, 4) == pytest.approx(matthews_corrcoef(true, predicted), abs=1e-9)
