"""Which steps run, and who is judged."""

from __future__ import annotations

from typing import Any

import pytest

from compressor.pipeline.plan import make_plan, needed_for
from compressor.spec.load import load_pipeline
from compressor.spec.pipeline import Pipeline


def a_pipeline(stages: list[dict[str, Any]], **evaluate: Any) -> Pipeline:
    return load_pipeline(
        {
            "version": 1,
            "name": "job",
            "model": {"path": "somewhere", "task": "sequence-classification"},
            "data": {split: {"path": f"{split}.jsonl"} for split in ("train", "validation", "test")},
            "workloads": [{"id": "rows", "from_data": True, "batch": 8}],
            "stages": stages,
            "evaluate": evaluate,
        }
    )


FORK = [
    {"id": "teacher", "stage": "finetune"},
    {"id": "student", "stage": "distill", "teacher": "teacher", "layers": [0]},
    {"id": "graph", "stage": "export"},
    {"id": "int8", "stage": "quantize", "scheme": "w8a8-dynamic"},
    {"id": "half", "stage": "quantize", "scheme": "fp16", "from": "graph"},
]


def test_a_line_and_a_fork_run_in_order_with_their_sources() -> None:
    plan = make_plan(a_pipeline(FORK))
    sources = {step.id: step.source for step in plan.steps}
    assert sources == {
        "teacher": "model",
        "student": "teacher",
        "graph": "student",
        "int8": "graph",
        "half": "graph",
        "teacher@onnx": "teacher",
    }
    assert plan.baseline == "teacher"


def test_the_baseline_is_judged_in_both_runtimes_and_every_stage_in_onnx_runtime() -> None:
    plan = make_plan(a_pipeline(FORK))
    # The student is judged as `graph`: its own export, written by the user.
    assert [candidate.id for candidate in plan.candidates] == ["teacher", "teacher@onnx", "graph", "int8", "half"]
    assert [candidate.id for candidate in plan.candidates if candidate.scratch] == ["teacher@onnx"]


def test_without_intermediates_only_the_baseline_gets_a_scratch_export() -> None:
    stages = [*FORK[:2], {"id": "cut", "stage": "prune", "keep": {"ffn": 0.5}}, *FORK[2:]]
    everyone = [candidate.id for candidate in make_plan(a_pipeline(stages)).candidates]
    fewer = [candidate.id for candidate in make_plan(a_pipeline(stages, intermediates=False)).candidates]
    assert sorted(set(everyone) - set(fewer)) == ["student@onnx"]


def test_a_pipeline_that_ends_in_torch_judges_its_last_stage_in_torch_too() -> None:
    plan = make_plan(a_pipeline(FORK[:2]))
    assert [candidate.id for candidate in plan.candidates] == ["teacher", "teacher@onnx", "student", "student@onnx"]


def test_a_model_that_needs_no_training_is_the_baseline_itself() -> None:
    plan = make_plan(
        a_pipeline([{"id": "cut", "stage": "prune", "keep": {"ffn": 0.5}}, {"id": "graph", "stage": "export"}])
    )
    assert plan.baseline == "model"
    assert [candidate.id for candidate in plan.candidates] == ["model", "model@onnx", "graph"]


@pytest.mark.parametrize(("until", "expected"), [("student", ["teacher", "student"]), ("teacher", ["teacher"])])
def test_until_stops_after_a_stage_and_exports_nothing_for_measuring(until: str, expected: list[str]) -> None:
    assert [step.id for step in needed_for(make_plan(a_pipeline(FORK)), until)] == expected
