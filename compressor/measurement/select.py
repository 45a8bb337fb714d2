"""The winner: of the candidates that keep the quality goals, the one that costs least."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from compressor.measurement.goals import is_cost, keeps
from compressor.schema.report import Candidate, GoalResult
from compressor.spec.evaluation import Goal, Workload


def select(
    candidates: Sequence[Candidate],
    *,
    baseline: str,
    goals: Sequence[Goal],
    workloads: Sequence[Workload],
    judge: Callable[[Goal, Candidate], GoalResult],
    asked: str | None,
) -> tuple[str | None, str]:
    """Pick the winner; returns (its id, the reason).

    A goal whose interval contains the limit is kept here where the value itself keeps it: the goals then say that it
    is not shown. Exports made only to be measured cannot win. Cost is CPU-seconds per token against the baseline, a
    geometric mean over workloads (by weight) and phases that all contenders ran.
    """
    if asked is not None:
        named = next((one.id for one in candidates if asked == one.id), None)
        if named is None:
            return None, f"the pipeline names {asked} as the winner, but it could not be judged"
        return named, "named by the pipeline (evaluate.select)"
    quality_goals = [goal for goal in goals if not is_cost(goal)]
    contenders = [one for one in candidates if not one.scratch and one.measurements]
    if not contenders:
        return None, "no candidate was measured"
    good = [one for one in contenders if all(keeps(judge(goal, one)) for goal in quality_goals)]
    if not good:
        return None, "no candidate keeps the quality goals"
    # The smaller "ends" sessions must not hide the middle of the pipeline: compare where all contenders were measured.
    shared = set.intersection(*(_places(one) for one in good))
    if not shared:
        return None, "the candidates share no workload, so their costs cannot be compared"
    weights = {workload.id: workload.weight for workload in workloads}
    costs = {one.id: _relative_cost(one, shared, weights, baseline) for one in good}
    known = {id_: cost for id_, cost in costs.items() if cost is not None}
    if not known:
        return None, "no candidate has a cost ratio to the baseline"
    best = min(known, key=lambda id_: known[id_])
    kept = f"of {len(good)} candidates that keep the quality goals" if quality_goals else "with no goal on quality"
    where = ", ".join(sorted({workload for workload, _ in shared}))
    if best == baseline and len(good) == 1:
        return best, "no other candidate keeps the quality goals, so the baseline stays"
    if best == baseline:
        return best, f"{kept}, none costs less than the baseline ({where})"
    return best, f"{kept}, the least CPU-seconds per token: {known[best]:.3f} of the baseline's ({where})"


def _places(candidate: Candidate) -> set[tuple[str, str]]:
    return {(row.workload, row.phase) for row in candidate.measurements}


def _relative_cost(
    candidate: Candidate, shared: set[tuple[str, str]], weights: dict[str, float], baseline: str
) -> float | None:
    if candidate.id == baseline:
        return 1.0
    total = weight = 0.0
    for row in candidate.measurements:
        if (row.workload, row.phase) not in shared:
            continue
        if row.cpu_s_per_token_ratio is None:
            return None
        share = weights.get(row.workload, 1.0)
        total, weight = total + share * math.log(row.cpu_s_per_token_ratio.value), weight + share
    return math.exp(total / weight)
