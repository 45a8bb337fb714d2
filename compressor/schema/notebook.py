"""A report as rows: for pandas, and for notebooks, which ask an object for `_repr_html_`.

An estimate keeps its mark in the column's name (`est_j_per_input_token`), since a column has no footnote.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.schema.report import Measurement, Report

SHOWN = (
    "candidate", "scheme", "size_bytes", "workload", "phase", "latency_s_p50", "cpu_s_per_token",
    "cpu_s_per_token_ratio",
)  # fmt: skip
"""Columns of a notebook's table, beside quality and joules."""
JOULES = ("j_per_input_token", "j_per_generated_token", "est_j_per_input_token", "est_j_per_generated_token")


def report_rows(report: Report) -> list[dict[str, Any]]:
    """One row for each candidate, workload and phase; one for a candidate that was judged on quality alone.

    Keys carry their units, and figures of energy are called as `compressor.energy` names them.
    """
    rows = []
    for one in report.candidates:
        common: dict[str, Any] = {
            "candidate": one.id,
            "is_baseline": one.id == report.baseline,
            "is_selected": one.id == report.selected,
            "runtime": one.runtime,
            "scheme": one.scheme,
            "parameters": one.parameters,
            "size_bytes": one.size_bytes,
            **{quality.metric: quality.value for quality in one.quality},
        }
        rows += [{**common, **_costs(row)} for row in one.measurements] or [common]
    return rows


def _costs(row: Measurement) -> dict[str, Any]:
    ratio, latency = row.cpu_s_per_token_ratio, row.latency_ratio
    return {
        "workload": row.workload,
        "phase": row.phase,
        "profile": row.profile,
        "batch": row.batch,
        "threads": row.threads,
        "valid": row.valid,
        "latency_s_p50": row.latency_s_p50,
        "latency_s_p95": row.latency_s_p95,
        "tokens_per_s": row.tokens_per_s,
        "cpu_s_per_token": row.cpu_s_per_token,
        "cpu_s_per_token_ratio": None if ratio is None else ratio.value,
        "latency_ratio": None if latency is None else latency.value,
        "peak_memory_bytes": row.peak_memory_bytes,
        **row.energy.figures,
    }


def report_html(report: Report) -> str:
    """A short table of the candidates, with the winner in bold."""
    rows = report_rows(report)
    metric = next((quality.metric for one in report.candidates for quality in one.quality), None)
    wanted = [*SHOWN[:3], *([] if metric is None else [metric]), *SHOWN[3:], *JOULES]
    columns = [name for name in wanted if any(name in row for row in rows)]
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(row.get(name), bold=row['is_selected'])}</td>" for name in columns) + "</tr>"
        for row in rows
    )
    caption = f"{report.name}: {report.selected or 'no candidate'} selected, baseline {report.baseline}"
    if any(name.startswith("est_") for name in columns):
        caption += "; columns est_... are estimates, not measurements"
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any, *, bold: bool) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"<b>{escape(text)}</b>" if bold and text else escape(text)
