"""What holds for every command: JSON on request, an example in its help, and a completion for the shell."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import compressor
from compressor.cli.app import COMMANDS, ENERGY_COMMANDS, build
from compressor.errors import MissingPackageError, UserError

REPORT = Path(__file__).parent.parent / "render" / "smoke_report.json"
EVERY = {**COMMANDS, **{f"energy {name}": one for name, one in ENERGY_COMMANDS.items()}}


@pytest.mark.parametrize("name", EVERY)
def test_every_command_speaks_json_and_shows_an_example(name: str) -> None:
    command = EVERY[name]
    assert "as_json" in inspect.signature(command).parameters
    example = (inspect.getdoc(command) or "").rpartition("Example: ")[2]
    assert example.startswith(f"compressor {name}"), "the last line of the help is an example of this very command"


def test_every_extra_has_an_error_that_names_it() -> None:
    """The code says `MissingPackageError(..., extra=...)`; so does the script that fetches, for the one it needs."""
    root = Path(compressor.__file__).parents[1]
    declared = set(tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    sources = [path.read_text(encoding="utf-8") for path in (root / "compressor").rglob("*.py")]
    named = {name for source in sources for name in re.findall(r'\bextra(?:: str)? ?= ?"([a-z-]+)"', source)}
    assert "-e '.[torch,gguf]'" in (root / "eval" / "fetch.py").read_text(encoding="utf-8")
    named -= {"forbid"}  # what pydantic calls an extra key
    assert named == declared - {"dev", "gguf"}
    for name in named:
        assert f"pip install 'joule-compressor[{name}]'" in str(MissingPackageError("x", extra=name, needed_for="y"))


@pytest.fixture
def call() -> Callable[..., str]:
    def called(*arguments: object) -> str:
        return CliRunner().invoke(build(), [str(one) for one in arguments], catch_exceptions=False).stdout

    return called


def test_files_are_named_on_stdout_as_json(call: Callable[..., str], tmp_path: Path) -> None:
    card = json.loads(call("card", REPORT, "--json"))
    assert card["card"].startswith("---\n") and card["written"] is None
    out = tmp_path / "bom.json"
    found = json.loads(call("export-results", REPORT, "--format", "cyclonedx", "--out", out, "--json"))
    assert found["written"] == str(out) and json.loads(found["text"]) == json.loads(out.read_text())
    html = tmp_path / "page.html"
    pytest.importorskip("plotly", reason="the page needs the extra [page]")
    assert json.loads(call("compare", REPORT, REPORT, "--html", html, "--json"))["written"] == str(html)
    with pytest.raises(UserError, match="--markdown and --json are two forms of the same"):
        call("schema", "--markdown", "--json")


def test_the_shell_completes_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from compressor.cli.app import build; build()(prog_name='compressor')"],
        env={**os.environ, "_COMPRESSOR_COMPLETE": "complete_bash", "COMP_WORDS": "compressor cer", "COMP_CWORD": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["certify"]
