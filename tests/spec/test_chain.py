"""The stages as a graph: references, order, and what each is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from compressor.errors import PipelineError
from compressor.spec.chain import baseline_id, resolve_sources
from compressor.spec.load import load_pipeline
from compressor.spec.pipeline import Pipeline

FINETUNE = {"stage": "finetune"}
DISTILL = {"stage": "distill", "teacher": "model"}
PRUNE = {"stage": "prune", "keep": {"ffn": 0.5}}
EXPORT = {"stage": "export"}
QUANTIZE = {"stage": "quantize", "scheme": "fp16"}


def pipeline(*stages: dict[str, Any], **more: object) -> Pipeline:
    source = {"path": "rows.jsonl"}
    return load_pipeline(
        {
            "version": 1,
            "name": "job",
            "model": {"task": "sequence-classification", "path": "bert"},
            "data": {"train": source, "validation": source, "test": source},
            "stages": list(stages),
            "workloads": [{"id": "rows", "from_data": True}],
            **more,
        }
    )


def refused(*stages: dict[str, Any], **more: object) -> str:
    with pytest.raises(PipelineError) as caught:
        pipeline(*stages, **more)
    return str(caught.value).replace("the pipeline: ", "")


def test_sources_follow_from_else_the_stage_before() -> None:
    fork = pipeline(
        {"id": "teacher", **FINETUNE},
        {"id": "onnx", **EXPORT},
        {"id": "int8", **QUANTIZE},
        {"id": "fp16", "from": "onnx", **QUANTIZE},
        {"id": "small", "from": "model", **PRUNE},
    )
    assert resolve_sources(fork) == {
        "teacher": "model", "onnx": "teacher", "int8": "onnx", "fp16": "onnx", "small": "model",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("stages", "evaluate", "baseline"),
    [
        ([{"id": "a", **PRUNE}, {"id": "b", **FINETUNE}], {}, "b"),
        ([{"id": "a", **PRUNE}], {}, "model"),
        ([{"id": "a", **FINETUNE}], {"baseline": "model"}, "model"),
    ],
)
def test_the_baseline_is_as_told_else_the_first_fine_tuned_stage_else_the_model(
    stages: list[dict[str, Any]], evaluate: dict[str, str], baseline: str
) -> None:
    assert baseline_id(pipeline(*stages, evaluate=evaluate)) == baseline


def test_prune_after_export() -> None:
    assert refused({"id": "teacher", **FINETUNE}, {"id": "onnx", **EXPORT}, {"id": "small", **PRUNE}) == (
        "stages.2: `small` (prune) needs a torch checkpoint, but `onnx` (export) leaves onnx\n"
        "  -> write `from: teacher`, the last torch checkpoint before it"
    )


def test_the_wrong_kind_by_an_explicit_from_points_at_it() -> None:
    assert refused({"id": "onnx", **EXPORT}, {"id": "small", "from": "onnx", **PRUNE}) == (
        "stages.1.from: `small` (prune) needs a torch checkpoint, but `onnx` (export) leaves onnx\n"
        "  -> write `from: model`, the last torch checkpoint before it"
    )


@pytest.mark.parametrize(
    ("before", "called"),
    [([], "the source model is torch"), ([{"id": "a", **FINETUNE}], "`a` (finetune) leaves torch")],
)
def test_quantize_before_export(before: list[dict[str, Any]], called: str) -> None:
    assert refused(*before, {"id": "int8", **QUANTIZE}) == (
        f"stages.{len(before)}: `int8` (quantize) needs an onnx checkpoint, but {called}\n"
        "  -> put a stage `export` between them"
    )


def test_quantising_twice() -> None:
    assert refused({"id": "onnx", **EXPORT}, {"id": "int8", **QUANTIZE}, {"id": "fp16", **QUANTIZE}) == (
        "stages.2: `fp16` (quantize) starts from `int8` (quantize), which is quantised already\n"
        "  -> write `from: onnx` to quantise the same export again"
    )


def test_a_teacher_in_onnx() -> None:
    assert refused({"id": "onnx", **EXPORT}, {"id": "s", "stage": "distill", "from": "model", "teacher": "onnx"}) == (
        "stages.1.teacher: a teacher must be a torch checkpoint, but `onnx` (export) leaves onnx\n"
        "  -> write `teacher: model`, the last torch checkpoint before it"
    )


def test_a_stage_that_is_not_there() -> None:
    assert refused({"id": "teacher", **FINETUNE}, {"id": "s", "stage": "distill", "teacher": "taecher"}) == (
        "stages.1.teacher: there is no stage `taecher`\n  -> did you mean `teacher`?"
    )
    assert refused({"id": "a", **FINETUNE}, {"id": "b", "from": "zzz", **PRUNE}) == (
        "stages.1.from: there is no stage `zzz`\n  -> there are: model, a, b"
    )


def test_a_stage_that_comes_later() -> None:
    assert refused({"id": "small", "from": "teacher", **PRUNE}, {"id": "teacher", "from": "model", **FINETUNE}) == (
        "stages.0.from: `teacher` comes later (stages.1)\n  -> a stage starts from an earlier one: change the order"
    )


def test_a_stage_that_starts_from_itself() -> None:
    assert refused({"id": "small", "from": "small", **PRUNE}) == (
        "stages.0.from: `small` cannot start from itself\n  -> name an earlier stage, or `model`"
    )


def test_a_circle() -> None:
    assert refused(
        {"id": "a", "from": "c", **FINETUNE}, {"id": "b", **PRUNE}, {"id": "c", "from": "b", **FINETUNE}
    ) == (
        "stages.0.from: `a` and `c` wait for each other\n  -> one of them must start from an earlier stage, or `model`"
    )


def test_a_circle_through_a_teacher() -> None:
    assert "`a` and `b` wait for each other" in refused(
        {"id": "a", "stage": "distill", "teacher": "b"}, {"id": "b", **FINETUNE}
    )


def test_ids_are_unique_and_model_is_taken() -> None:
    assert refused({"id": "a", **FINETUNE}, {"id": "a", **PRUNE}) == (
        "stages.1.id: `a` is the id of stages.0 already\n  -> each stage needs an id of its own"
    )
    assert refused({"id": "model", **FINETUNE}) == (
        "stages.0.id: `model` names the source model, so no stage can be called that\n  -> choose another id"
    )


def test_a_broken_stage_is_passed_over() -> None:
    message = refused({"id": "a", "stage": "zip"}, {"id": "b", **PRUNE}, {"id": "c", "from": "a", **QUANTIZE})
    assert [line for line in message.splitlines() if line.startswith("stages")] == [
        "stages.0.stage: `stage: zip` is no stage"
    ]


def test_a_chain_is_checked_although_another_part_is_broken(changed: Callable[[str, str], str]) -> None:
    message = changed("  - id: onnx\n    stage: export\n", "  - id: onnx\n    stage: finetune\n    epochs: 3\n")
    assert message == (
        "job.yaml:21: stages.2.epochs: unknown key\n"
        "  -> did you mean `training.epochs`? It goes under `training:`\n"
        "job.yaml:22: stages.3: `int8` (quantize) needs an onnx checkpoint, but `onnx` (finetune) leaves torch\n"
        "  -> put a stage `export` between them"
    )
