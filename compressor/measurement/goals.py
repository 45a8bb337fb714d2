"""Goals: each is met, missed, or not shown, and says so in a sentence. Pure functions of what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from compressor.schema.report import Candidate, GoalResult, Interval, Measurement, Quality, Ratio
from compressor.spec.agreement import COSTS, WORKLOAD_COSTS
from compressor.spec.evaluation import Goal
from compressor.spec.tasks import LESS_IS_BETTER, TASKS

Status = Literal["met", "missed", "not_shown"]
TO_THE_BASELINE = {**{task.agreement: 1.0 for task in TASKS.values()}, "kl_to_baseline": 0.0}
"""Metrics that compare with the baseline already, and what the baseline itself has."""


@dataclass(frozen=True)
class Finding:
    """The quantity that a goal limits: its value, its 95 % interval, and the words for it.

    Attributes:
        is_exact: counted, not sampled; no interval is needed.
        resolution: factor below which the session cannot tell two candidates apart (A/A); None where it does not apply.
    """

    value: float
    ci95: Interval | None
    is_exact: bool
    text: str
    resolution: float | None = None


def is_cost(goal: Goal) -> bool:
    """Whether a goal limits a cost; any other limits quality."""
    return goal.metric in COSTS


def judge_goal(
    goal: Goal,
    candidate: Candidate,
    baseline: Candidate,
    first_workload: str,
    sessions: Mapping[str, Any],
) -> GoalResult:
    """Hold one candidate against one goal.

    Args:
        first_workload: the one that a cost goal without a workload means.
        sessions: the report's `environment["sessions"]`, for the A/A gate.
    """
    limit, at_least, unit = _limit(goal)
    finding = _find(goal, candidate, baseline, first_workload, sessions)
    recorded = goal.model_dump(exclude_none=True)
    if isinstance(finding, str):
        text = f"{goal.metric} of {candidate.id}: {finding}: not shown"
        return GoalResult(goal=recorded, status="not_shown", value=None, limit=limit, text=text)
    status = status_of(finding, limit, at_least=at_least)
    asked = f"{'at least' if at_least else 'at most'} {_number(limit, unit)} was asked"
    band = ""
    if finding.ci95 is not None:
        band = f" (95 % interval {_number(finding.ci95.low, unit)} to {_number(finding.ci95.high, unit)})"
    text = f"{finding.text}, {_number(finding.value, unit)}{band}; {asked}: {status.replace('_', ' ')}"
    if status == "not_shown" and finding.resolution is not None and _is_within_resolution(finding):
        text += f", since the baseline differs from itself by a factor of up to {finding.resolution:.3f} here"
    return GoalResult(goal=recorded, status=status, value=finding.value, limit=limit, text=text)


def status_of(finding: Finding, limit: float, *, at_least: bool) -> Status:
    """Met or missed where the whole interval lies on one side of the limit, else not shown."""
    if finding.is_exact:
        low = high = finding.value
    elif finding.ci95 is None:
        return "not_shown"
    else:
        low, high = finding.ci95.low, finding.ci95.high
    if not at_least:
        low, high, limit = -high, -low, -limit
    if high < limit:
        return "missed"
    if low < limit or _is_within_resolution(finding):
        return "not_shown"
    return "met"


def keeps(result: GoalResult) -> bool:
    """Whether the value itself keeps the goal, shown or not."""
    if result.value is None or result.limit is None:
        return False
    return result.value >= result.limit if "min_retained" in result.goal else result.value <= result.limit


def _is_within_resolution(finding: Finding) -> bool:
    """A ratio below 1 is a claim of a saving; one that the A/A pair shows too is no saving."""
    if finding.resolution is None or finding.is_exact or finding.value >= 1:
        return False
    return abs(math.log(finding.value)) <= math.log(finding.resolution)


def _limit(goal: Goal) -> tuple[float, bool, str]:
    """(limit, whether it is a lower one, unit for people)."""
    if goal.min_retained is not None:
        return goal.min_retained, True, "%"
    if goal.max_drop_points is not None:
        return goal.max_drop_points, False, "points"
    assert goal.max_ratio is not None
    return goal.max_ratio, False, "x"


def _number(value: float, unit: str) -> str:
    return {"%": f"{100 * value:.1f} %", "points": f"{value:.2f} points", "x": f"{value:.3g}x"}[unit]


def _find(
    goal: Goal, candidate: Candidate, baseline: Candidate, first_workload: str, sessions: Mapping[str, Any]
) -> Finding | str:
    """The quantity a goal limits, or why there is none."""
    if goal.metric in WORKLOAD_COSTS:
        return _find_cost(goal, candidate, baseline, first_workload, sessions)
    if goal.metric in COSTS:
        value, other = getattr(candidate, goal.metric), getattr(baseline, goal.metric)
        return Finding(value / other, None, True, f"{goal.metric} of {candidate.id}: {value:,} against {other:,}")
    return _find_quality(goal, candidate, baseline)


def find_quality(candidate: Candidate, metric: str) -> Quality | None:
    """A candidate's row of a metric; through the plain (uncached) path where there are two."""
    return next((row for row in candidate.quality if row.metric == metric), None)


def _find_quality(goal: Goal, candidate: Candidate, baseline: Candidate) -> Finding | str:
    row, base = find_quality(candidate, goal.metric), find_quality(baseline, goal.metric)
    if candidate.id == baseline.id:
        value = 0.0 if goal.max_drop_points is not None else 1.0
        return Finding(value, None, True, f"{goal.metric} of {candidate.id}, which is the baseline itself")
    if row is None:
        return "was not measured"
    reference = TO_THE_BASELINE.get(goal.metric) if base is None else base.value
    if reference is None:
        return "was not measured on the baseline"
    if row.paired is not None:
        # The other end of a paired interval, as if the candidate's own value lay there.
        ends = [reference + row.paired.ci95.low, reference + row.paired.ci95.high]
    elif base is None and row.ci95 is not None:
        ends = [row.ci95.low, row.ci95.high]
    else:
        ends = []
    try:
        value, *bounds = [_against(goal, end, reference) for end in [row.value, *ends]]
    except ZeroDivisionError:
        return "cannot be compared: the baseline's value is 0"
    text = f"{goal.metric} of {candidate.id}: {row.value:.4g} against {reference:.4g} of {baseline.id}"
    ci = Interval(low=min(bounds), high=max(bounds)) if bounds else None
    return Finding(value, ci, False, text)


def _against(goal: Goal, value: float, reference: float) -> float:
    """The quantity that the goal limits."""
    if goal.max_drop_points is not None:
        return 100 * (reference - value)
    if goal.min_retained is not None and goal.metric in LESS_IS_BETTER:
        return reference / value
    return value / reference


def _find_cost(
    goal: Goal, candidate: Candidate, baseline: Candidate, first_workload: str, sessions: Mapping[str, Any]
) -> Finding | str:
    if candidate.id == baseline.id:
        return Finding(1.0, None, True, f"{goal.metric} of {candidate.id}, which is the baseline itself")
    workload = goal.workload or first_workload
    rows = [row for row in candidate.measurements if row.workload == workload]
    row = next((row for row in rows if row.phase == goal.phase), None) if goal.phase else (rows[-1] if rows else None)
    if row is None:
        return f"was not measured on {workload}" + (f" in {goal.phase}" if goal.phase else "")
    ratio, how = _cost_ratio(goal.metric, row)
    if ratio is None:
        return f"no ratio to the baseline on {workload}, {row.phase}" + (f" ({how})" if how else "")
    resolution = sessions.get(row.session, {}).get("aa", {}).get(row.phase, {}).get("resolution")
    text = f"{goal.metric}{how} of {candidate.id} on {workload} ({row.phase}), as a multiple of {baseline.id}'s"
    return Finding(ratio.value, ratio.ci95, False, text, resolution)


def _cost_ratio(metric: str, row: Measurement) -> tuple[Ratio | None, str]:
    """The ratio behind a cost, and a word on where it comes from."""
    if metric == "latency_s":
        return row.latency_ratio, ""
    if metric == "cpu_s_per_token":
        return row.cpu_s_per_token_ratio, ""
    kind = None if row.energy.result is None else row.energy.result["kind"]
    if kind == "estimated":
        return row.cpu_s_per_token_ratio, " (estimated: the ratio of CPU time)"
    if kind != "measured":
        return None, row.energy.reason or "no energy"
    if not row.valid:
        return None, "the measured energy is not valid: " + "; ".join(row.remarks)
    return row.energy_ratio, " (measured)"
