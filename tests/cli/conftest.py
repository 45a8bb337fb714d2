"""The command line as users meet it: a process of its own, its exit code and its two streams."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Finished = subprocess.CompletedProcess[str]


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Finished]:
    """`command("validate", "job.yaml")` in an empty folder."""

    def run(*arguments: str, stdin: str = "") -> Finished:
        return subprocess.run(
            [sys.executable, "-m", "compressor.cli", *arguments],
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run
