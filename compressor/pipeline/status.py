"""What a run's folder holds, and how to make it smaller."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from compressor.pipeline.layout import StepState, read_run


@dataclass(frozen=True)
class StepLine:
    """One line of `compressor status`: a step and the space its folder takes."""

    state: StepState
    size_bytes: int | None
    """None when it has no folder."""


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands."""

    name: str
    status: str
    report: Path | None
    steps: tuple[StepLine, ...]
    partial: tuple[Path, ...]
    """Folders of unfinished work, from which stages resume."""


def status(run_dir: Path) -> RunStatus:
    """Where a run stands, read from its folder.

    Raises:
        UserError: the folder holds no run.
    """
    state = read_run(run_dir)
    lines = []
    for step in state.steps:
        folder = run_dir / step.folder if step.folder else None
        size = folder_size(folder) if folder is not None and folder.exists() else None
        lines.append(StepLine(state=step, size_bytes=size))
    return RunStatus(
        name=state.name,
        status=state.status,
        report=run_dir / state.report if state.report else None,
        steps=tuple(lines),
        partial=tuple(sorted(run_dir.glob("*/*.partial"))),
    )


def clean(run_dir: Path) -> int:
    """Delete what can be made again: scratch exports, caches, unfinished work and folders that no step names.

    The finished checkpoints of the present pipeline and the report stay. Returns the bytes freed.

    Raises:
        UserError: the folder holds no run.
    """
    state = read_run(run_dir)
    kept = {run_dir / step.folder for step in state.steps if step.folder and not step.scratch}
    doomed = [run_dir / "scratch", run_dir / "cache"]
    doomed += [folder for folder in (run_dir / "stages").glob("*") if folder not in kept]
    freed = 0
    for folder in doomed:
        if folder.exists():
            freed += folder_size(folder)
            shutil.rmtree(folder)
    return freed


def folder_size(folder: Path) -> int:
    """Bytes on disk below a folder, files that several folders link to counted once in each."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
