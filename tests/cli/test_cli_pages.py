"""`report --html`, `compare` and `card`: files for people who were not at the terminal."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compressor.cli.app import build
from compressor.errors import UserError

REPORT = Path(__file__).parent.parent / "render" / "smoke_report.json"
needs_plotly = pytest.mark.skipif(importlib.util.find_spec("plotly") is None, reason="needs the extra [page]")


@pytest.fixture
def call() -> Callable[..., str]:
    def called(*arguments: object) -> str:
        return CliRunner().invoke(build(), [str(one) for one in arguments], catch_exceptions=False).output

    return called


@needs_plotly
def test_a_report_and_a_comparison_become_pages(call: Callable[..., str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(REPORT, run / "report.json")
    call("report", run, "--html", tmp_path / "one.html", "--markdown", tmp_path / "one.md")
    assert "<h1>smoke: int8 selected</h1>" in (tmp_path / "one.html").read_text(encoding="utf-8")
    assert "# smoke" in (tmp_path / "one.md").read_text(encoding="utf-8")
    call("compare", run, REPORT, "--html", tmp_path / "two.html")
    assert "smoke (1) and smoke (2)" in (tmp_path / "two.html").read_text(encoding="utf-8")


@needs_plotly
def test_one_run_is_not_compared(call: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one run has nothing to be compared with"):
        call("compare", REPORT, "--html", tmp_path / "two.html")


def test_a_card_goes_to_stdout_or_to_a_file(call: Callable[..., str], tmp_path: Path) -> None:
    assert call("card", REPORT, "--candidate", "fp16").startswith("---\nlibrary_name: onnx")
    call("card", REPORT, "--licence", "mit", "--out", tmp_path / "README.md")
    assert "license: mit" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_folder_without_a_report_has_no_card(call: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no report here"):
        call("card", tmp_path)


@pytest.mark.parametrize("arguments", [("report", "--markdown"), ("card", "--out"), ("export-results", "--out")])
def test_a_file_that_cannot_be_written_is_named(
    call: Callable[..., str], tmp_path: Path, arguments: tuple[str, str]
) -> None:
    missing = tmp_path / "none" / "file"
    further = ["--format", "cyclonedx"] if arguments[0] == "export-results" else []
    with pytest.raises(UserError) as raised:
        call(arguments[0], REPORT, arguments[1], missing, *further)
    assert str(raised.value) == (
        f"{missing}: cannot write here: No such file or directory\n  -> name a file in a folder that is there"
    )
