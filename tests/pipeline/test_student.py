"""A student from elsewhere in a whole run: made beside the stages, and made anew when its files change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from compressor.errors import CheckpointError
from compressor.pipeline.layout import read_run
from compressor.pipeline.run import RunResult, run
from compressor.schema.events import Event, StageFinished, StageSkipped

SHAPE = {
    "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32,
    "max_position_embeddings": 64,
}  # fmt: skip
TRAINING = {"max_steps": 2, "batch_size": 8, "rows": 32}


def pipeline(folder: Path, tiny_bert_dir: Path, student: Any) -> Path:
    data = {
        split: {"path": f"eval/data/era_tiny/{split}.jsonl", "rows": 48} for split in ("train", "validation", "test")
    }
    values = {
        "version": 1,
        "name": "student",
        "model": {"task": "sequence-classification", "path": str(tiny_bert_dir),
                  "labels": ["before 1865", "1865 to 1944", "since 1945"]},
        "data": {**data, "max_tokens": 24},
        "stages": [
            {"id": "teacher", "stage": "finetune", "training": TRAINING},
            {"id": "onnx", "stage": "export"},
            {"id": "student", "stage": "distill", "teacher": "teacher", "preset": "minilmv2", "student": student,
             "training": TRAINING},
        ],
        "workloads": [{"id": "rows", "from_data": True, "batch": 8}],
    }  # fmt: skip
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def made(events: list[Event]) -> list[str]:
    return [event.stage for event in events if isinstance(event, StageFinished)]


def go(path: Path, out: Path, events: list[Event] | None = None) -> RunResult:
    return run(path, out=out, until="student", on_event=(events if events is not None else []).append)


def test_a_student_from_a_config_starts_from_no_stage(tiny_bert_dir: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    result = go(pipeline(tmp_path, tiny_bert_dir, {"config": SHAPE}), tmp_path / "run", events)
    assert made(events) == ["model", "teacher", "onnx", "student@student", "student"]
    student, start = result.checkpoints["student"], result.checkpoints["student@student"]
    assert student.record.inputs["source"] == start.digest
    assert student.content.labels == result.checkpoints["teacher"].content.labels
    assert json.loads((student.path / "config.json").read_text())["num_hidden_layers"] == 2
    assert {step.status for step in read_run(tmp_path / "run").steps if not step.scratch} == {"finished"}


def test_another_file_behind_the_same_path_makes_another_student(tiny_bert_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    shutil.copytree(tiny_bert_dir, folder)
    path = pipeline(tmp_path, tiny_bert_dir, {"path": str(folder)})
    first = go(path, tmp_path / "run")
    events: list[Event] = []
    go(path, tmp_path / "run", events)
    assert made(events) == [] and sum(isinstance(event, StageSkipped) for event in events) == 5
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor * 0.5 for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    second = go(path, tmp_path / "run", events)
    assert made(events) == ["student@student", "student"]
    assert second.checkpoints["student"].digest != first.checkpoints["student"].digest


def test_a_student_that_is_not_there(tiny_bert_dir: Path, tmp_path: Path) -> None:
    path = pipeline(tmp_path, tiny_bert_dir, {"path": "nowhere/small"})
    with pytest.raises(CheckpointError, match="nowhere/small"):
        go(path, tmp_path / "run")
