"""Pieces of HTML: tables, figures, lists. Everything that comes from a report is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from compressor.render.page_figures import Drawn
from compressor.render.tables import TextTable

SHOWN = 4
"""Notes that stand open below a table; a session's remarks can be many."""


def table_html(table: TextTable, *, selected: str | None = None, of_words: bool = False) -> str:
    """A table with its caption, headings and notes; it scrolls by itself where the screen is narrow.

    Args:
        table: its text.
        selected: first cell of the row to point out.
        of_words: cells are text rather than numbers.
    """
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = "".join(
        ('<tr class="selected">' if row[0] == selected else "<tr>")
        + f'<th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>\n"
        for row in table.rows
    )
    first, more = table.notes[:SHOWN], table.notes[SHOWN:]
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">\n'
        + ('<table class="words">' if of_words else "<table>")
        + f"<caption>{escape(table.title)}</caption>"
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
        + _notes(first)
        + (f"<details><summary>More remarks ({len(more)})</summary>{_notes(more)}</details>" if more else "")
    )


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'\n<ul class="notes">{items}</ul>' if items else ""


def figure_html(drawn: Drawn, name: str) -> str:
    """A figure with its sentence above and its numbers below."""
    plot = drawn.figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        default_width="100%",
        config={"responsive": True, "displayModeBar": False},
    )
    return (
        f'<figure><figcaption id="{name}-text"><h3>{escape(drawn.title)}</h3><p>{escape(drawn.text)}</p></figcaption>\n'
        f'<div class="plot" role="img" aria-label="{escape(drawn.text)}">{plot}</div>\n'
        f"<details><summary>Its numbers as a table</summary>{table_html(drawn.table)}</details></figure>"
    )


def list_html(lines: Iterable[str]) -> str:
    """Sentences as a list."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def tiles_html(tiles: Sequence[tuple[str, str, str]]) -> str:
    """(what, figure, remark) as tiles."""
    return (
        '<dl class="tiles">'
        + "".join(
            f"<div><dt>{escape(what)}</dt><dd>{escape(figure)} <small>{escape(remark)}</small></dd></div>"
            for what, figure, remark in tiles
        )
        + "</dl>"
    )


def section(title: str, *parts: str | None) -> str:
    """A section with its heading; nothing where it has no parts."""
    body = "\n".join(part for part in parts if part)
    return f"<section><h2>{escape(title)}</h2>\n{body}\n</section>\n" if body else ""
