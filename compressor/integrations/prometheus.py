"""A Prometheus text file for node_exporter's textfile collector: the figures of one run as gauges.

Names end in base units. An estimate has a name of its own (`compressor_est_...`), so no dashboard can take one for a
measurement; sessions that are not valid and figures that are missing have no line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from compressor.integrations.energy_facts import PER_REQUESTS, Amount, Inference, inference, making
from compressor.schema.report import Candidate, Report

HELP = {
    "compressor_selected_info": "1 for the candidate that was selected",
    "compressor_size_bytes": "Size of the variant's files",
    "compressor_parameters": "Parameters of the model",
    "compressor_quality": "A metric on the test split, in its own unit",
    "compressor_latency_seconds": "Seconds of one batch (forward, prefill) or of one generated token of it (decode)",
    "compressor_cpu_seconds_per_token": "CPU seconds of the process per real token",
    "compressor_tokens_per_second": "Real tokens per second",
    "compressor_peak_memory_bytes": "Peak resident memory of the process",
    "compressor_goal_met": "1 met, 0 missed; no line where it is not shown",
    "compressor_stage_wall_seconds": "Time that a stage took",
    "compressor_joules_per_request": "MEASURED joules per request",
    "compressor_joules_per_generated_token": "MEASURED joules per generated token",
    "compressor_est_joules_per_request": "ESTIMATED joules per request: value and band",
    "compressor_est_joules_per_generated_token": "ESTIMATED joules per generated token: value and band",
    "compressor_stage_joules": "MEASURED joules of making a stage",
    "compressor_est_stage_joules": "ESTIMATED joules of making a stage: value and band",
}
"""Every metric, in the order in which it is written."""


@dataclass(frozen=True)
class _Line:
    name: str
    labels: Mapping[str, str]
    value: float


def prometheus(report: Report) -> str:
    """The text file."""
    lines = [*_run_lines(report)]
    for candidate in report.candidates:
        lines.extend(_candidate_lines(report, candidate))
    parts = []
    for name, text in HELP.items():
        found = [line for line in lines if line.name == name]
        if found:
            parts.extend([f"# HELP {name} {text}", f"# TYPE {name} gauge", *map(_text, found)])
    return "\n".join([*parts, ""])


def _run_lines(report: Report) -> Iterator[_Line]:
    run = {"run": report.name}
    if report.selected is not None:
        yield _Line("compressor_selected_info", {**run, "candidate": report.selected}, 1)
        for stage in making(report, report.candidate(report.selected)):
            if isinstance(stage.energy, Amount):
                yield from _energy("stage_joules", {**run, "stage": stage.stage}, stage.energy, 1)
    for cost in report.stage_costs:
        yield _Line("compressor_stage_wall_seconds", {**run, "stage": cost.stage}, cost.wall_s)
    for goal in report.goals:
        if goal.status != "not_shown":
            places = {key: str(goal.goal[key]) for key in ("metric", "workload", "phase") if goal.goal.get(key)}
            yield _Line("compressor_goal_met", {**run, **places}, float(goal.status == "met"))


def _candidate_lines(report: Report, candidate: Candidate) -> Iterator[_Line]:
    labels = {"run": report.name, "candidate": candidate.id}
    yield _Line("compressor_size_bytes", labels, candidate.size_bytes)
    yield _Line("compressor_parameters", labels, candidate.parameters)
    for row in candidate.quality:
        settings = {key: str(row.settings[key]) for key in ("decode",) if key in row.settings}
        yield _Line("compressor_quality", {**labels, "metric": row.metric, **settings}, row.value)
    for use in inference(candidate):
        if use.row.valid:
            yield from _cost_lines(labels, use)


def _cost_lines(labels: Mapping[str, str], use: Inference) -> Iterator[_Line]:
    row = use.row
    where = {**labels, "workload": row.workload, "phase": row.phase}
    yield _Line("compressor_latency_seconds", {**where, "quantile": "0.5"}, row.latency_s_p50)
    yield _Line("compressor_latency_seconds", {**where, "quantile": "0.95"}, row.latency_s_p95)
    yield _Line("compressor_cpu_seconds_per_token", where, row.cpu_s_per_token)
    yield _Line("compressor_tokens_per_second", where, row.tokens_per_s)
    if row.peak_memory_bytes is not None:
        yield _Line("compressor_peak_memory_bytes", where, row.peak_memory_bytes)
    if isinstance(use.energy, Amount):
        yield from _energy(f"joules_per_{use.unit}", where, use.energy, PER_REQUESTS)


def _energy(name: str, labels: Mapping[str, str], energy: Amount, n: int) -> Iterator[_Line]:
    if energy.kind == "measured":
        yield _Line(f"compressor_{name}", labels, energy.j / n)
        return
    for bound, joules in (("low", energy.low_j), ("value", energy.j), ("high", energy.high_j)):
        assert joules is not None
        yield _Line(f"compressor_est_{name}", {**labels, "bound": bound}, joules / n)


def _text(line: _Line) -> str:
    labels = ",".join(f'{key}="{_escape(value)}"' for key, value in line.labels.items())
    return f"{line.name}{{{labels}}} {line.value!r}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
