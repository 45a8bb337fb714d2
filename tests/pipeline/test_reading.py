"""Which report of a run may be used: no card, gate or push for one that failed, was stopped, or still runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from compressor.cli.app import build
from compressor.errors import UserError
from compressor.pipeline.reading import report_of_run

REPORT = Path(__file__).parent.parent / "render" / "smoke_report.json"


def run_folder(tmp_path: Path, *, report: bool = True, **state: Any) -> Path:
    """A run's folder in a state."""
    if report:
        shutil.copy(REPORT, tmp_path / "report.json")
    base = {"schema": "compressor-run/1", "name": "r", "steps": [], "pipeline": {}, "created": "", "report": None}
    (tmp_path / "run.json").write_text(json.dumps({**base, "report": "report.json" if report else None, **state}))
    return tmp_path


def step(status: str, error: str | None = None) -> dict[str, Any]:
    return {"id": "int8", "kind": "quantize", "scratch": False, "status": status, "error": error}


def test_a_finished_run_and_a_report_by_itself(tmp_path: Path) -> None:
    assert report_of_run(run_folder(tmp_path, status="finished")).name == "smoke"
    assert report_of_run(REPORT).name == "smoke"


@pytest.mark.parametrize(
    ("state", "report", "text"),
    [
        (
            {"status": "failed", "steps": [step("failed", "stage int8: disk full\n  -> free some")]},
            True,
            "the run failed at int8 (stage int8: disk full), and its report is of an earlier one\n  -> run the same",
        ),
        ({"status": "failed"}, False, "the run failed, so it has no report"),
        ({"status": "interrupted", "steps": [step("interrupted")]}, False, "the run was stopped at int8, so it has no"),
        ({"status": "running", "steps": [step("running")]}, True, "the run has not finished at int8, and its report"),
        ({"status": "finished"}, False, "the run was told to stop before anything was judged, so it has no report"),
    ],
)
def test_a_run_without_a_usable_report(tmp_path: Path, state: dict[str, Any], report: bool, text: str) -> None:
    run = run_folder(tmp_path, report=report, **state)
    with pytest.raises(UserError) as caught:
        report_of_run(run)
    assert text in str(caught.value)


@pytest.mark.parametrize("command", [["card"], ["gate"], ["export-results", "--format", "sci"]])
def test_nothing_leaves_the_house_from_a_failed_run(tmp_path: Path, command: list[str]) -> None:
    run = run_folder(tmp_path, status="failed", steps=[step("failed", "disk full")])
    with pytest.raises(UserError, match=r"the run failed at int8 \(disk full\), and its report is of an earlier one"):
        CliRunner().invoke(build(), [command[0], str(run), *command[1:]], catch_exceptions=False)
