"""The table of `arms.py`, from its results alone."""

from __future__ import annotations

from typing import Any


def write(results: dict[str, Any]) -> None:
    pass
