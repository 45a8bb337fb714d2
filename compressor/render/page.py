"""A report as one HTML file that works offline, on paper and on a phone. Pure functions of reports.

The browser is told to load nothing from anywhere; plotly.js is inside, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from compressor.measurement.certificate import certificate_of
from compressor.measurement.suite import SCRATCH_SUFFIX
from compressor.render import words
from compressor.render.card import lineage_of, pipeline_of
from compressor.render.card_text import certificate_table, flat, summary_text
from compressor.render.page_energy import energy_bands
from compressor.render.page_figures import (
    Drawn,
    StageRecord,
    across_runs,
    kept_structure,
    pareto,
    plotly_js,
    points_of,
    relative_points,
    training_curves,
    waterfall,
)
from compressor.render.page_parts import figure_html, list_html, section, table_html, tiles_html
from compressor.render.tables import (
    TextTable,
    cost_tables,
    name_of,
    payback_table,
    quality_table,
    sentences,
    stage_table,
)
from compressor.schema.report import Candidate, GoalResult, Measurement, Phase, Report

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

OPEN_FOR_PRINT = (
    'addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(one => { one.open = true; }));'
)
"""Paper has no handles: whatever is folded on the screen is printed too."""


def page(report: Report, *others: Report, records: Mapping[str, StageRecord] | None = None) -> str:
    """One HTML file for one run, or for several side by side.

    Args:
        report: of the run.
        others: of further runs, to compare.
        records: what the manifests of the first run's stages add, by stage: training curves and kept structure.
    """
    reports = (report, *others)
    if others:
        title = " and ".join(dict.fromkeys(one.name for one in reports))
        body = _comparison(reports) + "".join(_run(one, number, {}) for number, one in enumerate(reports))
    else:
        title = report.name
        body = _run(report, 0, records or {})
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}: compressor report</title>\n<style>{_style()}</style>\n"
        f"<script>{plotly_js()}</script>\n<script>{OPEN_FOR_PRINT}</script></head>\n<body><main>\n{body}</main></body></html>\n"
    )


def _style() -> str:
    return files("compressor.render").joinpath("page.css").read_text(encoding="utf-8")


def _run(report: Report, number: int, records: Mapping[str, StageRecord]) -> str:
    chain = chain_of(report)
    places = list(dict.fromkeys((row.workload, row.phase) for one in report.candidates for row in one.measurements))
    falls = [waterfall(report, chain, workload, phase) for workload, phase in places[:2]]
    clouds = [
        pareto(points_of(report, *place), f"Quality against cost: {', '.join(place)}", "CPU-µs per token")
        for place in places
    ]
    ordered = [records[key] for key in records]
    headings = dict(sentences(report))
    selected = None if report.selected is None else name_of(report, report.selected)
    stages, payback = stage_table(report), payback_table(report)
    quality = quality_table(report)
    parts = [
        _header(report),
        section("Goals and verdicts", _goals(report.goals), _verdicts(headings), _listed(headings, "failures")),
        section("Step by step", *_figures(falls, f"r{number}-steps")),
        section("Quality against cost", *_figures(clouds, f"r{number}-pareto")),
        section("Cost of use", *(table_html(table, selected=selected) for table in cost_tables(report))),
        section("Energy windows", *_figures([energy_bands(report, *place) for place in places], f"r{number}-energy")),
        section("Quality", None if quality is None else table_html(quality, selected=selected)),
        section("Certificates", *_certificates(report)),
        section("Training", *_figures(training_curves(ordered), f"r{number}-training")),
        section("Kept structure", *_figures([_structure(report, records)], f"r{number}-kept")),
        section(
            "Cost of compressing, and when it comes back",
            None if stages is None else table_html(stages),
            None if payback is None else table_html(payback, of_words=True),
            _listed(headings, "with cooling"),
            _listed(headings, "carbon"),
        ),
        section("Every setting and version", *_settings(report)),
    ]
    return "".join(parts)


def chain_of(report: Report) -> list[Candidate]:
    """The baseline and every candidate on the way to the selected one; all of them where there is no pipeline."""
    goal = next((one for one in report.candidates if one.id == report.selected), None)
    if goal is None or not report.pipeline.get("stages"):
        return list(report.candidates)
    passed = {stage.id for stage in lineage_of(pipeline_of(report), goal)} | {report.baseline}
    return [one for one in report.candidates if one.stage.removesuffix(SCRATCH_SUFFIX) in passed]


def _header(report: Report) -> str:
    winner = next((one for one in report.candidates if one.id == report.selected), None)
    machine = dict(sentences(report))["measured on"][0]
    lead = report.selected_reason if winner is None else summary_text(report, winner)
    name = "no candidate was selected" if winner is None else f"{winner.id} selected"
    tiles = "" if winner is None else tiles_html(_tiles(report, winner))
    return (
        f"<header><h1>{escape(report.name)}: {escape(name)}</h1>\n"
        f'<p class="soft">{escape(machine)}</p>\n<p class="lead">{escape(lead)}</p>\n{tiles}</header>\n'
    )


def _tiles(report: Report, winner: Candidate) -> list[tuple[str, str, str]]:
    """CPU-seconds and quality first; joules last, and never without where they come from."""
    base = next((one for one in report.candidates if one.id == report.baseline), None)
    tiles = []
    for row in winner.measurements[:1]:
        where = f"of {report.baseline}'s, {row.workload}"
        for what, ratio in (("CPU-seconds per token", row.cpu_s_per_token_ratio), ("latency", row.latency_ratio)):
            if ratio is not None:
                value, _, band = words.ratio(ratio).partition(" ")
                tiles.append((what, value, f"{band} {where}".strip()))
    for quality in winner.quality[:1]:
        value, _, band = words.quality(quality).partition(" (")
        before = None if base is None or not base.quality else words.quality(base.quality[0])
        tiles.append((quality.metric, value, f"({band}" + (f"; {report.baseline} {before}" if before else "")))
    if base is not None and base is not winner:
        tiles.append(("size", f"{winner.size_bytes / 1e6:.1f} MB", f"{report.baseline} {base.size_bytes / 1e6:.1f} MB"))
    for row in winner.measurements[:1]:
        value, _, source = words.energy_per_token(row).partition(" (")
        unit = "generated token" if row.phase == "decode" else "input token"
        tiles.append((f"energy per {unit}", value, f"({source}"))
    return tiles


def _goals(goals: Sequence[GoalResult]) -> str | None:
    if not goals:
        return None
    lines = "".join(
        f'<li><span class="status {goal.status}">{goal.status.replace("_", " ").upper()}</span> '
        f"{escape(goal.text.removesuffix(': ' + goal.status.replace('_', ' ')))}</li>"
        for goal in goals
    )
    return f'<ul class="plain">{lines}</ul>'


def _verdicts(headings: Mapping[str, list[str]]) -> str:
    chosen = list_html(headings["selected"])
    return chosen + (list_html(headings["verdicts"]) if "verdicts" in headings else "")


def _listed(headings: Mapping[str, list[str]], key: str) -> str | None:
    return f"<h3>{escape(key.capitalize())}</h3>" + list_html(headings[key]) if key in headings else None


def _figures(drawn: Sequence[Drawn | None], name: str) -> list[str]:
    return [figure_html(one, f"{name}-{number}") for number, one in enumerate(drawn) if one is not None]


def _certificates(report: Report) -> list[str]:
    """The winner's figure by figure, and a line for each other candidate."""
    if not report.certificates:
        return ["<p>This report was written without certificates: nothing in it is certified.</p>"]
    chosen = certificate_of(report, report.selected or "")
    others = [one for one in report.certificates if one is not chosen]
    parts = []
    if chosen is not None:
        status = "met" if chosen.certified else "missed"
        parts.append(
            f'<p><span class="status {status}">{chosen.word.upper()}</span> {escape(chosen.of.candidate)}: '
            f"{escape(chosen.sentence())}</p>"
        )
        parts.append(table_html(certificate_table(chosen)))
    if others:
        parts.append(list_html(f"{one.of.candidate}: {one.sentence()}" for one in others))
    return parts


def _structure(report: Report, records: Mapping[str, StageRecord]) -> Drawn | None:
    """What the first pruning on the way to the winner kept of the checkpoint before it."""
    if not report.pipeline.get("stages"):
        return None
    winner = next((one for one in report.candidates if one.id == report.selected), None)
    way = [] if winner is None else [stage.id for stage in lineage_of(pipeline_of(report), winner)]
    before: StageRecord | None = records.get("model")
    for stage in way:
        record = records.get(stage)
        if record is not None and record.structure is not None:
            return None if before is None or before.config is None else kept_structure(record, before.config)
        before = record or before
    return None


def _settings(report: Report) -> list[str]:
    pipeline = (
        pipeline_of(report).model_dump(mode="json", by_alias=True) if report.pipeline.get("stages") else report.pipeline
    )
    stages = {str(one["id"]): one for one in pipeline.get("stages", [])}
    workloads = {str(one["id"]): one for one in pipeline.get("workloads", [])}
    settings = {**pipeline, "stages": stages, "workloads": workloads}
    tables = [
        ("settings", settings),
        ("versions", report.environment.get("versions", {})),
        (
            "machine",
            {key: value for key, value in report.environment.items() if key not in ("versions", "meters", "sessions")},
        ),
        ("data", report.data),
    ]
    made = [
        f"<details><summary>{escape(title.capitalize())}</summary>"
        + table_html(TextTable(title, ("name", "value"), tuple(flat(values))), of_words=True)
        + "</details>"
        for title, values in tables
        if values
    ]
    meters = tuple(
        (str(one["name"]), str(one["status"]), str(one["reason"])) for one in report.environment.get("meters", [])
    )
    if meters:
        table = TextTable("energy meters looked for", ("meter", "status", "why"), meters)
        made.append(f"<details><summary>Energy meters</summary>{table_html(table, of_words=True)}</details>")
    return made


def _comparison(reports: Sequence[Report]) -> str:
    """The winners side by side, by ratios to each run's own baseline."""
    names = _distinct(reports)
    rows, points = [], []
    for name, report in zip(names, reports, strict=True):
        winner = next((one for one in report.candidates if one.id == report.selected), None)
        if winner is None:
            rows.append((name, "no candidate", *[words.NONE] * 5))
            continue
        first = next(iter(winner.measurements), None)
        judged = across_runs(winner.quality) if winner.quality else None
        rows.append(
            (
                name,
                winner.id,
                words.NONE if judged is None else f"{judged.metric} {words.quality(judged)}",
                words.NONE if first is None else words.ratio(first.cpu_s_per_token_ratio),
                words.NONE if first is None else words.ratio(first.latency_ratio),
                f"{winner.size_bytes / 1e6:.1f} MB",
                words.NONE if first is None else words.energy_per_token(first),
            )
        )
        points += relative_points(report, _rows_of(report, first), name) if first is not None else []
    columns = ("run", "selected", "quality", "CPU-s / token", "latency", "size", "energy per token")
    notes = (
        "CPU-seconds and latency are ratios to the baseline of the same run; absolute costs of two sessions are not "
        "comparable",
    )
    table = TextTable("selected candidates", columns, tuple(rows), notes)
    # A metric on other rows is another quantity, whatever its name.
    same = {point.quality.metric for point in points} | {_test_digest(report) for report in reports[1:]}
    comparable = same <= {point.quality.metric for point in points[:1]} | {_test_digest(reports[0])}
    cloud = pareto(
        points if comparable else [], "All runs: quality against cost", "CPU-s per token, of the run's baseline", 1.0
    )
    note = "<p>The runs were judged on other rows or by other metrics, so no figure shows them together.</p>"
    head = f"<header><h1>{escape(' and '.join(names))}</h1></header>\n"
    return head + section("Side by side", table_html(table), *(_figures([cloud], "all") if comparable else [note]))


def _test_digest(report: Report) -> str:
    return str(report.data.get("test", {}).get("digest", report.name))


def _distinct(reports: Sequence[Report]) -> list[str]:
    names = [report.name for report in reports]
    return [f"{name} ({number + 1})" if names.count(name) > 1 else name for number, name in enumerate(names)]


def _rows_of(report: Report, first: Measurement) -> dict[str, Measurement]:
    place: tuple[str, Phase] = (first.workload, first.phase)
    return {one.id: row for one in report.candidates for row in one.measurements if (row.workload, row.phase) == place}
