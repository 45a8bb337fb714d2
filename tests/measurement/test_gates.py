"""Figures that cannot be do not enter a report as figures."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_up import measured, ratio

from compressor import energy
from compressor.measurement import judge as judging
from compressor.measurement.costs import energy_figure, rounds_of
from compressor.measurement.gates import hold_readings, hold_to_gates
from compressor.measurement.inputs import PreparedWorkload
from compressor.measurement.session import Run, Session, Turn
from compressor.schema.report import EnergyFigure, Measurement
from compressor.spec.evaluation import Workload

GPT2 = 124_000_000


def decoding(j_per_token: float, *, key: str = "est_j_per_generated_token", **parts: Any) -> Measurement:
    figure = EnergyFigure(result={"kind": "estimated"}, reason=None, figures={key: j_per_token})
    return measured(phase="decode", energy=figure, **parts)


def hold(row: Measurement, *, scheme: str = "fp32", parameters: int = GPT2, on_cpu: bool = True) -> Measurement:
    return hold_to_gates(row, scheme=scheme, parameters=parameters, on_cpu=on_cpu)


@pytest.mark.parametrize("joules", [0.02, 0.15, 1.9])
def test_near_the_reference_nothing_is_said(joules: float) -> None:
    assert hold(decoding(joules)) == decoding(joules)


@pytest.mark.parametrize("joules", [0.009, 2.1])
def test_ten_times_off_is_remarked_upon(joules: float) -> None:
    row = hold(decoding(joules))
    assert row.valid
    assert row.energy == decoding(joules).energy
    (remark,) = row.remarks
    assert f"estimated {joules:.3g} J per generated token lies more than 10 times off 0.1 to 0.2 J (GPT-2" in remark


@pytest.mark.parametrize("joules", [0.0009, 21.0])
def test_a_hundred_times_off_gives_no_joules_and_says_why(joules: float) -> None:
    row = hold(decoding(joules, key="j_per_generated_token"))
    assert not row.valid
    assert row.energy.result is None
    assert row.energy.figures == {}
    assert "J per generated token lies more than 100 times off" in (row.energy.reason or "")
    assert "estimated" not in (row.energy.reason or "")


def test_the_reference_grows_with_the_model_and_stops_where_overheads_decide() -> None:
    assert hold(decoding(15.0, key="j_per_generated_token"), parameters=100 * GPT2).remarks == ()
    tiny = decoding(1e-9)
    assert hold(tiny, parameters=9_999_999) == tiny
    assert hold(tiny, on_cpu=False) == tiny


def test_inputs_are_held_against_bert() -> None:
    figure = EnergyFigure(result={}, reason=None, figures={"est_j_per_input_token": 0.008})
    row = measured(phase="forward", energy=figure)
    assert hold(row, parameters=110_000_000) == row  # 1.02 J for 128 tokens


def test_eight_bit_decoding_below_a_quarter_is_refused() -> None:
    too_good = decoding(0.1, source=ratio(0.2, (0.19, 0.21), "onnx"))
    row = hold(too_good, scheme="w8a8-dynamic")
    assert not row.valid
    assert "8-bit weights cannot cut the cost of decoding below a quarter, and 0.200 of that of onnx" in row.remarks[0]
    assert hold(too_good, scheme="fp16") == too_good
    unsure = decoding(0.1, source=ratio(0.24, (0.2, 0.28), "onnx"))
    assert hold(unsure, scheme="w8") == unsure


# Readings


PACKAGE = energy.Domain(
    "package-0",
    energy.Scope.CPU_PACKAGE,
    energy.Provenance.DEVICE_COUNTER,
    energy.Quantity.ENERGY,
    Fraction(1, 1_000_000),
    0.001,
    100.0,
)


def counted(value_j: float, wall_s: float) -> energy.DomainLog:
    return energy.DomainLog(PACKAGE, ((0, 0), (round(wall_s * 1e9), round(value_j * 1e6))))


def reading(value_j: float, wall_s: float = 1.0, idle_j: tuple[float, float] = (20.0, 20.2)) -> energy.MeasuredEnergy:
    before, after = (counted(one, 1.0) for one in idle_j)
    taken = energy.measured_from([energy.CounterWindow((counted(value_j, wall_s),))], meter="RAPL")
    return energy.with_idle(taken, [before], [after])


def held(*readings: energy.EnergyResult, n_out: int = 0) -> tuple[list[energy.EnergyResult | None], EnergyFigure]:
    """Rounds of one second each, in which two passes over 100 tokens were done; what a report makes of them."""
    turns = [[Turn(n_out, 2, 1.0, 1.0, (0.5, 0.5), one)] for one in readings]
    prepared = PreparedWorkload(Workload(id="rows", from_data=True), "forward", Path("x"), 4, 100, 0.0, None, ())
    made = hold_readings(Session("s", prepared, 1, {"teacher": Run({"forward": turns})}, (), None))
    run = made.runs["teacher"]
    figure = energy_figure(run, "forward", prepared, rounds_of(run, "forward", prepared))
    return [turn.energy for (turn,) in run.turns["forward"]], figure


def test_a_reading_over_the_work_and_between_idle_and_ceiling_stands() -> None:
    kept, figure = held(reading(50.0, 1.009), reading(99.0))
    assert kept == [reading(50.0, 1.009), reading(99.0)]
    assert figure.figures["j_per_input_token"] == pytest.approx(149 / 400)


def test_energy_read_over_another_time_than_the_work_is_refused() -> None:
    """Five seconds of joules booked to one second of work: J/token x tokens/s is not the mean power."""
    (kept,), figure = held(reading(250.0, 5.0))
    assert isinstance(kept, energy.InvalidEnergy) and kept.windows
    assert kept.reason == (
        "1.25 J/token x 200 tokens/s is 250 W, but the mean power was 50 W; energy and speed were not taken over the "
        "same work"
    )
    assert (figure.figures, figure.reason) == ({}, kept.reason)
    (slightly,), _ = held(reading(50.0, 1.02))
    assert isinstance(slightly, energy.InvalidEnergy)


def test_a_mean_power_below_both_idles_is_refused() -> None:
    (kept,), _ = held(reading(19.9))
    assert isinstance(kept, energy.InvalidEnergy)
    assert kept.reason == "a mean power of 19.9 W is not between idle (20 W) and 100 W"
    (between,), _ = held(reading(20.1))
    assert isinstance(between, energy.MeasuredEnergy)


def test_idles_that_say_nothing_refuse_nothing() -> None:
    (frozen,), _ = held(reading(15.0, idle_j=(0.0, 20.0)))
    assert isinstance(frozen, energy.MeasuredEnergy)


def test_one_reading_that_cannot_be_takes_the_joules_of_its_run_and_no_more() -> None:
    kept, figure = held(reading(50.0), reading(10.0), reading(51.0))
    assert [type(one) for one in kept] == [energy.MeasuredEnergy, energy.InvalidEnergy, energy.MeasuredEnergy]
    assert figure.result is not None and figure.result["kind"] == "invalid"
    assert "not between idle" in (figure.reason or "")


def test_judging_holds_the_sessions_it_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `judge` hands on has been through the gate."""
    turns = [[Turn(0, 2, 1.0, 1.0, (0.5,), reading(250.0, 5.0))]]
    prepared = PreparedWorkload(Workload(id="rows", from_data=True), "forward", Path("x"), 4, 100, 0.0, None, ())
    session = Session("s", prepared, 1, {"teacher": Run({"forward": turns})}, (), None)
    monkeypatch.setattr(judging, "run_sessions", lambda *args, **named: ([session], []))
    monkeypatch.setattr(judging, "load_tokenizer", lambda path: None)
    suite = SimpleNamespace(workloads=(), profile=None, seed=0)
    work: Any = SimpleNamespace(
        suite=suite, test=SimpleNamespace(rows=[]), jobs={}, baseline="teacher", folder=Path("x"), emit=None
    )
    content = SimpleNamespace(files={})
    alive: Any = [SimpleNamespace(id="teacher", checkpoint=SimpleNamespace(path=Path("x"), content=content))]
    (found,), _ = judging._measure_costs(work, alive, [PACKAGE])
    assert isinstance(found.runs["teacher"].turns["forward"][0][0].energy, energy.InvalidEnergy)
