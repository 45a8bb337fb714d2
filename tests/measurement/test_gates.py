"""Figures that cannot be do not enter a report as figures."""

from __future__ import annotations

from typing import Any

import pytest
from made_up import measured, ratio

from compressor.measurement.gates import hold_to_gates
from compressor.schema.report import EnergyFigure, Measurement

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
