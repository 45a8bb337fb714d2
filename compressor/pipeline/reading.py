"""The report of a run's folder, or why there is none that may be used."""

from __future__ import annotations

from pathlib import Path

from compressor.errors import UserError
from compressor.pipeline.layout import read_run
from compressor.schema.report import Report, read_report


def report_of_run(path: Path) -> Report:
    """The report of a run that finished.

    Args:
        path: the run's folder, or a report file by itself.

    Raises:
        UserError: no run, one that failed or was stopped, or a report that cannot be read.
    """
    if not path.is_dir():
        return read_report(path)
    if not (path / "run.json").is_file():
        return read_report(path / "report.json")
    state = read_run(path)
    if state.status != "finished":
        word = {"failed": "failed", "interrupted": "was stopped", "running": "has not finished"}[state.status]
        broken = next((step for step in state.steps if step.status in ("failed", "interrupted", "running")), None)
        why = "" if broken is None else f" at {broken.id}"
        if broken is not None and broken.error:
            why += f" ({broken.error.splitlines()[0]})"
        older = ", and its report is of an earlier one" if (path / "report.json").is_file() else ", so it has no report"
        raise UserError(
            f"the run {word}{why}{older}", where=str(path), hint="run the same pipeline again: finished stages are kept"
        )
    if state.report is None:
        raise UserError(
            "the run was told to stop before anything was judged, so it has no report",
            where=str(path),
            hint="run the same pipeline again without --until",
        )
    return read_report(path / state.report)
