"""A gate for CI: does the selected candidate keep its quality, and does it save enough? Pure functions of a report.

The rules are those of the pipeline's own goals: `met` and `missed` need the whole 95 % interval on one side of the
limit, anything else is `not_shown`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree

from compressor.errors import GoalError, ProvenanceError, UserError
from compressor.measurement.goals import Status, judge_goal
from compressor.schema.report import Candidate, Measurement, Phase, Report
from compressor.spec.agreement import COSTS, WORKLOAD_COSTS
from compressor.spec.evaluation import Goal
from compressor.spec.tasks import LESS_IS_BETTER

TOO_SHORT = "smoke"
"""The profile whose windows only show that the path works."""


@dataclass(frozen=True)
class Check:
    """One thing that the gate looked at.

    Attributes:
        name: short, the same from run to run: CI servers follow a test by its name.
        text: one sentence with the figures.
    """

    name: str
    status: Status
    text: str


def check_gate(
    report: Report,
    *,
    max_accuracy_drop: float | None = None,
    min_reduction: float | None = None,
    metric: str = "accuracy",
    cost: str = "cpu_s_per_token",
    workload: str | None = None,
    phase: Phase | None = None,
    require: Literal["measured"] | None = None,
) -> tuple[Check, ...]:
    """Hold the selected candidate of a report to limits.

    Args:
        max_accuracy_drop: how much of `metric` may be lost against the baseline: 0.01 is one point. For a metric of
            which less is better (perplexity) it is a share of the baseline's.
        min_reduction: share of `cost` that must be saved against the baseline: 0.3 is 30 %.
        workload: where a cost is judged; the pipeline's first one where absent.
        phase: `prefill` or `decode` of a language model; the workload's last one where absent.
        require: "measured" adds a check that the candidate's joules were measured there, not estimated.

    Without either limit, the pipeline's own goals are the checks.

    Raises:
        UserError: nothing to check, or a metric, cost or workload that the report does not know.
    """
    goals = _goals(report, max_accuracy_drop, min_reduction, metric, cost, workload, phase)
    if not goals and not report.goals and require is None:
        raise UserError(
            "nothing to check", hint="give --max-accuracy-drop or --min-reduction, or set goals: in the YAML"
        )
    if report.selected is None:
        return (Check("selected", "missed", f"no candidate was selected: {report.selected_reason}"),)
    chosen = report.candidate(report.selected)
    checks = [_held(report, chosen, name, goal) for name, goal in goals]
    if not goals:
        checks = [Check(_goal_name(goal.goal), goal.status, goal.text) for goal in report.goals]
    if require == "measured":
        checks.append(_provenance(chosen, workload or _first_workload(report)))
    return tuple(checks)


def failing(checks: Sequence[Check], *, strict: bool) -> tuple[Check, ...]:
    """What fails the gate: everything missed, and under `strict` what is not shown."""
    statuses = ("missed", "not_shown") if strict else ("missed",)
    return tuple(check for check in checks if check.status in statuses)


def raise_if_failing(checks: Sequence[Check], *, strict: bool) -> None:
    """Turn a gate that is not passed into an error.

    Raises:
        ProvenanceError: all that failed is that energy was not measured.
        GoalError: a limit was missed, or is not shown and `strict` is set.
    """
    broken = failing(checks, strict=strict)
    if not broken:
        return
    lines = "".join(f"\n  {check.status.replace('_', ' ')}: {check.text}" for check in broken)
    error = ProvenanceError if all(check.name == "energy is measured" for check in broken) else GoalError
    raise error(f"{len(broken)} of {len(checks)} checks failed:{lines}")


def junit(report: Report, checks: Sequence[Check], *, strict: bool) -> str:
    """JUnit XML: one test case per check; what is not shown counts as skipped, or failed under `strict`."""
    failed = failing(checks, strict=strict)
    suite = ElementTree.Element(
        "testsuite",
        name=f"compressor gate: {report.name}",
        tests=str(len(checks)),
        failures=str(len(failed)),
        errors="0",
        skipped=str(sum(check.status == "not_shown" for check in checks if check not in failed)),
        timestamp=report.created[:19],
    )
    for check in checks:
        case = ElementTree.SubElement(suite, "testcase", classname=f"compressor.gate.{report.name}", name=check.name)
        if check in failed:
            ElementTree.SubElement(case, "failure", message=check.text, type=check.status).text = check.text
        elif check.status == "not_shown":
            ElementTree.SubElement(case, "skipped", message=check.text)
        else:
            ElementTree.SubElement(case, "system-out").text = check.text
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def summary(report: Report, checks: Sequence[Check], *, strict: bool) -> str:
    """Markdown for the summary page of a CI job."""
    passed = not failing(checks, strict=strict)
    lines = [
        f"## Compression gate: {'passed' if passed else 'failed'}",
        "",
        f"`{report.name}`: {report.selected or 'nothing'} selected, against `{report.baseline}`. "
        f"{report.selected_reason}.".replace("|", "\\|"),
        "",
        "| check | result | |",
        "| --- | --- | --- |",
    ]
    for check in checks:
        text = check.text.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {check.name} | {check.status.replace('_', ' ')} | {text} |")
    return "\n".join([*lines, ""])


def to_json(report: Report, checks: Sequence[Check], *, strict: bool) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "name": report.name,
        "selected": report.selected,
        "baseline": report.baseline,
        "passed": not failing(checks, strict=strict),
        "strict": strict,
        "checks": [vars(check) for check in checks],
    }


def _goals(
    report: Report,
    max_accuracy_drop: float | None,
    min_reduction: float | None,
    metric: str,
    cost: str,
    workload: str | None,
    phase: Phase | None,
) -> list[tuple[str, Goal]]:
    """The limits as goals, each with the name of its check."""
    goals: list[tuple[str, Goal]] = []
    _check_workload(report, workload)
    if max_accuracy_drop is not None:
        _check_metric(report, metric)
        if not 0 <= max_accuracy_drop < 1:
            raise UserError(
                f"a drop of {max_accuracy_drop:g} is no share between 0 and 1", hint="0.01 allows one point (1 %)"
            )
        if metric in LESS_IS_BETTER:
            goal = Goal(metric=metric, min_retained=1 - max_accuracy_drop)
        else:
            goal = Goal(metric=metric, max_drop_points=100 * max_accuracy_drop)
        goals.append((f"{metric} is kept", goal))
    if min_reduction is not None:
        if cost not in COSTS:
            raise UserError(f"there is no cost {cost!r}", hint=f"one of: {', '.join(COSTS)}")
        if not 0 <= min_reduction < 1:
            raise UserError(
                f"a reduction of {min_reduction:g} is no share between 0 and 1", hint="0.3 asks for 30 % less"
            )
        where = {"workload": workload, "phase": phase} if cost in WORKLOAD_COSTS else {}
        goals.append(
            (f"{cost} is reduced", Goal.model_validate({"metric": cost, "max_ratio": 1 - min_reduction, **where}))
        )
    return goals


def _check_metric(report: Report, metric: str) -> None:
    known = sorted({row.metric for candidate in report.candidates for row in candidate.quality})
    if metric not in known:
        raise UserError(f"the report has no metric {metric!r}", hint=f"--metric with one of: {', '.join(known)}")


def _check_workload(report: Report, workload: str | None) -> None:
    known = sorted({row.workload for candidate in report.candidates for row in candidate.measurements})
    if workload is not None and workload not in known:
        raise UserError(f"the report has no workload {workload!r}", hint=f"--workload with one of: {', '.join(known)}")


def _first_workload(report: Report) -> str:
    """The pipeline's; of folders that were measured without a pipeline, the one that was measured first."""
    if report.pipeline.get("workloads"):
        return str(report.pipeline["workloads"][0]["id"])
    return next((row.workload for candidate in report.candidates for row in candidate.measurements), "")


def _held(report: Report, chosen: Candidate, name: str, goal: Goal) -> Check:
    sessions = report.environment.get("sessions", {})
    if not any(one.id == report.baseline for one in report.candidates):
        return Check(name, "not_shown", f"the baseline {report.baseline} could not be judged: not shown")
    result = judge_goal(goal, chosen, report.candidate(report.baseline), _first_workload(report), sessions)
    refused = _refusal(report, chosen, goal) if goal.metric in WORKLOAD_COSTS else None
    if refused is not None:
        return Check(name, "not_shown", f"{result.text.rpartition(':')[0]}: not shown, since {refused}")
    return Check(name, result.status, result.text)


def _refusal(report: Report, chosen: Candidate, goal: Goal) -> str | None:
    """Why the session behind a cost proves nothing, however its figures look."""
    workload = goal.workload or _first_workload(report)
    for row in chosen.measurements:
        if row.workload == workload and goal.phase in (None, row.phase):
            if row.profile == TOO_SHORT:
                return f"windows of the profile {TOO_SHORT} are too short to judge a cost on"
            if not row.valid:
                return f"the session is not valid ({'; '.join(row.remarks)})"
    return None


def _provenance(chosen: Candidate, workload: str) -> Check:
    name = "energy is measured"
    rows = [row for row in chosen.measurements if row.workload == workload]
    if not rows:
        return Check(name, "missed", f"{chosen.id} was not measured on {workload}")
    for row in rows:
        found = _kind(row)
        if found != "measured":
            return Check(name, "missed", f"energy of {chosen.id} on {workload} ({row.phase}) is {found}, not measured")
    return Check(name, "met", f"energy of {chosen.id} on {workload} is measured")


def _kind(row: Measurement) -> str:
    """`measured`, or the word for anything less."""
    result = row.energy.result
    if result is None:
        return f"missing ({row.energy.reason})"
    if result.get("provenance") == "simulated":
        return "simulated"
    return str(result["kind"]) if row.valid or result["kind"] != "measured" else "of a session that is not valid"


def _goal_name(goal: dict[str, Any]) -> str:
    places = [str(goal[key]) for key in ("workload", "phase") if goal.get(key) is not None]
    return " ".join([f"goal: {goal['metric']}", *(["on", ", ".join(places)] if places else [])])
