"""A report for the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from compressor.render.tables import (
    TextTable,
    cost_tables,
    doors_table,
    payback_table,
    quality_table,
    sentences,
    stage_table,
)
from compressor.schema.report import Report


def terminal_table(report: Report) -> Group:
    """Everything a report says, as something that `rich.console.Console.print` takes."""
    parts: list[RenderableType] = []
    others = (quality_table(report), stage_table(report), payback_table(report), doors_table(report))
    for table in (*cost_tables(report), *others):
        if table is not None:
            parts += [_rich(table), *(Text(f"  {note}", style="dim") for note in table.notes), Text()]
    for heading, lines in sentences(report):
        parts += [Text(heading, style="bold"), *(Text(f"  {line}") for line in lines)]
    return Group(*parts)


def _rich(table: TextTable) -> Table:
    made = Table(title=escape(table.title), title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(table.columns):
        made.add_column(escape(column), justify="left" if number == 0 else "right", overflow="fold")
    for row in table.rows:
        made.add_row(*(escape(cell) for cell in row))
    return made
