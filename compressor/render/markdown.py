"""A report as Markdown, from the same tables as the terminal's."""

from __future__ import annotations

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


def markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown; equal reports give equal text."""
    parts = [f"# {report.name}", f"Source model: {_escape(report.model)}. Baseline: {report.baseline}."]
    for heading, lines in sentences(report):
        parts += [f"## {heading.capitalize()}", "\n".join(f"- {_escape(line)}" for line in lines)]
    others = (quality_table(report), stage_table(report), payback_table(report), doors_table(report))
    for table in (*cost_tables(report), *others):
        if table is not None:
            parts += [f"## {table.title.capitalize()}", markdown_table(table)]
            parts += [_escape(note) for note in table.notes]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: TextTable) -> str:
    """One table without its title and notes."""
    rule = ["---", *("---:" for _ in table.columns[1:])]
    lines = [list(table.columns), rule, *map(list, table.rows)]
    return "\n".join("| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines)


def _escape(text: str) -> str:
    """Keep a cell in its cell, and a lone tilde or bracket from becoming markup."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;").replace("~", "\\~")
