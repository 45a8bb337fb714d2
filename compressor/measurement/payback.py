"""When compressing has paid for itself: N* = E_compress / (e_other - e_winner), in requests and in tokens.

E_compress is the energy of every stage that the winner needed and the other did not, from the stages' own records. The
saving is paired by round: each round ran both. Where energy is estimated, the band of the model widens the interval,
once for the cost and once for the saving, although both come from the same machine; the interval is too wide rather
than too narrow. Judging itself is no part of the cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from compressor import energy
from compressor.errors import EnergyError
from compressor.measurement import statistics as st
from compressor.measurement.costs import resolution_of, rounds_of
from compressor.measurement.session import Session
from compressor.measurement.suite import SCRATCH_SUFFIX
from compressor.schema.report import Candidate, Payback, Phase, StageCost
from compressor.spec.chain import resolve_sources
from compressor.spec.pipeline import Pipeline


@dataclass(frozen=True)
class Comparison:
    """The winner and what it is held against.

    Attributes:
        winner: whose stages have to be paid for.
        baseline: the uncompressed reference.
        alternatives: other candidates that keep the quality goals.
        calibration: watts of this machine for estimates; published ones of its CPU family where None.
    """

    winner: Candidate
    baseline: Candidate
    alternatives: tuple[Candidate, ...]
    calibration: energy.Calibration | None = None


def paybacks(
    compared: Comparison,
    sessions: Sequence[Session],
    stage_costs: Sequence[StageCost],
    *,
    pipeline: Pipeline,
    is_shown: bool,
    seed: int,
) -> tuple[Payback, ...]:
    """Break-even of the winner on every workload, against the baseline and the cheapest alternative.

    Args:
        compared: from the report's candidates.
        sessions: with their rounds.
        stage_costs: of the run.
        pipeline: tells which stages a candidate needed.
        is_shown: False for a profile that is too short for any claim.
        seed: of the bootstrap behind the A/A gate.
    """
    found = []
    for session in sessions:
        winner = compared.winner.id
        if winner not in session.runs:
            continue
        others: list[tuple[Candidate, str]] = []
        if compared.baseline.id in session.runs:
            others.append((compared.baseline, "baseline"))
        cheapest = _cheapest(compared.alternatives, session)
        if cheapest is not None:
            others.append((cheapest, "cheapest alternative"))
        for other, role in others:
            stages = _stages_of(pipeline, compared.winner) - _stages_of(pipeline, other)
            gate = _gate(session, compared.baseline.id, seed) if is_shown else math.inf
            for unit, tokens in _units(session, winner).items():
                cost = _StagesCost(stages, stage_costs, compared.calibration)
                text, figures = _break_even(session, winner, other.id, (unit, tokens), cost, gate)
                entry = {"workload": session.prepared.workload.id, "candidate": winner, "against": other.id}
                entry |= {"role": role, "unit": unit, "text": text}
                found.append(Payback.model_validate({**entry, "stages": tuple(sorted(stages)), "figures": figures}))
    return tuple(found)


def _stages_of(pipeline: Pipeline, candidate: Candidate) -> frozenset[str]:
    """Every stage that a candidate needed, teachers included."""
    sources = resolve_sources(pipeline)
    teachers = {stage.id: getattr(stage, "teacher", None) for stage in pipeline.stages}
    needed: set[str] = set()
    waiting = [candidate.stage.removesuffix(SCRATCH_SUFFIX)]
    while waiting:
        id_ = waiting.pop()
        if id_ in sources and id_ not in needed:
            needed.add(id_)
            waiting += [near for near in (sources[id_], teachers[id_]) if near is not None]
    return frozenset(needed)


# Savings -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saving:
    """Joules that one unit saves.

    Attributes:
        interval: over rounds, and over the model's band where it is estimated; None below three rounds.
        ratio: the winner's joules over the other's.
        is_estimated: whether a model made the joules.
        scopes: what they cover.
    """

    interval: energy.Interval | None
    ratio: float
    is_estimated: bool
    scopes: tuple[energy.Scope, ...]


def _units(session: Session, winner: str) -> dict[str, dict[Phase, float]]:
    """Unit -> the tokens that one of it takes in each phase."""
    prepared = session.prepared
    row = prepared.tokens / prepared.requests
    if "decode" in session.runs[winner].turns:
        return {
            "requests": {prepared.phase: row, "decode": float(prepared.output_tokens[-1])},
            "generated tokens": {"decode": 1.0},
        }
    return {"requests": {prepared.phase: row}, "input tokens": {prepared.phase: 1.0}}


def _saving(
    session: Session,
    winner: str,
    other: str,
    tokens: Mapping[Phase, float],
    calibration: energy.Calibration | None,
) -> Saving:
    """What a unit saves, paired by round.

    Raises:
        EnergyError: joules that noise swallowed, or that are measured for one of the two only.
    """
    own, base = (_unit_j(session, id_, tokens, calibration) for id_ in (winner, other))
    if own.is_estimated != base.is_estimated or own.scopes != base.scopes:
        raise EnergyError(f"the joules of {winner} and {other} were not had in the same way")
    if min(fmean(own.joules), fmean(base.joules)) <= 0:
        raise EnergyError("noise swallowed the energy of a unit")
    differences = [theirs - ours for ours, theirs in zip(own.joules, base.joules, strict=True)]
    ratio = fmean(own.joules) / fmean(base.joules)
    bounds = st.mean_interval(differences)
    if bounds is None:
        return Saving(None, ratio, own.is_estimated, own.scopes)
    (low, high), (below, above) = bounds, base.band
    # The band scales joules: it takes either end away from the value.
    interval = energy.Interval(
        fmean(differences), low * (below if low > 0 else above), high * (above if high > 0 else below)
    )
    return Saving(interval, ratio, own.is_estimated, own.scopes)


@dataclass(frozen=True)
class _UnitJoules:
    """Joules of one unit in each round, and the model's band as multiples of them."""

    joules: tuple[float, ...]
    band: tuple[float, float]
    is_estimated: bool
    scopes: tuple[energy.Scope, ...]


def _unit_j(
    session: Session, candidate: str, tokens: Mapping[Phase, float], calibration: energy.Calibration | None
) -> _UnitJoules:
    """Measured where every window was, else from CPU and wall seconds by the model."""
    run = session.runs[candidate]
    per_round = list(zip(*(rounds_of(run, phase, session.prepared) for phase in tokens), strict=True))
    weights = list(tokens.values())
    turns = [turn for phase in tokens for taken in run.turns[phase] for turn in taken]
    metered = [turn.energy for turn in turns if isinstance(turn.energy, energy.MeasuredEnergy)]
    if len(metered) == len(turns):
        joules = tuple(
            sum(n * (one.j_per_token or 0.0) for n, one in zip(weights, phases, strict=True)) for phases in per_round
        )
        return _UnitJoules(joules, (1.0, 1.0), is_estimated=False, scopes=metered[0].scopes)
    estimates = [
        energy.estimate_with(
            calibration,
            cpu_s=sum(n * one.cpu_s_per_token for n, one in zip(weights, phases, strict=True)),
            wall_s=sum(n * one.wall_s_per_token for n, one in zip(weights, phases, strict=True)),
        )
        for phases in per_round
    ]
    values, lows, highs = [], [], []
    for estimate in estimates:
        low, value, high = estimate.gross_band
        assert low is not None and value is not None and high is not None
        values.append(value)
        lows.append(low / value)
        highs.append(high / value)
    return _UnitJoules(tuple(values), (min(lows), max(highs)), is_estimated=True, scopes=estimates[0].scopes)


def _cheapest(alternatives: Sequence[Candidate], session: Session) -> Candidate | None:
    """The candidate with the fewest CPU-seconds a token over the phases of a session."""

    def cost(candidate: Candidate) -> float:
        rows = [row.cpu_s_per_token for row in candidate.measurements if row.session == session.id]
        return math.prod(rows) ** (1 / len(rows))

    there = [one for one in alternatives if any(row.session == session.id for row in one.measurements)]
    return min(there, key=cost, default=None)


def _gate(session: Session, baseline: str, seed: int) -> float:
    """Largest |log ratio| that the baseline shows against itself in this session; 0 where there is no A/A pair."""
    phases: list[Phase] = list(session.runs[baseline].turns) if baseline in session.runs else []
    found = [resolution_of(session, baseline, phase, seed) for phase in phases]
    return max((one.bound for one in found if one is not None and one.bound is not None), default=0.0)


# Break-even ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _StagesCost:
    """What has to be paid back: which stages, what each took, and how missing joules are estimated."""

    stages: frozenset[str]
    known: Sequence[StageCost]
    calibration: energy.Calibration | None


def _break_even(
    session: Session,
    winner: str,
    against: str,
    unit: tuple[str, Mapping[Phase, float]],
    stages: _StagesCost,
    gate: float,
) -> tuple[str, dict[str, int]]:
    """The sentence, and the numbers where one is shown."""
    name, tokens = unit
    mark = ""
    try:
        saving = _saving(session, winner, against, tokens, stages.calibration)
        mark = " (estimated)" if saving.is_estimated else ""
        refusal = _refusal(saving, gate)
        if refusal is not None or saving.interval is None:
            raise EnergyError(refusal or "fewer than three rounds were measured")
        cost = _cost(stages)
        if cost.scopes != saving.scopes:
            covers = " and ".join(", ".join(scope.words for scope in one) for one in (cost.scopes, saving.scopes))
            raise EnergyError(f"cost and saving cover different things: {covers}")
        found = energy.break_even(
            cost, saving.interval, unit=name, against=against, saving_is_estimated=saving.is_estimated
        )
    except EnergyError as error:
        return f"no break-even shown{mark} against {against}: {error.message}", {}
    return str(found), {key: value for key, value in found.to_json().items() if isinstance(value, int)}


def _refusal(saving: Saving, gate: float) -> str | None:
    if math.isinf(gate):
        return "this profile is too short for any claim"
    if abs(math.log(saving.ratio)) <= gate:
        return "the difference lies within what the baseline shows against itself in this session"
    return None


def _cost(paid: _StagesCost) -> energy.Energy:
    """Joules of the stages; from CPU and wall seconds where a stage was resumed and its joules were not read.

    Raises:
        EnergyError: no stage to pay for, a stage whose cost is unknown, or scopes that do not add up.
    """
    known, stages = {cost.stage: cost for cost in paid.known}, paid.stages
    missing = sorted(stages - set(known))
    if missing:
        raise EnergyError(f"what {', '.join(missing)} took is unknown")
    if not stages:
        raise EnergyError("it needed no stage that the other did not: there is nothing to pay back")
    total = energy.sum_energy([_stage_energy(known[id_], paid.calibration) for id_ in sorted(stages)])
    if isinstance(total, energy.InvalidEnergy):
        raise EnergyError(f"the cost of compressing was not measured: {total.reason}")
    return total


def _stage_energy(cost: StageCost, calibration: energy.Calibration | None) -> energy.EnergyResult:
    if cost.energy.result is not None:
        return energy.from_json(cost.energy.result)
    return energy.estimate_with(calibration, cpu_s=cost.cpu_s, wall_s=cost.wall_s)


def alternatives_to(
    winner: str, baseline: str, candidates: Sequence[Candidate], keeps_quality: Callable[[Candidate], bool]
) -> tuple[Candidate, ...]:
    """Other candidates that keep the quality goals, exports that were made only to be measured included."""
    return tuple(one for one in candidates if one.id not in (winner, baseline) and keeps_quality(one))
