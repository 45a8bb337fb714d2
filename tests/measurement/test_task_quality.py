"""Quality of every task from made-up answers: values by hand, what is drawn together, and who is held against whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from compressor.errors import DataError, UserError
from compressor.measurement.inputs import PreparedRows, Question
from compressor.measurement.quality import Judged, choose_metrics
from compressor.measurement.task_quality import best_answer, judge_task
from compressor.schema.report import Quality
from compressor.spec.tasks import TASKS, TaskName


def judge(
    task: TaskName, rows: PreparedRows, answers: dict[str, Any], baseline: dict[str, Any] | None = None,
    classes: tuple[str, ...] = (), metrics: tuple[str, ...] | None = None, **own: Any,
) -> dict[str, Quality]:  # fmt: skip
    judged = Judged("rows", "teacher", 0, (*(metrics or TASKS[task].metrics), *own), own)
    made = ({name: np.array(value, float) for name, value in one.items()} for one in (answers, baseline or {}))
    ours, theirs = made
    return {one.metric: one for one in judge_task(judged, TASKS[task], rows, ours, theirs or None, classes)}


def rows_of(kind: Any, **fields: Any) -> PreparedRows:
    settings = fields.pop("settings", {"batch": 8})
    return PreparedRows(kind, Path(), "", settings, **fields)


def test_several_labels_by_hand() -> None:
    labels = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0]])
    logits = [[2, -1, 3], [1, 2, -1], [-1, -1, -1], [-2, 3, -1]]  # one class too many in row 2, one too few in row 4
    found = judge(
        "multi-label-classification", rows_of("logits", labels=labels), {"logits": logits}, {"logits": logits}
    )
    assert found["micro_f1"].value == pytest.approx(2 * 4 / (5 + 5))
    assert found["macro_f1"].value == pytest.approx((2 * 1 / 4 + 1 + 1) / 3)
    assert found["subset_accuracy"].value == 0.5
    assert found["top1_agreement"].value == 1
    assert found["kl_to_baseline"].value == pytest.approx(0)
    paired = found["micro_f1"].paired
    assert paired is not None and (paired.delta, paired.ci95.low, paired.ci95.high) == (0, 0, 0)
    with pytest.raises(UserError, match="the labels have 3 classes, and the model tells 2 apart"):
        judge("multi-label-classification", rows_of("logits", labels=labels), {"logits": np.zeros((4, 2))})


def test_a_number_has_its_interval_and_its_nearness_to_the_baseline() -> None:
    labels = np.arange(40.0)
    rng = np.random.default_rng(0)
    base, worse = labels + rng.normal(0, 1, 40), labels + rng.normal(0, 20, 40)
    found = judge("regression", rows_of("logits", labels=labels), {"logits": worse[:, None]}, {"logits": base[:, None]})
    assert found["rmse"].value == pytest.approx(np.sqrt(np.mean((worse - labels) ** 2)))
    for name, sign in (("pearson", -1), ("spearman", -1), ("rmse", 1)):
        paired = found[name].paired
        assert paired is not None and paired.against == "teacher"
        assert sign * paired.delta > 0 and sign * paired.ci95.low > 0 and sign * paired.ci95.high > 0
    assert 0 < found["spearman_to_baseline"].value < 1


def test_a_correlation_with_a_constant_is_left_out() -> None:
    found = judge("regression", rows_of("logits", labels=np.arange(5.0)), {"logits": np.ones((5, 1))})
    assert list(found) == ["rmse"]


def test_a_ranking_is_drawn_by_queries() -> None:
    labels, groups = np.array([1.0, 0, 0, 0, 1, 0]), np.array([0, 0, 0, 1, 1, 1])
    scores = [[3], [2], [1], [3], [2], [1]]  # right at the top, and one below it
    found = judge("reranking", rows_of("logits", labels=labels, groups=groups), {"logits": scores})
    assert found["ndcg_at_10"].value == pytest.approx((1 + 1 / np.log2(3)) / 2)
    assert found["ndcg_at_10"].ci95 is not None
    assert found["ndcg_at_10"].ci95.low == pytest.approx(1 / np.log2(3))  # only the second query was drawn
    assert found["ndcg_at_10"].ci95.high == pytest.approx(1)


def test_entities_are_counted_by_sentences() -> None:
    classes = ("O", "B-PER", "I-PER")
    labels, groups = np.array([1, 2, 0, 1, 0]), np.array([0, 0, 0, 1, 1])
    told = np.eye(3)[[1, 2, 0, 0, 1]]
    rows = rows_of("words", labels=labels, groups=groups)
    found = judge("token-classification", rows, {"logits": told}, {"logits": told}, classes)
    assert found["entity_f1"].value == pytest.approx(2 * 1 / (2 + 2))
    assert found["token_accuracy"].value == pytest.approx(3 / 5)
    assert (found["entity_f1"].ci95.low, found["entity_f1"].ci95.high) == (0, 1)  # either sentence alone
    assert found["top1_agreement"].n == 5


def test_the_best_answer_is_found_over_all_windows() -> None:
    question = Question(
        text="it was Ada who wrote",
        answers=("Ada",),
        windows=((0, 4), (4, 8)),
        offsets=(((-1, -1), (0, 2), (3, 6), (-1, -1)), ((-1, -1), (7, 10), (11, 14), (-1, -1))),
    )
    start = np.array([0, 1, 0, 9, 0, 4, 0, 9], float)  # the last token of a window is no text, whatever it scores
    end = np.array([0, 1, 0, 9, 0, 3, 0, 9], float)
    answers = {"start_logits": start, "end_logits": end}
    assert best_answer(question, answers, may_have_none=False) == "Ada"
    end_before_start = {"start_logits": np.roll(start, 1), "end_logits": end}
    assert best_answer(question, end_before_start, may_have_none=False) != ""
    sure_of_none = {"start_logits": start + 10 * np.eye(8)[0] + 10 * np.eye(8)[4], "end_logits": end}
    assert best_answer(question, sure_of_none, may_have_none=True) == ""
    assert best_answer(question, sure_of_none, may_have_none=False) == "Ada"
    rows = rows_of("spans", questions=(question,) * 4, settings={"may_have_no_answer": False})
    found = judge("question-answering", rows, answers, answers)
    assert found["exact_match"].value == found["answer_f1"].value == found["top1_agreement"].value == 1


def test_hidden_tokens_by_hand() -> None:
    rows = rows_of("masked", groups=np.array([0, 0, 1]), targets=np.array([5, 6, 7]))
    kept = np.log(np.array([[0.5, 0.5]]))
    answers = {"token_nll": [1.0, 2.0, 3.0], "top1": [5, 0, 7], "kept_log_probs": kept}
    found = judge("masked-lm", rows, answers, answers)
    assert found["masked_perplexity"].value == pytest.approx(np.exp(2))
    assert found["masked_accuracy"].value == pytest.approx(2 / 3)
    assert found["masked_perplexity"].n == 3


def test_an_embedder_is_judged_by_pairs_by_retrieval_and_by_its_nearness() -> None:
    vectors = np.eye(4)[[0, 1, 2, 3]] + 0.01
    turned = vectors[:, ::-1]  # another basis: cosines within stay, the vectors themselves do not
    pairs, labels = np.array([[0, 2], [0, 3], [1, 3]]), np.array([1.0, 0.0, 1.0])
    mine = vectors.copy()
    mine[0], mine[1] = vectors[2] + 0.1 * vectors[0], vectors[2]  # query 0 finds passage 2; query 1 finds it too
    rows = rows_of("embeddings", pairs=pairs, labels=labels)
    found = judge("sentence-embedding", rows, {"vectors": mine}, {"vectors": vectors})
    assert found["ndcg_at_10"].value == pytest.approx((1 + 1 / np.log2(3)) / 2)
    near = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(mine, vectors, strict=True)]
    assert found["cosine_to_baseline"].value == pytest.approx(np.mean(near))
    same = judge("sentence-embedding", rows, {"vectors": turned}, {"vectors": vectors})
    assert same["cosine_to_baseline"].value < 0.5
    texts = judge("sentence-embedding", rows_of("embeddings"), {"vectors": mine}, {"vectors": vectors})
    assert list(texts) == ["cosine_to_baseline"]


def test_a_metric_of_ones_own_sees_predictions_and_references() -> None:
    labels = np.arange(6.0)
    found = judge(
        "regression",
        rows_of("logits", labels=labels),
        {"logits": labels[:, None] + 1},
        bias=lambda p, r: (p - r).mean(),
    )
    assert found["bias"].value == pytest.approx(1)


def test_metrics_that_the_rows_cannot_show_are_left_out_or_refused() -> None:
    task = TASKS["sentence-embedding"]
    texts = Dataset.from_dict({"text": ["a", "b"]})
    assert choose_metrics(task, (), {}, texts) == ()
    with pytest.raises(DataError, match="spearman cannot be had: the rows have no second text with a label"):
        choose_metrics(task, ("spearman",), {}, texts)
    pairs = Dataset.from_dict({"text": ["a", "b"], "text_pair": ["c", "d"], "label": [0.1, 0.9]})
    assert choose_metrics(task, (), {}, pairs) == ("spearman",)
    assert choose_metrics(task, ("ndcg_at_10",), {}, pairs) == ("ndcg_at_10",)
    queries = Dataset.from_dict({"text": ["a", "a"], "text_pair": ["c", "d"], "label": [1.0, 0.0]})
    assert choose_metrics(task, (), {}, queries) == ("spearman", "ndcg_at_10")
    alike = Dataset.from_dict({"text": ["a", "a"], "text_pair": ["c", "d"], "label": [1.0, 1.0]})
    assert choose_metrics(task, (), {}, alike) == ("ndcg_at_10",)
