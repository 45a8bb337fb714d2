"""A run on disk.

    RUN/run.json                         the order of the steps, and where each of them stands
    RUN/stages/<id>-<fingerprint8>/      a finished checkpoint
    RUN/stages/<id>-<fingerprint8>.partial/   work in progress: a lock, the stage's working files, the half-made folder
    RUN/scratch/                         the same, for exports made only to be measured
    RUN/cache/                           teacher outputs, judged quality
    RUN/report.json

A stage writes into the partial folder and is renamed when it is sealed, so a finished folder is never half-made. A
changed setting gives another fingerprint and so another folder; nothing is ever deleted but by `compressor clean`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from compressor.checkpoints.files import write_whole
from compressor.checkpoints.store import Checkpoint, open_checkpoint
from compressor.errors import CheckpointError, UserError

RUN_SCHEMA = "compressor-run/1"
RESERVE, RESERVE_BYTES = ".reserve", 64 << 10
"""Room that a run holds while it works, so that its last word finds some on a disk that filled."""


@contextmanager
def reserved(run_dir: Path) -> Iterator[None]:
    """Hold some of the disk inside, and give it back at the end, before `run.json` is written for the last time.

    Raises:
        StageError: there is not even that much room.
    """
    path = run_dir / RESERVE
    write_whole(path, "." * RESERVE_BYTES)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def stage_folder(run_dir: Path, step_id: str, fingerprint: str, *, scratch: bool) -> Path:
    """Where the finished checkpoint of a step lies."""
    return run_dir / ("scratch" if scratch else "stages") / f"{step_id}-{fingerprint[:8]}"


def finished(folder: Path, fingerprint: str) -> Checkpoint | None:
    """The verified checkpoint in `folder` when it has this fingerprint; None when there is none.

    Raises:
        CheckpointError: the folder is there and finished, but a file is missing or was changed.
    """
    if not folder.exists():
        return None
    checkpoint = open_checkpoint(folder, verify=True)
    if checkpoint.record.fingerprint != fingerprint:
        raise CheckpointError(
            "this folder was made by other settings than its name says",
            where=str(folder),
            hint=f"remove it and run again: rm -r {folder}",
        )
    return checkpoint


@contextmanager
def partial_folder(folder: Path) -> Iterator[tuple[Path, Path]]:
    """The working folder of a step in progress: yields (out_dir, workdir) and holds the lock.

    `workdir` outlives a crash, so training resumes from it; `out_dir` starts empty each time, and is removed when
    anything fails: a disk that filled has room again.

    Raises:
        UserError: another process is working on the same stage.
    """
    partial = folder.with_name(folder.name + ".partial")
    workdir, out_dir = partial / "work", partial / "out"
    workdir.mkdir(parents=True, exist_ok=True)
    with (partial / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "another process is working on this stage", where=str(partial), hint="wait for it, or use another --out"
            ) from None
        shutil.rmtree(out_dir, ignore_errors=True)
        out_dir.mkdir()
        try:
            yield out_dir, workdir
        finally:
            shutil.rmtree(out_dir, ignore_errors=True)  # where it was published, it is there no longer


def publish(folder: Path) -> Checkpoint:
    """Rename the sealed folder of a step to its final place and drop what was left of the work."""
    partial = folder.with_name(folder.name + ".partial")
    os.rename(partial / "out", folder)
    shutil.rmtree(partial)
    return open_checkpoint(folder, verify=False)


def set_aside(folder: Path) -> None:
    """Rename what a forced stage made before, since nothing finished is deleted."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    folder.rename(aside)


StepStatus = Literal["waiting", "running", "finished", "skipped", "failed", "interrupted"]


@dataclass
class StepState:
    """Where one step stands."""

    id: str
    kind: str
    scratch: bool
    status: StepStatus = "waiting"
    folder: str | None = None
    fingerprint: str | None = None
    digest: str | None = None
    error: str | None = None


@dataclass
class RunState:
    """`run.json`: the order of the steps, and where each of them stands."""

    name: str
    steps: list[StepState]
    pipeline: dict[str, Any]
    created: str
    status: Literal["running", "finished", "failed", "interrupted"] = "running"
    report: str | None = None
    schema: str = field(default=RUN_SCHEMA)

    def step(self, step_id: str) -> StepState:
        """The state of one step."""
        return next(step for step in self.steps if step.id == step_id)

    def stopped(self) -> None:
        """Call what still runs interrupted: nobody works on it any more."""
        if self.status == "running":
            self.status = "interrupted"
        for step in self.steps:
            if step.status == "running":
                step.status = "interrupted"

    def write(self, run_dir: Path) -> None:
        """Write run.json, whole or not at all.

        Raises:
            StageError: the disk is full.
        """
        write_whole(run_dir / "run.json", json.dumps(asdict(self), indent=1, default=str) + "\n")


def read_run(run_dir: Path) -> RunState:
    """The state of a run.

    Raises:
        UserError: the folder holds no run, or one of another version.
    """
    path = run_dir / "run.json"
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError("no run here", where=str(path), hint="compressor run PIPELINE --out RUN") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"not JSON: {error.msg}", where=f"{path}:{error.lineno}", hint="run the pipeline again"
        ) from None
    if values.get("schema") != RUN_SCHEMA:
        raise UserError(
            f"this run was written as {values.get('schema')!r}; this version reads {RUN_SCHEMA!r}", where=str(path)
        )
    values["steps"] = [StepState(**step) for step in values["steps"]]
    return RunState(**values)
