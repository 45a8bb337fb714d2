"""A report as tables of text and sentences: what the terminal and Markdown both print. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compressor.render import words
from compressor.schema.report import Candidate, GoalResult, Measurement, Phase, Report


@dataclass(frozen=True)
class TextTable:
    """A table, ready to print.

    Attributes:
        title: what it shows.
        columns: headings; the first column is text, the others are numbers.
        rows: cells, as many as there are columns.
        notes: sentences below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def cost_tables(report: Report) -> list[TextTable]:
    """One table for each workload and phase, in the order in which they were measured."""
    places = dict.fromkeys((row.workload, row.phase) for one in report.candidates for row in one.measurements)
    return [_cost_table(report, workload, phase) for workload, phase in places]


def _cost_table(report: Report, workload: str, phase: Phase) -> TextTable:
    found = [
        (candidate, row)
        for candidate in report.candidates
        for row in candidate.measurements
        if (row.workload, row.phase) == (workload, phase)
    ]
    first = found[0][1]
    metric = _headline_metric(report)
    unit = "generated token" if phase == "decode" else "input token"
    kinds = {row.energy.result["kind"] for _, row in found if row.energy.result is not None}
    mark = " (estimated)" if kinds == {"estimated"} else ""
    columns = (
        "candidate", "runs as", "parameters", "MB", metric or "quality", "latency p50", "tokens/s",
        f"CPU-s / {unit}", "x baseline", f"J / {unit}{mark}",
    )  # fmt: skip
    rows = tuple(_cost_row(report, candidate, row, metric) for candidate, row in found)
    return TextTable(f"{workload}, {phase}", columns, rows, (_conditions(first, phase), *_notes(report, found)))


def _cost_row(report: Report, candidate: Candidate, row: Measurement, metric: str | None) -> tuple[str, ...]:
    quality = next((entry for entry in candidate.quality if entry.metric == metric), None)
    invalid = "" if row.valid else " (not valid)"
    return (
        name_of(report, candidate.id),
        f"{'ONNX Runtime' if candidate.runtime == 'onnxruntime' else 'torch'} {candidate.scheme}",
        words.with_unit(candidate.parameters, "").strip(),
        f"{candidate.size_bytes / 1e6:.1f}",
        words.quality(quality),
        words.with_unit(row.latency_s_p50, "s"),
        words.significant(row.tokens_per_s),
        words.with_unit(row.cpu_s_per_token, "s"),
        "1" if candidate.id == report.baseline else words.ratio(row.cpu_s_per_token_ratio),
        words.energy_per_token(row) + invalid,
    )


def name_of(report: Report, candidate: str) -> str:
    """A candidate's name with its part: baseline, selected."""
    parts = [word for word, id_ in (("baseline", report.baseline), ("selected", report.selected)) if id_ == candidate]
    return f"{candidate} ({', '.join(parts)})" if parts else candidate


def _headline_metric(report: Report) -> str | None:
    return next((row.metric for one in report.candidates for row in one.quality), None)


def _conditions(row: Measurement, phase: Phase) -> str:
    call = {"forward": "batch", "prefill": "prompt batch with one token out", "decode": "generated token of a batch"}
    threads = f"{row.threads} thread" + ("s" if row.threads > 1 else "")
    return (
        f"batch {row.batch}, {threads}, {row.tokens:,} real tokens and {row.requests} rows per pass, "
        f"{row.padding_ratio:.1%} padding; profile {row.profile}, {row.rounds} rounds; latency of one {call[phase]}; "
        "in brackets 95 % intervals"
    )


def _notes(report: Report, found: Sequence[tuple[Candidate, Measurement]]) -> list[str]:
    notes = []
    session = report.environment.get("sessions", {}).get(found[0][1].session, {})
    resolution = session.get("aa", {}).get(found[0][1].phase, {}).get("resolution")
    if resolution is not None:
        notes.append(f"A/A: the baseline against itself differs by a factor of up to {resolution:.3f} in this session")
    if any(row.energy.result is not None and row.energy.result["kind"] == "estimated" for _, row in found):
        notes.append("joules are estimated from CPU and wall seconds: they show no more than those two do")
    remarks: dict[str, list[str]] = {}
    for candidate, row in found:
        for remark in row.remarks:
            remarks.setdefault(remark, []).append(candidate.id)
    everyone = [candidate.id for candidate, _ in found]
    notes += [remark if ids == everyone else f"{', '.join(ids)}: {remark}" for remark, ids in remarks.items()]
    return notes


def quality_table(report: Report) -> TextTable | None:
    """Every metric of every candidate; None where nothing was judged."""
    judged = [(candidate, row) for candidate in report.candidates for row in candidate.quality]
    if not judged:
        return None
    # The first row's settings stand below the table; a row names what differs.
    first = judged[0][1].settings
    rows = []
    for candidate, row in judged:
        paired = words.NONE
        if row.paired is not None:
            paired = f"{row.paired.delta:+.4f} ({row.paired.ci95.low:+.4f} to {row.paired.ci95.high:+.4f})"
            paired += "" if row.paired.p_value is None else f", {row.paired.test} p = {row.paired.p_value:.2g}"
        own = _settings({key: value for key, value in row.settings.items() if first.get(key) != value})
        name = f"{row.metric} ({own})" if own else row.metric
        rows.append((name_of(report, candidate.id), name, words.quality(row), f"{row.n:,}", paired))
    columns = ("candidate", "metric", "value", "n", "difference to the baseline")
    dataset = judged[0][1].dataset
    notes = (f"{dataset}, test split; {_settings(first)} unless a row says otherwise; in brackets 95 % intervals",)
    return TextTable("quality", columns, tuple(rows), notes)


def _settings(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {_brief(value)}" for key, value in settings.items())


def _brief(value: object) -> str:
    return words.significant(value, 4) if isinstance(value, float) else str(value)


def stage_table(report: Report) -> TextTable | None:
    """What each stage took; None where there were none."""
    if not report.stage_costs:
        return None
    rows = tuple(
        (
            cost.stage + (" (made before)" if cost.skipped else ""),
            words.with_unit(cost.wall_s, "s"),
            words.with_unit(cost.cpu_s, "s"),
            words.total_energy(cost.energy),
        )
        for cost in report.stage_costs
    )
    return TextTable("cost of compressing", ("stage", "wall", "CPU", "energy"), rows)


def payback_table(report: Report) -> TextTable | None:
    """After how much use the energy of compressing has come back; None where there is a winner of no cost."""
    if not report.payback:
        return None
    rows = tuple(
        (f"{one.workload}, {one.unit}", f"{one.against} ({one.role})", ", ".join(one.stages) or words.NONE, one.text)
        for one in report.payback
    )
    candidate = report.payback[0].candidate
    notes = ("gross energy of the stages over the energy that one unit saves; measuring is not counted",)
    return TextTable(f"break-even of {candidate}", ("workload and unit", "against", "to pay back", ""), rows, notes)


def doors_table(report: Report) -> TextTable | None:
    """Where the selected candidate opens; None where nothing was selected."""
    if not report.doors:
        return None
    rows = tuple(
        (
            one.door,
            one.file or words.NONE,
            "yes" if one.opened else "laid out only" if one.file else "no",
            words.NONE if one.difference is None else f"{one.difference:.1e}",
            one.note,
        )
        for one in report.doors
    )
    return TextTable(f"doors of {report.selected}", ("door", "file", "opened here", "difference", ""), rows)


def sentences(report: Report) -> list[tuple[str, list[str]]]:
    """Headed lists: the winner, goals, verdicts, failures, the machine."""
    winner = report.selected if report.selected is not None else "no candidate"
    parts = [("selected", [f"{winner}: {report.selected_reason}"])]
    if report.goals:
        parts.append(("goals", [_goal(goal) for goal in report.goals]))
    if report.verdicts:
        parts.append(("verdicts", [": ".join([one.text, "; ".join(one.reasons)]) for one in report.verdicts]))
    for heading, assumed in (("with cooling", report.facility), ("carbon", report.carbon)):
        if assumed:
            parts.append((heading, [one.text for one in assumed]))
    if report.failures:
        parts.append(("failures", [f"{one.where}: {one.error}: {one.text}" for one in report.failures]))
    parts.append(("measured on", [_machine(report)]))
    return parts


def _goal(goal: GoalResult) -> str:
    """The status first, where it is seen."""
    status = goal.status.replace("_", " ")
    return f"{status.upper()}: {goal.text.removesuffix(f': {status}')}"


def _machine(report: Report) -> str:
    here = report.environment
    versions = here.get("versions", {})
    named = ", ".join(
        f"{name} {versions[name]}" for name in ("onnxruntime", "torch", "transformers") if name in versions
    )
    guest = ", a virtual machine" if here.get("hypervisor") else ""
    memory = f"{here['memory_bytes'] / 2**30:.0f} GiB" if "memory_bytes" in here else "unknown memory"
    return (
        f"{here.get('cpu_family') or here.get('cpu', 'an unknown processor')}, {here.get('processors')} processors, "
        f"{memory}{guest}; {named}; {report.created}"
    )
