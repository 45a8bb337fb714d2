"""From figures to the report: candidates, sessions, goals, the winner, verdicts."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compressor.measurement.assumed import assumed_figures
from compressor.measurement.costs import resolution_of
from compressor.measurement.goals import is_cost, judge_goal, keeps
from compressor.measurement.payback import Comparison, alternatives_to, paybacks
from compressor.measurement.select import select
from compressor.measurement.session import Session
from compressor.measurement.suite import CandidateSpec, Suite
from compressor.measurement.verdicts import find_verdicts
from compressor.schema.report import Candidate, Failure, GoalResult, Measurement, Quality, Report, StageCost
from compressor.spec.evaluation import Goal
from compressor.spec.pipeline import Pipeline


def candidate_of(
    spec: CandidateSpec, run_dir: Path, quality: tuple[Quality, ...], measurements: Sequence[Measurement]
) -> Candidate:
    """A row of the report."""
    variant = spec.checkpoint.variant(spec.variant_id)
    folder, base = spec.checkpoint.path.resolve(), run_dir.resolve()
    return Candidate(
        id=spec.id,
        stage=spec.stage,
        checkpoint=str(folder.relative_to(base)) if folder.is_relative_to(base) else spec.checkpoint.path.name,
        digest=spec.checkpoint.digest,
        variant=variant.id,
        runtime=variant.runtime,
        scheme=variant.scheme,
        scratch=spec.scratch,
        parameters=variant.parameters,
        size_bytes=variant.size_bytes,
        facts=_facts_of(spec),
        quality=quality,
        measurements=tuple(measurements),
    )


def _facts_of(spec: CandidateSpec) -> dict[str, Any]:
    """What was read back from the file, and how it is run where that was tuned."""
    variant, record = spec.checkpoint.variant(spec.variant_id), spec.checkpoint.record
    facts = dict(variant.facts)
    if variant.settings:
        facts["settings"] = dict(variant.settings)
    if record.kind == "tune":
        facts["tuning"] = {key: value for key, value in record.realised["tuning"].items() if key != "trials"}
    return facts


def headline_of(candidate: Candidate) -> dict[str, float]:
    """The few figures that an event carries."""
    values = {row.metric: row.value for row in candidate.quality[:1]}
    for row in candidate.measurements[:1]:
        values["cpu_s_per_token"] = row.cpu_s_per_token
        if row.cpu_s_per_token_ratio is not None:
            values["cpu_s_per_token_ratio"] = row.cpu_s_per_token_ratio.value
    return values


def assemble(
    suite: Suite,
    candidates: tuple[Candidate, ...],
    *,
    baseline: str,
    environment: dict[str, Any],
    data: dict[str, Any],
    stage_costs: tuple[StageCost, ...],
    failures: tuple[Failure, ...],
    sessions: Sequence[Session] = (),
) -> Report:
    """Goals, winner, verdicts, break-even and carbon follow from the figures."""
    base = next((one for one in candidates if one.id == baseline), None)

    def hold(goal: Goal, candidate: Candidate) -> GoalResult:
        if base is None:
            text = f"{goal.metric}: the baseline {baseline} could not be judged: not shown"
            return GoalResult(
                goal=goal.model_dump(exclude_none=True), status="not_shown", value=None, limit=None, text=text
            )
        return judge_goal(goal, candidate, base, suite.workloads[0].id, environment["sessions"])

    selected, reason = select(
        candidates,
        baseline=baseline,
        goals=suite.goals,
        workloads=suite.workloads,
        judge=hold,
        asked=suite.evaluate.select,
    )
    winner = next((one for one in candidates if one.id == selected), None)
    report = Report(
        name=suite.name,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        metadata=suite.metadata,
        pipeline=suite.pipeline,
        environment=environment,
        data=data,
        model=suite.model,
        baseline=baseline,
        selected=selected,
        selected_reason=reason,
        candidates=candidates,
        goals=tuple(hold(goal, winner) if winner else _unjudged(goal, f"no winner: {reason}") for goal in suite.goals),
        verdicts=(),
        stage_costs=stage_costs,
        failures=failures,
    )
    update: dict[str, Any] = {"verdicts": find_verdicts(report)}
    if suite.pipeline:
        pipeline = Pipeline.model_validate(suite.pipeline)
        shown = [one for one in candidates if one.id in (baseline, selected)]
        update["facility"], update["carbon"] = assumed_figures(pipeline.energy, shown, stage_costs)
        if winner is not None and base is not None and winner is not base:
            quality = [goal for goal in suite.goals if not is_cost(goal)]
            others = alternatives_to(
                winner.id, baseline, candidates, lambda one: all(keeps(hold(goal, one)) for goal in quality)
            )
            update["payback"] = paybacks(
                Comparison(winner, base, others, suite.calibration),
                sessions,
                stage_costs,
                pipeline=pipeline,
                is_shown=suite.profile.name != "smoke",
                seed=suite.seed,
            )
    return report.model_copy(update=update)


def _unjudged(goal: Goal, reason: str) -> GoalResult:
    text = f"{goal.metric}: {reason}: not shown"
    return GoalResult(goal=goal.model_dump(exclude_none=True), status="not_shown", value=None, limit=None, text=text)


def session_records(sessions: Sequence[Session], baseline: str, seed: int) -> dict[str, Any]:
    """What the report keeps of each session: order, load by others, and the A/A pair of each phase."""
    records: dict[str, Any] = {}
    for session in sessions:
        phases = list(next(iter(session.runs.values())).turns) if session.runs else []
        pairs: dict[str, Any] = {}
        for phase in phases:
            resolution = resolution_of(session, baseline, phase, seed)
            if resolution is not None:
                bound = resolution.bound
                pairs[phase] = {
                    "ratio": resolution.ratio.value,
                    "ci95": _listed(resolution.ratio.ci95),
                    "bootstrap_ci95": _listed(resolution.ratio.bootstrap_ci95),
                    "resolution": None if bound is None else math.exp(bound),
                }
        records[session.id] = {
            "workload": session.prepared.workload.id,
            "threads": session.threads,
            "order": [list(block) for block in session.order],
            "load": None if session.load is None else asdict(session.load),
            "aa": pairs,
        }
    return records


def _listed(bounds: tuple[float, float] | None) -> list[float] | None:
    """As JSON has it, so that a report read back equals the one that was written."""
    return None if bounds is None else list(bounds)
