"""The training child: same result as here, errors as raised, no orphan, and a killed run goes on to the same end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from stage_shelf import CASES, TRAINING, Shelf, make_context, stage_config

from compressor import energy
from compressor.checkpoints.manifest import MANIFEST_NAME
from compressor.errors import (
    CompressorError,
    DataError,
    MissingPackageError,
    ParityError,
    StageError,
    UnsupportedError,
)
from compressor.schema.events import Event, Note, Progress
from compressor.stages.context import StageInputs
from compressor.stages.dispatch import run_stage
from compressor.stages.job import Job, failure_line, rebuild_error, run_in_child, write_job

SLOW = {**CASES["finetune"], "training": {**TRAINING, "epochs": 4, "evaluate_every_steps": 6}}


def wait_for(line_part: str, child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        if line_part in line:
            return
    raise AssertionError(f"the child ended before it said {line_part!r}")


def test_a_child_does_what_the_stage_does_here(bert: Shelf, tmp_path: Path, events: list[Event]) -> None:
    here = bert.get("finetune")
    watts = energy.Calibration(idle_w=20.0, dynamic_w=40.0, band=0.02, n_vcpu=64, n_readings=3, cpu="x")
    there = bert.make("finetune", tmp_path, runner=run_stage, emit=events.append, calibration=watts)
    assert there.digest == here.digest
    assert there.record.energy is not None
    assert there.record.energy["kind"] == "measured" or there.record.energy["provenance"] == "model_calibrated"
    steps = [event for event in events if isinstance(event, Progress) and event.task == "train"]
    assert steps[-1].done == steps[-1].total == here.record.realised["steps"]
    assert "loss" in steps[-1].values or "accuracy" in steps[-1].values
    assert not training_children()


def test_an_error_of_the_child_is_raised_as_it_was(bert: Shelf, tmp_path: Path) -> None:
    config = stage_config("teacher", {"stage": "finetune", "training": {**TRAINING, "learning_rate": 1e30}})
    ctx = make_context("sequence-classification", bert.data, tmp_path / "work")
    with pytest.raises(StageError, match=r"the loss became (nan|inf) in training step 3 ") as caught:
        run_stage(config, StageInputs(bert.get("model")), tmp_path / "out", ctx)
    assert caught.value.hint is not None and caught.value.hint.startswith("lower learning_rate (now 1e+30)")
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


def test_a_bug_in_the_child_shows_its_traceback(bert: Shelf, tmp_path: Path) -> None:
    ctx = make_context("sequence-classification", bert.data, tmp_path / "work", seed="seven")
    with pytest.raises(RuntimeError, match=r"(?s)the training process of stage teacher met a bug.*Traceback"):
        run_in_child(stage_config("teacher", CASES["finetune"]), StageInputs(bert.get("model")), tmp_path / "out", ctx)


def test_a_child_that_is_killed_is_a_named_error_and_can_be_resumed(
    bert: Shelf, tmp_path: Path, events: list[Event]
) -> None:
    straight = make(bert, SLOW, tmp_path / "straight")
    killed = 0

    def kill_it(event: Event) -> None:
        nonlocal killed
        if isinstance(event, Progress) and event.task == "train" and event.done >= 14 and not killed:
            (child,) = training_children()
            killed = child.pid
            os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(StageError, match="the training process was ended by SIGKILL"):
        make(bert, SLOW, tmp_path / "resumed", emit=kill_it)
    assert killed and not (tmp_path / "resumed" / "out" / MANIFEST_NAME).exists()
    resumed = make(bert, SLOW, tmp_path / "resumed", emit=events.append)
    assert any(isinstance(event, Note) and re.match(r"resumed after step \d+", event.text) for event in events)
    assert resumed.digest == straight.digest
    # No counter saw the attempt that was killed; its CPU time was journalled, so an estimate covers both.
    energy, reason = resumed.record.energy, resumed.record.energy_reason
    assert (energy is None and reason is not None) or (energy is not None and energy["kind"] == "estimated")
    assert resumed.record.wall_s > 0


def training_children() -> list[psutil.Process]:
    """Ours that train; other tests leave helpers of multiprocessing behind."""
    return [child for child in psutil.Process().children() if "compressor.stages.child" in child.cmdline()]


def make(bert: Shelf, settings: dict[str, Any], folder: Path, **changes: Any) -> Any:
    config = stage_config("teacher", settings)
    data = changes.pop("data", bert.data)
    ctx = make_context("sequence-classification", data, folder / "work", **changes)
    return run_stage(config, StageInputs(bert.get("model")), folder / "out", ctx)


def test_the_child_ends_when_its_parent_is_killed(bert: Shelf, tmp_path: Path) -> None:
    ctx = make_context("sequence-classification", bert.data, tmp_path / "work")
    job = write_job(Job(stage_config("teacher", SLOW), StageInputs(bert.get("model")), tmp_path / "out", ctx))
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            "child = subprocess.Popen([sys.executable, '-m', 'compressor.stages.child', sys.argv[1]],\n"
            "                         stdin=subprocess.PIPE, start_new_session=True)\n"
            "print(child.pid, flush=True)\n"
            "time.sleep(600)\n",
            str(job),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    wait_for('"task": "train"', parent)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.05)


def test_interrupting_the_parent_ends_the_child(bert: Shelf, tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, Progress) and event.task == "train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(bert, SLOW, tmp_path, emit=interrupt)
    assert not training_children()
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


@pytest.mark.parametrize(
    "error",
    [
        DataError("no rows", where="train.csv", hint="check the file"),
        UnsupportedError("models of type 'x' cannot be pruned", hint="supported types: bert"),
        ParityError("uncached: logits differ"),
        MissingPackageError("gguf", extra="gguf", needed_for="this folder"),
    ],
)
def test_an_error_comes_back_with_its_type_and_text(error: CompressorError) -> None:
    rebuilt = rebuild_error(json.loads(failure_line(error)))
    assert str(rebuilt) == str(error)
    assert isinstance(error, type(rebuilt)) and rebuilt.exit_code == error.exit_code
