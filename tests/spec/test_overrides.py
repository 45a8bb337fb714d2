"""`--set path=value`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.spec.load import load_pipeline
from compressor.spec.overrides import apply_overrides


@pytest.fixture
def job(tmp_path: Path, valid: str) -> Path:
    (tmp_path / "job.yaml").write_text(valid)
    return tmp_path / "job.yaml"


@pytest.mark.parametrize("path", ["stages.student.training.epochs", "stages.1.training.epochs"])
def test_a_stage_is_named_by_id_or_position(job: Path, path: str) -> None:
    stages = load_pipeline(job, overrides=[f"{path}=0.5"]).stages
    assert stages[1].training.epochs == 0.5  # type: ignore[union-attr]


def test_values_are_yaml_and_later_ones_win(job: Path) -> None:
    pipeline = load_pipeline(
        job,
        overrides=[
            "seed=1", "seed=2", "model.path=other/bert", "model.labels=[no, yes]", "metadata.note=a=b",
            "stages.student.layers=[0]", "goals=[]", "workloads.rows.batch=2",
            "stages.teacher.training.learning_rate=1e-3", "target.threads=2", "stages.student.layers.0=3",
        ],
    )  # fmt: skip
    assert (pipeline.seed, pipeline.model.path, pipeline.model.labels) == (2, "other/bert", ("no", "yes"))
    assert pipeline.metadata == {"note": "a=b"}
    assert pipeline.stages[1].layers == (3,)  # type: ignore[union-attr]
    assert pipeline.goals == () and pipeline.workloads[0].batch == 2 and pipeline.target.threads == 2


def test_an_id_may_have_dots_in_it() -> None:
    values = {"stages": [{"id": "w8.a8"}, {"id": "w8"}]}
    changed, locations, problems = apply_overrides(values, ["stages.w8.a8.scheme=fp16", "stages.w8.scheme=w4"])
    assert changed == {"stages": [{"id": "w8.a8", "scheme": "fp16"}, {"id": "w8", "scheme": "w4"}]}
    assert locations == [("stages", 0, "scheme"), ("stages", 1, "scheme")] and problems == []
    assert values == {"stages": [{"id": "w8.a8"}, {"id": "w8"}]}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "stages.student.training.epohcs=1",
            "job.yaml: stages.1.training.epohcs: unknown key\n  -> did you mean `epochs`?",
        ),
        (
            "stages.student.trainig.epochs=1",
            "job.yaml: stages.1.trainig: unknown key\n  -> did you mean `training`?",
        ),
        ("sead=1", "job.yaml: sead: unknown key\n  -> did you mean `seed`?"),
        ("seed=-1", "job.yaml: seed: must be at least 0, not -1"),
        (
            "stages.studnet.layers=[0]",
            "job.yaml: stages.studnet.layers: `stages` has no item called `studnet` (from --set)\n"
            "  -> did you mean `student`?",
        ),
        (
            "stages.4.layers=[0]",
            "job.yaml: stages.4.layers: `stages` has no item 4 (from --set)\n  -> it has 4, counted from 0",
        ),
        (
            "goals.first.metric=x",
            "job.yaml: goals.first.metric: `goals` has no item called `first` (from --set)\n"
            "  -> name it by its position, counted from 0",
        ),
        ("name.first=x", "job.yaml: name.first: `name` has no keys: it is the text 'job' (from --set)"),
        ("name=[", "job.yaml: name: the value '[' is not YAML (from --set)"),
        (
            "seed",
            "job.yaml: --set 'seed' is not of the form path=value\n"
            "  -> write --set seed=1 or --set stages.student.training.epochs=1",
        ),
        (
            "stages..x=1",
            "job.yaml: --set 'stages..x=1' is not of the form path=value\n"
            "  -> write --set seed=1 or --set stages.student.training.epochs=1",
        ),
        (
            "stages.student.teacher=tutor",
            "job.yaml: stages.1.teacher: there is no stage `tutor`\n"
            "  -> there are: model, teacher, student, onnx, int8",
        ),
        ("stages.student.teacher=onnx", "job.yaml: stages.1.teacher: `student` and `onnx` wait for each other\n"
         "  -> one of them must start from an earlier stage, or `model`"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_told_like_a_wrong_line_without_a_line(
    refusal: Callable[..., str], valid: str, override: str, message: str
) -> None:
    assert refusal(valid, override) == message


def test_wrong_overrides_and_wrong_lines_come_together(refusal: Callable[..., str], valid: str) -> None:
    message = refusal(valid.replace("name: job", "name: 7"), "sead=1", "stages.9.a=1")
    assert [line.split(": ")[1] for line in message.splitlines() if line.startswith("job")] == [
        "stages.9.a", "sead", "name",
    ]  # fmt: skip
