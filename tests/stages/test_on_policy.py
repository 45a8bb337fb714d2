"""On-policy distillation through TRL: it trains, it is the same again, and it is refused where it makes no sense."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from stage_shelf import TRAINING, Shelf, make_context, stage_config

from compressor.checkpoints.store import Checkpoint
from compressor.errors import MissingPackageError, UnsupportedError
from compressor.schema.events import Event, Progress
from compressor.stages.context import StageInputs
from compressor.stages.dispatch import run_here

WRITES = {"share": 1.0, "new_tokens": 4, "temperature": 1.0}


def distil(shelf: Shelf, folder: Path, *, emit: Any = None) -> Checkpoint:
    teacher = shelf.get("finetune")
    training = {**TRAINING, "max_steps": 3}
    config = stage_config(
        "s", {"stage": "distill", "teacher": "finetune", "layers": [0, 3], "on_policy": WRITES, "training": training}
    )
    ctx = make_context(shelf.task, shelf.data, folder / "work", emit=emit or (lambda event: None))
    return run_here(config, StageInputs(teacher, teacher), folder / "out", ctx)


def test_a_student_learns_from_what_it_writes(gpt2: Shelf, tmp_path: Path, events: list[Event]) -> None:
    made = distil(gpt2, tmp_path / "a", emit=events.append)
    steps = [event.done for event in events if isinstance(event, Progress) and event.task == "train"]
    assert steps == [1, 2, 3] and made.record.realised["steps"] == 3
    validation = made.record.realised["validation"]
    assert validation["before"] != validation["after"]
    assert [point["loss"] for point in made.record.realised["history"] if "loss" in point]
    assert distil(gpt2, tmp_path / "b").digest == made.digest


def test_what_writes_nothing_and_what_is_not_installed(
    bert: Shelf, gpt2: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnsupportedError, match="a sequence-classification model writes nothing that a teacher could"):
        distil(bert, tmp_path / "a")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "trl" else found(name, *more))
    with pytest.raises(MissingPackageError, match=r"(?s)on-policy distillation needs the package 'trl'.*\[trl\]'"):
        distil(gpt2, tmp_path / "b")


def test_it_brings_its_own_loss() -> None:
    with pytest.raises(ValueError, match="`on_policy` brings its own loss: leave `preset` and `losses` out"):
        stage_config("s", {"stage": "distill", "teacher": "t", "on_policy": {}, "preset": "reverse_kl"})
