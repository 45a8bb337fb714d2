"""Docs are held to the program: every command in them exists, and what is generated is current."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from compressor.cli.app import build
from compressor.integrations.reference import pipeline_reference

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
CI = sorted((ROOT / "eval" / "ci").glob("*.yml"))
FENCE = re.compile(r"^[ ]*```[a-z]*\n(.*?)^[ ]*```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(compressor [^`\n]+)`")
LINK = re.compile(r"\]\(([^)#]*)(?:#([^)]*))?\)")
COMMAND: Any = typer.main.get_command(build())


def commands_of(text: str) -> list[str]:
    """Every command line that begins with `compressor`, in fences, in backticks and in CI steps."""
    fenced = [line.strip() for block in FENCE.findall(text) for line in block.splitlines()]
    steps = [line.strip().removeprefix("- run: ").removeprefix("- ") for line in text.splitlines()]
    found = [line for line in (*fenced, *steps) if line.startswith("compressor ") and "`" not in line]
    return sorted({*found, *INLINE.findall(text)})


def check(line: str) -> None:
    """Raise where the command, or one of its options, does not exist."""
    words = shlex.split(line.split(" > ")[0].split(" && ")[0], comments=True)[1:]
    command: Any = COMMAND
    path = ["compressor"]
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name = words.pop(0)
        assert name in command.commands, f"{line}: there is no command {' '.join([*path, name])}"
        command, path = command.commands[name], [*path, name]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("-") and not word.lstrip("-")[:1].isdigit():
            assert word.partition("=")[0] in {*options, "--help", "-h"}, f"{line}: there is no option {word}"


@pytest.mark.parametrize("file", [*DOCS, *CI], ids=lambda path: path.name)
def test_every_command_in_the_docs_exists(file: Path) -> None:
    for line in commands_of(file.read_text()):
        check(line)


def test_the_check_itself_can_fail() -> None:
    assert commands_of("x\n```\ncompressor run a.yaml\n```\n`compressor nope`") == [
        "compressor nope",
        "compressor run a.yaml",
    ]
    assert commands_of("  - run: compressor gate runs/ci --strict") == ["compressor gate runs/ci --strict"]
    with pytest.raises(AssertionError, match="there is no command compressor nope"):
        check("compressor nope")
    with pytest.raises(AssertionError, match="there is no option --fast"):
        check("compressor run a.yaml --fast")
    with pytest.raises(AssertionError, match="there is no command compressor energy burn"):
        check("compressor energy burn")


def test_every_example_in_a_help_text_exists() -> None:
    for name, command in COMMAND.commands.items():
        if hasattr(command, "commands"):
            continue
        example = re.search(r"Example: (compressor .*)", command.help or "")
        assert example, f"compressor {name} --help has no example"
        check(example.group(1))


def test_the_reference_is_current() -> None:
    written = (ROOT / "docs" / "pipeline-reference.md").read_text()
    assert written == pipeline_reference(), "compressor schema --markdown > docs/pipeline-reference.md"


@pytest.mark.parametrize("file", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(file: Path) -> None:
    for path, anchor in LINK.findall(file.read_text()):
        if path.startswith("http"):
            continue
        target = (file.parent / path) if path else file
        assert target.exists(), f"{file.name} links to {path}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, f"{file.name}: #{anchor}"


@pytest.mark.parametrize("file", DOCS, ids=lambda path: path.name)
def test_files_that_are_named_exist(file: Path) -> None:
    """Paths of the repository in backticks, such as `compressor/stages/parity.py`."""
    named = re.findall(r"`((?:compressor|tests|docs|eval|pipelines)/[\w./-]+\.(?:py|md|yaml|json))`", file.read_text())
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("file", CI, ids=lambda path: path.name)
def test_ci_examples_are_yaml(file: Path) -> None:
    assert "compress" in str(yaml.safe_load(file.read_text()))
