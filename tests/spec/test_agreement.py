"""Parts that contradict each other: goals, workloads, data, metrics and the task."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from compressor.errors import PipelineError
from compressor.spec.agreement import COSTS, phases_of
from compressor.spec.evaluation import Workload
from compressor.spec.load import load_pipeline
from compressor.spec.tasks import TASKS

SOURCE = {"path": "rows.jsonl"}
ENCODER: dict[str, Any] = {
    "version": 1,
    "name": "job",
    "model": {"task": "sequence-classification", "path": "bert"},
    "data": {"train": SOURCE, "validation": SOURCE, "test": SOURCE},
    "stages": [{"id": "teacher", "stage": "finetune"}, {"id": "onnx", "stage": "export"}],
    "workloads": [{"id": "rows", "from_data": True}, {"id": "one", "input_tokens": 32}],
}
DECODER: dict[str, Any] = {
    **ENCODER,
    "model": {"task": "causal-lm", "path": "gpt2"},
    "data": {"train": SOURCE, "test": SOURCE},
    "stages": [{"id": "onnx", "stage": "export"}],
    "workloads": [{"id": "chat", "input_tokens": 32, "output_tokens": 8}],
}


def refused(base: dict[str, Any], *, metrics: tuple[str, ...] = (), **change: Any) -> str:
    with pytest.raises(PipelineError) as caught:
        load_pipeline({**copy.deepcopy(base), **change}, metrics=metrics)
    return str(caught.value).replace("the pipeline: ", "")


@pytest.mark.parametrize(
    ("base", "goal", "message"),
    [
        (
            ENCODER,
            {"metric": "accuracy", "min_retained": 0.9, "workload": "rows"},
            "goals.0.workload: `accuracy` does not depend on a workload\n  -> remove `workload`",
        ),
        (
            ENCODER,
            {"metric": "accuracy", "max_ratio": 0.9},
            "goals.0: `accuracy`: the more the better\n  -> limit it with `min_retained` or `max_drop_points`",
        ),
        (
            DECODER,
            {"metric": "byte_perplexity", "min_retained": 0.9},
            "goals.0: `byte_perplexity`: the less the better\n"
            "  -> limit it with `max_ratio`, such as 1.05 for at most 5 % above the baseline's",
        ),
        (
            DECODER,
            {"metric": "accuracy", "min_retained": 0.9},
            "goals.0.metric: `accuracy` is neither a metric of causal-lm nor a cost\n"
            "  -> there are: token_perplexity, byte_perplexity, top1_agreement, latency_s, cpu_s_per_token, "
            "j_per_token, size_bytes, parameters",
        ),
        (
            ENCODER,
            {"metric": "joules_per_token", "max_ratio": 0.9},
            "goals.0.metric: `joules_per_token` is neither a metric of sequence-classification nor a cost\n"
            "  -> did you mean `j_per_token`?",
        ),
        (
            ENCODER,
            {"metric": "latency_s", "workload": "rows", "min_retained": 0.9},
            "goals.0: `latency_s` is a cost: the less the better\n"
            "  -> limit it with `max_ratio`, such as 0.5 for half the baseline's",
        ),
        (
            ENCODER,
            {"metric": "latency_s", "max_ratio": 0.5},
            "goals.0.workload: missing, and there are several workloads\n  -> name one of: rows, one",
        ),
        (
            ENCODER,
            {"metric": "latency_s", "max_ratio": 0.5, "workload": "row"},
            "goals.0.workload: there is no workload `row`\n  -> did you mean `rows`?",
        ),
        (
            ENCODER,
            {"metric": "latency_s", "max_ratio": 0.5, "workload": "rows", "phase": "decode"},
            "goals.0.phase: `rows` runs no decode\n  -> its phases: forward",
        ),
        (
            ENCODER,
            {"metric": "size_bytes", "max_ratio": 0.5, "workload": "rows"},
            "goals.0.workload: `size_bytes` does not depend on a workload\n  -> remove `workload`",
        ),
        (
            DECODER,
            {"metric": "j_per_token", "max_ratio": 0.5},
            "goals.0.phase: missing, and `chat` runs prefill and decode\n  -> name one of: prefill, decode",
        ),
    ],
)
def test_goals_that_cannot_be_judged(base: dict[str, Any], goal: dict[str, Any], message: str) -> None:
    assert refused(base, goals=[goal]) == message


def test_a_goal_on_a_metric_that_is_left_out() -> None:
    goal = {"metric": "macro_f1", "min_retained": 0.9}
    assert refused(ENCODER, goals=[goal], evaluate={"metrics": ["accuracy"]}) == (
        "goals.0.metric: `macro_f1` is not among the metrics that are measured\n"
        "  -> add `macro_f1` to `evaluate.metrics`"
    )


def test_only_an_embedder_is_given_prompts() -> None:
    data = {**ENCODER["data"], "prompts": {"text": "query"}}
    assert refused(ENCODER, data=data) == (
        "data.prompts: a sequence-classification model is given no prompts\n"
        "  -> remove `prompts`, and write what belongs before a text into the data"
    )
    model = {"task": "sentence-embedding", "path": "minilm"}
    assert load_pipeline({**ENCODER, "model": model, "data": data}).data.prompts == {"text": "query"}


def test_goals_that_can_be_judged() -> None:
    goals = [
        {"metric": "accuracy", "max_drop_points": 1.0},
        {"metric": "j_per_token", "workload": "one", "max_ratio": 0.5},
        {"metric": "parameters", "max_ratio": 0.5},
        {"metric": "top1_agreement", "min_retained": 0.99},
    ]
    assert len(load_pipeline({**ENCODER, "goals": goals}).goals) == 4
    decode = {"metric": "latency_s", "phase": "decode", "max_ratio": 0.5}
    assert load_pipeline({**DECODER, "goals": [decode]}).goals[0].phase == "decode"


def test_a_metric_of_the_callers_own() -> None:
    asked = {"metrics": ["accuracy", "cost_of_errors"]}
    goal = {"metric": "cost_of_errors", "max_ratio": 1.1}
    assert refused(ENCODER, evaluate=asked) == (
        "evaluate.metrics.1: `cost_of_errors` is no metric of sequence-classification\n"
        "  -> its metrics are: accuracy, macro_f1, matthews"
    )
    accepted = load_pipeline({**ENCODER, "evaluate": asked, "goals": [goal]}, metrics=["cost_of_errors"])
    assert accepted.evaluate.metrics == ("accuracy", "cost_of_errors")


def test_generated_tokens_of_an_encoder() -> None:
    assert refused(ENCODER, workloads=[{"id": "a", "input_tokens": 8, "output_tokens": 8}]) == (
        "workloads.0.output_tokens: a sequence-classification model generates no tokens\n  -> remove `output_tokens`"
    )


def test_two_workloads_of_one_name() -> None:
    assert refused(ENCODER, workloads=[{"id": "a", "input_tokens": 8}, {"id": "a", "from_data": True}]) == (
        "workloads.1.id: `a` is the id of workloads.0 already\n  -> each workload needs an id of its own"
    )


@pytest.mark.parametrize("key", ["baseline", "select"])
def test_a_candidate_that_is_not_there(key: str) -> None:
    assert refused(ENCODER, evaluate={key: "taecher"}) == (
        f"evaluate.{key}: there is no stage `taecher`\n  -> did you mean `teacher`?"
    )


def test_labels_of_a_language_model() -> None:
    assert refused(DECODER, model={"task": "causal-lm", "path": "x", "labels": ["a"]}) == (
        "model.labels: a causal-lm model has no labels\n  -> remove `labels`"
    )


def test_a_column_that_the_task_has_not() -> None:
    data = {**ENCODER["data"], "columns": {"txt": "sentence"}}
    assert refused(ENCODER, data=data) == (
        "data.columns.txt: `txt` is no column of sequence-classification\n"
        "  -> did you mean `text`? (write `column of ours: column in your file`)"
    )


def test_training_needs_its_splits() -> None:
    assert refused(ENCODER, data={"test": SOURCE}) == (
        "data.train: missing, but `teacher` (finetune) trains on it\n  -> add `train: {path: ...}`\n"
        "data.validation: missing, but `teacher` (finetune) picks its best checkpoint on it (never on the test split)\n"
        "  -> add `validation: {path: ...}`"
    )


def test_conversions_need_text_to_look_at() -> None:
    assert refused(DECODER, data={"test": SOURCE}) == (
        "data.calibration: missing, but `onnx` (export) needs real text to look at (never the test split)\n"
        "  -> add `calibration: {path: ...}` or `train: {path: ...}`"
    )
    assert load_pipeline({**DECODER, "data": {"test": SOURCE, "calibration": SOURCE}}).data.train is None


def test_a_tokenizer_needs_text_to_be_trained_on() -> None:
    model = {"task": "causal-lm", "config": {"model_type": "gpt2"}, "tokenizer": {"vocab_size": 300}}
    assert refused(DECODER, model=model, data={"test": SOURCE, "calibration": SOURCE}) == (
        "data.train: missing, but `model.tokenizer.vocab_size` trains a tokenizer on it\n  -> add `train: {path: ...}`"
    )


def test_a_broken_part_is_not_compared_with_others() -> None:
    message = refused(ENCODER, data={"test": {"pth": "x"}}, goals=[{"metric": "latency_s", "max_ratio": -1}])
    assert message == (
        "data.test.pth: unknown key\n  -> did you mean `path`?\ngoals.0.max_ratio: must be greater than 0, not -1"
    )


def test_phases_and_costs_are_those_of_the_report() -> None:
    prompt, chat = Workload(id="a", input_tokens=8), Workload(id="b", input_tokens=8, output_tokens=8)
    assert phases_of(prompt, TASKS["sequence-classification"]) == ("forward",)
    assert phases_of(prompt, TASKS["causal-lm"]) == ("prefill",)
    assert phases_of(chat, TASKS["causal-lm"]) == ("prefill", "decode")
    assert COSTS == ("latency_s", "cpu_s_per_token", "j_per_token", "size_bytes", "parameters")
