"""Verdicts: what a reader should do, as far as the figures show it. A pure function of the report.

Smaller is not always greener: a quantised graph may cost as much as the one it came from, or more. That is a finding
and no failure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from compressor.measurement.goals import is_cost, judge_goal, keeps
from compressor.schema.report import Candidate, Measurement, Report, Verdict
from compressor.spec.evaluation import Goal

VNNI = ("avx512_vnni", "avx_vnni", "amx_int8", "i8mm")
"""Flags of processors that multiply 8-bit numbers and add them up in one instruction."""
WORTH_HAVING = 0.95
"""Where the interval excludes a saving of more than 5 %, a conversion costs no less."""


def find_verdicts(report: Report) -> tuple[Verdict, ...]:
    """Verdicts on every quantised or converted candidate that was measured beside its source, and on tunings."""
    verdicts = [_tuning(candidate) for candidate in report.candidates if "tuning" in candidate.facts]
    for candidate in report.candidates:
        rows = [row for row in candidate.measurements if row.cpu_s_per_token_ratio_to_source is not None]
        if not rows or candidate.scheme == "fp32":
            continue
        ratio = rows[0].cpu_s_per_token_ratio_to_source
        assert ratio is not None
        verdict = _judge(report, candidate, report.candidate(ratio.against), rows)
        if verdict is not None:
            verdicts.append(verdict)
    return tuple(verdicts)


def _tuning(candidate: Candidate) -> Verdict:
    """What a search for runtime settings found, by the paired comparison with the defaults that it ended with."""
    found = candidate.facts["tuning"]
    if not found["settings"]:
        text = f"{candidate.id}: no runtime setting was shown to cost less than the defaults"
        return Verdict(kind="defaults_are_best", candidate=candidate.id, text=text)
    named = ", ".join(f"{name} {value}" for name, value in found["settings"].items())
    bounds = found["ratio_to_default_ci95"]
    band = f" (95 % interval {bounds[0]:.2f} to {bounds[1]:.2f})" if bounds else ""
    figure = f"on calibration text, {found['ratio_to_default']:.2f}x the {found['minimised']} of the defaults{band}"
    return Verdict(kind="tuned", candidate=candidate.id, text=f"{candidate.id} runs with {named}", reasons=(figure,))


def _judge(report: Report, candidate: Candidate, source: Candidate, rows: Sequence[Measurement]) -> Verdict | None:
    cheaper = [row for row in rows if _saves(report, row)]
    broken = _broken_goals(report, candidate, source)
    if cheaper and len(cheaper) == len(rows) and not broken:
        return None
    name = f"{candidate.id} ({candidate.scheme})"
    if cheaper and not broken:
        there = ", ".join(_place(row) for row in cheaper)
        elsewhere = ", ".join(_place(row) for row in rows if row not in cheaper)
        text = f"{name} costs less than {source.id} on {there}; on {elsewhere} no saving is shown"
        return Verdict(kind="saves_in_places", candidate=candidate.id, text=text, reasons=_figures(rows))
    if not cheaper and not broken and candidate.scheme in ("fp16", "bf16"):
        text = (
            f"{candidate.scheme} buys disk, not energy here: {candidate.size_bytes / 1e6:.1f} MB instead of "
            f"{source.size_bytes / 1e6:.1f} MB, and no fewer CPU-seconds per token than {source.id}"
        )
        return Verdict(kind="saves_disk_only", candidate=candidate.id, text=text, reasons=_figures(rows))
    if not broken and not any(_costs_no_less(row) for row in rows):
        text = f"{name}: no saving over {source.id} is shown here; a longer profile may tell"
        reasons = (*_figures(rows), *_resolutions(report, rows))
        return Verdict(kind="no_saving_shown", candidate=candidate.id, text=text, reasons=reasons)
    why = f"it breaks a goal that {source.id} keeps" if broken else f"it costs no less per token than {source.id}"
    inexact = _wide_activations(candidate) if broken else ()
    reasons = (*broken, *inexact, *_figures(rows), *(() if cheaper else _technical_reasons(report, candidate)))
    kind = "do_not_quantise"
    return Verdict(kind=kind, candidate=candidate.id, text=f"do not quantise here: {name}: {why}", reasons=reasons)


def _saves(report: Report, row: Measurement) -> bool:
    """A saving is shown: the interval lies below 1, and the ratio is beyond what A/A shows."""
    ratio = row.cpu_s_per_token_ratio_to_source
    if ratio is None or ratio.ci95 is None or ratio.ci95.high >= 1:
        return False
    resolution = _resolution(report, row)
    return resolution is None or -math.log(ratio.value) > math.log(resolution)


def _resolution(report: Report, row: Measurement) -> float | None:
    """The factor up to which the baseline differs from itself in this session."""
    session = report.environment.get("sessions", {}).get(row.session, {})
    factor: float | None = session.get("aa", {}).get(row.phase, {}).get("resolution")
    return factor


def _resolutions(report: Report, rows: Sequence[Measurement]) -> tuple[str, ...]:
    """Where A/A alone hides a saving."""
    found = []
    for row in rows:
        factor = _resolution(report, row)
        if factor is not None:
            found.append(f"{_place(row)}: the baseline differs from itself by a factor of up to {factor:.2f}")
    return tuple(found)


def _costs_no_less(row: Measurement) -> bool:
    ratio = row.cpu_s_per_token_ratio_to_source
    return ratio is not None and ratio.ci95 is not None and ratio.ci95.low >= WORTH_HAVING


def _figures(rows: Sequence[Measurement]) -> tuple[str, ...]:
    found = []
    for row in rows:
        ratio = row.cpu_s_per_token_ratio_to_source
        assert ratio is not None
        band = f" (95 % interval {ratio.ci95.low:.2f} to {ratio.ci95.high:.2f})" if ratio.ci95 else ""
        found.append(f"{_place(row)}: {ratio.value:.2f}x the CPU-seconds per token of {ratio.against}{band}")
    return tuple(found)


def _place(row: Measurement) -> str:
    return row.workload if row.phase == "forward" else f"{row.workload} ({row.phase})"


def _broken_goals(report: Report, candidate: Candidate, source: Candidate) -> tuple[str, ...]:
    """Quality goals that the source keeps and the candidate does not."""
    goals = [Goal.model_validate(goal) for goal in report.pipeline.get("goals", ())]
    baseline = next((one for one in report.candidates if one.id == report.baseline), None)
    if baseline is None or not goals:
        return ()
    first_workload = report.pipeline["workloads"][0]["id"]
    sessions = report.environment.get("sessions", {})
    broken = []
    for goal in goals:
        if is_cost(goal):
            continue
        result, before = (judge_goal(goal, one, baseline, first_workload, sessions) for one in (candidate, source))
        if not keeps(result) and keeps(before):
            broken.append(result.text)
    return tuple(broken)


def _technical_reasons(report: Report, candidate: Candidate) -> tuple[str, ...]:
    """Causes that the machine and the file show; none is guessed."""
    reasons = []
    operators = candidate.facts.get("quantised_operators")
    if candidate.scheme not in ("fp16", "bf16") and operators is not None and not operators:
        reasons.append("the graph has no quantised operators: weights are unpacked and computed in fp32")
    unfused = candidate.facts.get("unfused_products")
    if unfused:
        total = sum((operators or {}).values())
        reasons.append(
            f"{unfused} of {total} products have no fused kernel here: ONNX Runtime dequantises, multiplies in fp32 "
            "and quantises again"
        )
    flags = report.environment.get("cpu_flags", [])
    if candidate.scheme.startswith("w8a8") and not any(flag in flags for flag in VNNI):
        reasons.append("this processor has no VNNI: 8-bit products take several instructions")
    placed, asked = candidate.facts.get("nodes_by_provider", {}), candidate.facts.get("provider")
    elsewhere = sum(count for provider, count in placed.items() if provider != asked)
    if elsewhere:
        reasons.append(
            f"{asked} took {placed.get(asked, 0)} of {sum(placed.values())} nodes; the others fell back to "
            + ", ".join(provider for provider in placed if provider != asked)
        )
    return tuple(reasons)


def _wide_activations(candidate: Candidate) -> tuple[str, ...]:
    """Why 8-bit activations may have cost the quality, where calibration showed it."""
    count = candidate.facts.get("wide_activations")
    if not candidate.scheme.startswith("w8a8") or not count:
        return ()
    return (
        f"activations of {count} products have a few numbers over 8 times the 99.9th percentile, which one scale for "
        "all of them must reach: quantise weights only, smooth before export, or let `exclude: auto` leave these alone",
    )
