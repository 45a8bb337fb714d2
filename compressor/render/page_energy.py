"""Energy on the report page: what a token takes with its band, and the windows behind each figure."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from compressor.render import words
from compressor.render.page_figures import BLUE, GREY, ORANGE, Drawn, cost_scale, styled
from compressor.render.tables import TextTable, name_of
from compressor.schema.report import Candidate, Measurement, Phase, Report

Found = list[tuple[Candidate, Measurement, Any]]
"""Candidates with their measurement and (joules per token, low, high)."""


def energy_bands(report: Report, workload: str, phase: Phase) -> Drawn | None:
    """Joules per token of each candidate with the band of its estimate or the uncertainty of its meter."""
    found = [
        (one, row, band)
        for one in report.candidates
        for row in one.measurements
        if (row.workload, row.phase) == (workload, phase) and (band := _band(row)) is not None
    ]
    if not found:
        return None
    kinds = {row.energy.result["kind"] for _, row, _ in found if row.energy.result is not None}
    mark = "estimated" if kinds == {"estimated"} else "measured" if kinds == {"measured"} else "measured or estimated"
    figure = go.Figure()
    for kind, colour, symbol in (("measured", BLUE, "circle"), ("estimated", ORANGE, "circle-open")):
        group = [one for one in found if (one[1].energy.result or {}).get("kind") == kind]
        if group:
            figure.add_trace(_points(report, group, kind, colour, symbol))
    figure.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0})
    figure.update_xaxes(
        title_text=f"µJ per token ({mark})", **cost_scale([1e6 * end for _, _, band in found for end in band])
    )
    names = [name_of(report, one.id) for one, _, _ in found]
    figure.update_yaxes(categoryorder="array", categoryarray=names[::-1])
    rows = tuple((name_of(report, one.id), words.energy_per_token(row), *_window(row)) for one, row, _ in found)
    columns = ("candidate", "J / token", "kind", "how", "covers", "window", "rounds", "CPU time")
    table = TextTable(f"energy windows, {workload}, {phase}", columns, rows, tuple(_notes(found)))
    low, high = min(found, key=lambda one: one[2][0]), max(found, key=lambda one: one[2][0])
    text = (
        f"A token takes from {words.energy_per_token(low[1])} with {low[0].id} to {words.energy_per_token(high[1])} "
        f"with {high[0].id}. The lines are the band of each figure; where a figure is estimated, it follows CPU time."
    )
    return Drawn(f"Energy per token: {workload}, {phase}", text, styled(figure, 140 + 34 * len(found)), table)


def _points(report: Report, group: Found, kind: str, colour: str, symbol: str) -> Any:
    values = [1e6 * band[0] for _, _, band in group]
    return go.Scatter(
        x=values,
        y=[name_of(report, one.id) for one, _, _ in group],
        name=kind,
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 11, "line": {"width": 2, "color": colour}},
        error_x={
            "type": "data",
            "array": [1e6 * band[2] - value for value, (_, _, band) in zip(values, group, strict=True)],
            "arrayminus": [value - 1e6 * band[1] for value, (_, _, band) in zip(values, group, strict=True)],
            "color": GREY,
            "thickness": 1.5,
        },
    )


def _band(row: Measurement) -> tuple[float, float, float] | None:
    """(joules per token, low, high); None where there is no figure."""
    key = "j_per_generated_token" if row.phase == "decode" else "j_per_input_token"
    figures = row.energy.figures
    if f"est_{key}" in figures:
        return figures[f"est_{key}"], figures[f"est_{key}_low"], figures[f"est_{key}_high"]
    if key not in figures or row.energy.result is None:
        return None
    value, result = figures[key], row.energy.result
    gross = result.get("energy_gross_j") or 0
    share = (result.get("energy_uncertainty_j") or 0) / gross if gross else 0
    return value, value * (1 - share), value * (1 + share)


def _window(row: Measurement) -> tuple[str, ...]:
    """Kind, how it was had, what it covers, the length of the window, rounds and CPU seconds."""
    result = row.energy.result or {}
    cpu_s = (result.get("inputs") or {}).get("cpu_s")
    return (
        f"{result.get('kind')} ({result.get('provenance')})",
        str(result.get("method") or result.get("meter") or words.NONE),
        ", ".join(words.SCOPES.get(scope, scope) for scope in result.get("scopes", ())) or words.NONE,
        words.with_unit(result["wall_s"], "s") if "wall_s" in result else words.NONE,
        str(row.rounds),
        words.NONE if cpu_s is None else words.with_unit(cpu_s, "s"),
    )


def _notes(found: Found) -> list[str]:
    notes = dict.fromkeys(str(note) for _, row, _ in found for note in (row.energy.result or {}).get("notes", ()))
    counted = [one.id for one, row, _ in found if (row.energy.result or {}).get("windows")]
    if counted:
        notes[f"raw counter logs of {', '.join(counted)}: `compressor energy verify` recomputes the joules"] = None
    return list(notes)
