"""From timed windows to the figures of a report: costs per token with intervals, ratios by round, joules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from compressor import energy
from compressor.errors import EnergyError
from compressor.measurement import statistics as st
from compressor.measurement.inputs import PreparedWorkload
from compressor.measurement.profiles import Profile
from compressor.measurement.session import TWIN, Run, Session, Turn
from compressor.schema.report import EnergyFigure, Interval, Measurement, Phase, Ratio


@dataclass(frozen=True)
class Round:
    """One candidate's costs in one round.

    Attributes:
        cpu_s_per_token: own CPU seconds per real input token, or per generated token in `decode`.
        wall_s_per_token: likewise by the clock.
        latency_s: median seconds of a call.
        j_per_token: measured joules; None where energy is estimated.
    """

    cpu_s_per_token: float
    wall_s_per_token: float
    latency_s: float
    j_per_token: float | None


@dataclass(frozen=True)
class Resolution:
    """What the A/A pair of a session says of its power to tell two candidates apart.

    Attributes:
        ratio: the twin's cost over the baseline's.
        bound: the largest |log ratio| inside the A/A interval: claims smaller than this are not made.
    """

    ratio: st.PairedRatio
    bound: float | None


def rounds_of(run: Run, phase: Phase, prepared: PreparedWorkload) -> list[Round]:
    """Costs of each round of a run.

    Decoding is the slope of a line over output lengths within the round, never a difference of two totals.
    """
    if phase == "decode":
        return [_decode_round(turns, prepared.requests) for turns in run.turns[phase]]
    found = []
    for (turn,) in run.turns[phase]:
        n_tokens = turn.passes * prepared.tokens
        joules = _measured_j(turn)
        found.append(
            Round(
                turn.cpu_s / n_tokens,
                turn.wall_s / n_tokens,
                median(turn.latencies_s),
                None if joules is None else joules / n_tokens,
            )
        )
    return found


def _decode_round(turns: Sequence[Turn], requests: int) -> Round:
    lengths = [float(turn.n_out) for turn in turns]
    cpu = st.fit_line(lengths, [turn.cpu_s / turn.passes for turn in turns])
    wall = st.fit_line(lengths, [turn.wall_s / turn.passes for turn in turns])
    steps = [latency for turn in turns for latency in turn.latencies_s]
    joules = [None if (total := _measured_j(turn)) is None else total / turn.passes for turn in turns]
    known = [value for value in joules if value is not None]
    slope_j = st.fit_line(lengths, known).slope / requests if len(known) == len(joules) else None
    return Round(cpu.slope / requests, wall.slope / requests, median(steps), slope_j)


def _measured_j(turn: Turn) -> float | None:
    return turn.energy.energy_gross_j if isinstance(turn.energy, energy.MeasuredEnergy) else None


def resolution_of(session: Session, baseline: str, phase: Phase, seed: int) -> Resolution | None:
    """The A/A pair of a session; None where one of the two died or was not resolved."""
    if baseline not in session.runs or TWIN not in session.runs:
        return None
    ratio = _ratio(
        rounds_of(session.runs[TWIN], phase, session.prepared),
        rounds_of(session.runs[baseline], phase, session.prepared),
        "cpu_s_per_token",
        seed,
    )
    if ratio is None:
        return None
    return Resolution(ratio, None if ratio.ci95 is None else max(abs(math.log(bound)) for bound in ratio.ci95))


def _ratio(rounds: Sequence[Round], others: Sequence[Round], cost: str, seed: int) -> st.PairedRatio | None:
    """The paired ratio of one cost; None where it is unknown, or noise swallowed it (a slope that is not positive)."""
    costs: list[float | None] = [getattr(one, cost) for one in rounds]
    other_costs: list[float | None] = [getattr(one, cost) for one in others]
    known = [value for value in costs + other_costs if value is not None and value > 0]
    if len(known) < len(costs) + len(other_costs):
        return None
    return st.paired_ratio(known[: len(costs)], known[len(costs) :], seed=seed)


def measurement_of(
    candidate: str,
    session: Session,
    phase: Phase,
    *,
    baseline: str,
    source: str | None,
    profile: Profile,
    seed: int,
    calibration: energy.Calibration | None = None,
) -> Measurement:
    """One row of the report.

    Args:
        candidate: whose.
        session: with its rounds.
        phase: which of its phases.
        baseline: candidate that ratios are against.
        source: the fp32 graph it was made from, where that is a candidate too.
        profile: rounds and windows.
        seed: of the bootstrap.
        calibration: watts of this machine for estimates.

    Raises:
        EnergyError: a decode cost that noise swallowed: a line over the output lengths that does not rise.
    """
    run, prepared = session.runs[candidate], session.prepared
    rounds = rounds_of(run, phase, prepared)
    if min(one.cpu_s_per_token for one in rounds) <= 0 or min(one.wall_s_per_token for one in rounds) <= 0:
        raise EnergyError(
            f"{prepared.workload.id}, {phase}: longer outputs did not cost more, so no cost per token can be had",
            hint="ask for more output_tokens, or use a longer profile",
        )
    latencies = [latency for turns in run.turns[phase] for turn in turns for latency in turn.latencies_s]
    cpu = [one.cpu_s_per_token for one in rounds]
    cpu_ci = st.mean_interval([math.log(cost) for cost in cpu])
    remarks = list(_remarks(run, session))
    ratios: dict[str, Ratio | None] = dict.fromkeys(("cpu_s_per_token", "latency_s", "j_per_token"))
    gate = resolution_of(session, baseline, phase, seed)
    if candidate != baseline and baseline in session.runs:
        base = rounds_of(session.runs[baseline], phase, prepared)
        for cost in ratios:
            ratios[cost] = _report_ratio(_ratio(rounds, base, cost, seed), baseline, remarks, cost)
        remarks += _gate_remarks(ratios["cpu_s_per_token"], gate)
    to_source = None
    if source is not None and source in session.runs:
        others = rounds_of(session.runs[source], phase, prepared)
        to_source = _report_ratio(_ratio(rounds, others, "cpu_s_per_token", seed), source, remarks, "cpu_s_per_token")
    joules = energy_figure(run, phase, prepared, rounds, calibration)
    is_measured = joules.result is not None and joules.result["kind"] == "measured"
    is_decode = phase == "decode"
    return Measurement(
        workload=prepared.workload.id,
        phase=phase,
        session=session.id,
        profile=profile.name,
        batch=prepared.workload.batch,
        threads=run.threads or session.threads,
        rounds=len(rounds),
        tokens=prepared.output_tokens[-1] * prepared.requests if is_decode else prepared.tokens,
        requests=prepared.requests,
        padding_ratio=prepared.padding_ratio,
        latency_s_p50=float(np.quantile(latencies, 0.5)),
        latency_s_p95=float(np.quantile(latencies, 0.95)),
        tokens_per_s=1 / median(one.wall_s_per_token for one in rounds),
        cpu_s_per_token=median(cpu),
        cpu_s_per_token_ci95=None if cpu_ci is None else Interval(low=math.exp(cpu_ci[0]), high=math.exp(cpu_ci[1])),
        cpu_s_per_token_ratio=ratios["cpu_s_per_token"],
        latency_ratio=ratios["latency_s"],
        cpu_s_per_token_ratio_to_source=to_source,
        energy_ratio=ratios["j_per_token"],
        peak_memory_bytes=run.peak_memory_bytes,
        energy=joules,
        valid=not is_measured or session.load is None or session.load.is_quiet,
        remarks=tuple(dict.fromkeys(remarks)),
    )


def _report_ratio(ratio: st.PairedRatio | None, against: str, remarks: list[str], cost: str) -> Ratio | None:
    if ratio is None:
        return None
    if ratio.intervals_disagree and ratio.ci95 is not None and ratio.bootstrap_ci95 is not None:
        low, high = ratio.bootstrap_ci95
        remarks.append(
            f"{cost} as a multiple of {against}'s: t-interval {ratio.ci95[0]:.3f} to {ratio.ci95[1]:.3f}, bootstrap "
            f"{low:.3f} to {high:.3f}; they differ by more than 20 % of the half width"
        )
    ci = None if ratio.ci95 is None else Interval(low=ratio.ci95[0], high=ratio.ci95[1])
    return Ratio(against=against, value=ratio.value, ci95=ci)


def _gate_remarks(ratio: Ratio | None, gate: Resolution | None) -> list[str]:
    if ratio is None:
        return []
    if gate is None or gate.bound is None:
        return ["no A/A interval: the baseline's twin could not be measured in this session"]
    if abs(math.log(ratio.value)) <= gate.bound:
        return [
            f"no difference to {ratio.against} is claimed: the ratio {ratio.value:.3f} lies within what the baseline "
            f"shows against itself in this session (factor {math.exp(gate.bound):.3f})"
        ]
    return []


def _remarks(run: Run, session: Session) -> list[str]:
    remarks = []
    if not run.is_steady:
        remarks.append("not steady after warm-up: the last three periods differed by more than 2 %")
    load = session.load
    if load is None:
        remarks.append("load by other processes is unknown here")
    elif not load.is_quiet:
        remarks.append(
            f"other processes used {load.other_share:.0%} of the processors and the hypervisor took "
            f"{load.steal_share:.1%} (limits 5 % and 1 %)"
        )
    return remarks


# Joules --------------------------------------------------------------------------------------------------------------


def energy_figure(
    run: Run,
    phase: Phase,
    prepared: PreparedWorkload,
    rounds: Sequence[Round],
    calibration: energy.Calibration | None = None,
) -> EnergyFigure:
    """Joules of a run: measured where a meter read every window, else estimated from CPU and wall seconds."""
    turns = [turn for taken in run.turns[phase] for turn in taken]
    readings = [turn.energy for turn in turns if turn.energy is not None]
    try:
        if readings:
            return _metered(turns, phase, prepared, rounds, energy.sum_energy(readings))
        return _estimated(turns, phase, prepared, rounds, calibration)
    except EnergyError as error:
        return EnergyFigure(result=None, reason=error.message)


def _estimated(
    turns: Sequence[Turn],
    phase: Phase,
    prepared: PreparedWorkload,
    rounds: Sequence[Round],
    calibration: energy.Calibration | None,
) -> EnergyFigure:
    """The model is linear in CPU and wall seconds, so the cost of one token can be put in as well as a total."""
    if phase == "decode":
        n_tokens = sum(turn.passes * turn.n_out for turn in turns) * prepared.requests
        cpu_s = n_tokens * float(np.mean([one.cpu_s_per_token for one in rounds]))
        wall_s = n_tokens * float(np.mean([one.wall_s_per_token for one in rounds]))
        work = energy.Work(n_generated_tokens=n_tokens)
    else:
        cpu_s, wall_s = sum(turn.cpu_s for turn in turns), sum(turn.wall_s for turn in turns)
        work = _input_work(turns, prepared)
    result = energy.estimate_with(calibration, cpu_s=cpu_s, wall_s=wall_s)
    return EnergyFigure(result=energy.to_json(result), reason=None, figures=_figures(result, work))


def _metered(
    turns: Sequence[Turn],
    phase: Phase,
    prepared: PreparedWorkload,
    rounds: Sequence[Round],
    total: energy.EnergyResult,
) -> EnergyFigure:
    record = energy.to_json(total)
    if isinstance(total, energy.InvalidEnergy):
        return EnergyFigure(result=record, reason=total.reason)
    if phase != "decode":
        return EnergyFigure(result=record, reason=None, figures=_figures(total, _input_work(turns, prepared)))
    if not isinstance(total, energy.MeasuredEnergy):
        return EnergyFigure(result=record, reason="a slope of joules needs measured windows")
    slopes = [one.j_per_token for one in rounds if one.j_per_token is not None]
    bounds = st.mean_interval(slopes)
    figures = {"j_per_generated_token": float(np.mean(slopes))}
    if bounds is not None:
        figures |= {"j_per_generated_token_low": bounds[0], "j_per_generated_token_high": bounds[1]}
    return EnergyFigure(result=record, reason=None, figures=figures)


def _input_work(turns: Sequence[Turn], prepared: PreparedWorkload) -> energy.Work:
    n_passes = sum(turn.passes for turn in turns)
    return energy.Work(
        n_input_tokens=n_passes * prepared.tokens,
        n_requests=n_passes * prepared.requests,
        n_input_bytes=None if prepared.input_bytes is None else n_passes * prepared.input_bytes,
    )


def _figures(result: energy.Energy, work: energy.Work) -> dict[str, float]:
    entries: Mapping[str, float] = {}
    for figure in energy.energy_figures(result, work):
        entries = {**entries, **figure.to_json()}
    return dict(entries)
