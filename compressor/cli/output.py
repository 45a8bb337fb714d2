"""Where things are written: results and JSON on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from compressor.errors import UserError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def print_rich(*renderables: Any, markup: bool = False) -> None:
    """Tables and text for people on stdout.

    Without a terminal there are at least 160 columns, so that no figure is cut. A text is shown as it is: `[MASK]` and
    `:on:` in a user's data are no markup, unless the caller has escaped what is not.
    """
    console = Console(markup=markup, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 160)
    for renderable in renderables:
        console.print(renderable)


def say(text: str) -> None:
    """A line for people on stderr."""
    print(text, file=sys.stderr)


def write_file(path: Path, text: str) -> None:
    """A result in a file the user named, and a line that says so.

    Raises:
        UserError: it cannot be written there.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write here: {error.strerror}", where=str(path), hint="name a file in a folder that is there"
        ) from error
    say(f"written: {path}")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> Table:
    """A plain table; columns whose name starts with `>` are aligned to the right."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        made.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    for row in rows:
        made.add_row(*row)
    return made


def megabytes(size_bytes: int | None) -> str:
    """`12.3 MB`; a dash where there is nothing."""
    return "-" if size_bytes is None else f"{size_bytes / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """`41 s`, `3 min 05 s`, `1 h 12 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
