"""`compressor run` as a process: what it prints, that it resumes, and what Ctrl-C and SIGTERM leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import SmallDisk

REPOSITORY = Path(__file__).resolve().parents[2]
SMOKE = "pipelines/smoke.yaml"


def compressor(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in the repository, where the smoke pipeline's paths start."""
    return subprocess.run(
        [sys.executable, "-m", "compressor.cli", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def epochs(n: int) -> tuple[str, str]:
    return "--set", f"stages.teacher.training.epochs={n}"


def test_a_run_is_silent_when_told_and_resumes_when_repeated(tmp_path: Path) -> None:
    run = ("run", SMOKE, "--out", str(tmp_path / "run"), "--until", "teacher", *epochs(1))
    first = compressor(*run, "--json", "--quiet")
    assert (first.returncode, first.stderr) == (0, "")
    made = json.loads(first.stdout)
    assert list(made["checkpoints"]) == ["model", "teacher"] and Path(made["checkpoints"]["teacher"]).is_dir()
    again = compressor(*run)
    assert again.returncode == 0
    assert again.stderr.splitlines() == [
        f"smoke: 2 steps into {tmp_path / 'run'}: model, teacher",
        *(f"{step}: done before, kept ({folder})" for step, folder in made["checkpoints"].items()),
    ]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_a_run_that_goes_on(tmp_path: Path, stop: signal.Signals) -> None:
    command = ["run", SMOKE, "--out", str(tmp_path), "--until", "teacher", *epochs(500)]
    running = subprocess.Popen(
        [sys.executable, "-m", "compressor.cli", *command],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        # a suite that a shell runs in the background has SIGINT ignored, and what it starts inherits that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert running.stderr is not None
    lines = []
    for line in running.stderr:
        lines.append(line)
        if line.startswith("teacher: finetune"):
            os.kill(running.pid, stop)
            break
    rest = running.stderr.read()
    assert running.wait(timeout=120) == 130, "".join(lines) + rest
    told = rest.splitlines()[-2:]
    assert told == [f"stopped; finished stages are kept in {tmp_path}", "  -> run the same command again to go on"]
    states = {step["id"]: step["status"] for step in json.loads((tmp_path / "run.json").read_text())["steps"]}
    assert (states["model"], states["teacher"]) == ("finished", "interrupted")


def test_a_dry_run_does_nothing_and_tells_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    fine = compressor("run", SMOKE, "--dry-run", "--out", str(out), "--json")
    assert fine.returncode == 0 and json.loads(fine.stdout)["ok"] is True
    missing = compressor("run", SMOKE, "--dry-run", "--out", str(out), "--set", "data.test.path=nowhere.jsonl")
    assert missing.returncode == 2 and "no such file: nowhere.jsonl" in missing.stdout
    assert missing.stderr == "pipelines/smoke.yaml: the run would fail on: data.test\n"
    assert not out.exists()


def test_a_missing_model_says_how_to_get_it(tmp_path: Path) -> None:
    job = ["pipelines/minilm-sentiment.yaml", "--set", "model.path=nowhere", "--out", str(tmp_path / "run")]
    for split in ("train", "validation", "test"):
        job += ["--set", f"data.{split}.path=eval/data/era_tiny/{split}.jsonl"]
    job += ["--set", "model.labels=[a, b, c]"]
    done = compressor("run", *job)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "nowhere" in done.stderr and done.stderr.endswith("  -> python eval/fetch.py minilm\n")


@pytest.mark.slow
def test_a_run_whose_disk_fills_says_so_once_and_goes_on_where_there_is_room(
    tmp_path: Path, small_disk: SmallDisk
) -> None:
    out = small_disk.path / "run"
    run = ("run", SMOKE, "--out", str(out), *epochs(1), "--set", "stages.student.training.epochs=1", "--until")
    assert compressor(*run, "teacher").returncode == 0
    small_disk.leave(200_000)
    full = compressor(*run, "student", "--quiet")
    assert full.returncode == 1 and "Traceback" not in full.stderr
    told = full.stderr.splitlines()
    assert len(told) == 2 and "could not be written: No space left on device" in told[0]
    assert told[1] == "  -> free some disk space or choose another folder; nothing half-written was left"
    states = {step["id"]: step["status"] for step in json.loads((out / "run.json").read_text())["steps"]}
    assert states == {"model": "skipped", "teacher": "skipped", "student": "failed"}
    small_disk.leave(6_000_000)
    again = compressor(*run, "student")
    assert again.returncode == 0 and "teacher: done before, kept" in again.stderr
