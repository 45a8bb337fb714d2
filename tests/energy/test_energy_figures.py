"""Energy per unit of work, cooling, carbon, break-even and the sanity gates, on numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
from fake_machine import domain, log
from hypothesis import given
from hypothesis import strategies as st

from compressor.energy import (
    CounterWindow,
    Cpu,
    EstimatedEnergy,
    EstimatedFigure,
    GridIntensity,
    HeatPump,
    Interval,
    MeasuredEnergy,
    MeasuredFigure,
    Pue,
    Work,
    break_even,
    carbon,
    energy_figures,
    estimate_energy,
    facility_energy,
    measured_from,
    padding_ratio,
    per_unit,
    units_per_joule,
)
from compressor.energy.sanity import REFERENCES, check_against, check_int8_saving, check_mean_power, check_rate
from compressor.errors import EnergyError


def measured(joules: float) -> MeasuredEnergy:
    window = CounterWindow((log(domain(), (0, 0), (36, round(joules * 1e6))),))
    return measured_from([window], meter="RAPL")


def estimated(low: float, value: float, high: float) -> EstimatedEnergy:
    made = estimate_energy(cpu_s=1, wall_s=1, cpu=Cpu("", None, 1, None))
    return dataclasses.replace(made, est_energy_gross_j=value, est_energy_gross_low_j=low, est_energy_gross_high_j=high)


NO_NUMBER = dataclasses.replace(
    estimated(1, 2, 3),
    est_energy_gross_j=None,
    est_energy_gross_low_j=None,
    est_energy_gross_high_j=None,
    reason="no band is known",
)
WORK = Work(n_input_tokens=7200, n_generated_tokens=1800, n_requests=100, n_input_bytes=36_000)


def test_measured_energy_is_divided_by_every_count() -> None:
    record: dict[str, float] = {}
    for figure in energy_figures(measured(3600), WORK):
        record |= figure.to_json()
    assert record == pytest.approx(
        {
            "j_per_input_token": 0.5,
            "input_tokens_per_j": 2.0,
            "j_per_generated_token": 2.0,
            "generated_tokens_per_j": 0.5,
            "j_per_request": 36.0,
            "wh_per_1000_requests": 10.0,  # 3,600 J = 1 Wh for 100 requests
            "j_per_1000_input_bytes": 100.0,
        }
    )


def test_estimated_figures_carry_their_band_under_keys_of_their_own() -> None:
    record: dict[str, float] = {}
    for figure in energy_figures(estimated(1800, 3600, 7200), WORK):
        assert isinstance(figure, EstimatedFigure)
        record |= figure.to_json()
    assert all(key.startswith("est_") for key in record)
    assert (record["est_j_per_request"], record["est_j_per_request_low"], record["est_j_per_request_high"]) == (
        36,
        18,
        72,
    )
    # The fewest tokens per joule go with the most joules.
    assert (record["est_input_tokens_per_j_low"], record["est_input_tokens_per_j_high"]) == (1.0, 4.0)


def test_figures_print_which_they_are() -> None:
    assert str(per_unit(estimated(1300, 1900, 4300), 1000, "j_per_request")) == "~1.9 (estimated, 1.3-4.3)"
    figure = per_unit(measured(3600), 100, "j_per_request")
    assert isinstance(figure, MeasuredFigure)
    assert str(figure).startswith("36 +-")


@pytest.mark.parametrize("n", [0, -3])
def test_no_or_negative_work_is_refused(n: int) -> None:
    with pytest.raises(EnergyError, match=f"j_per_request: energy cannot be divided by a count of {n}"):
        energy_figures(measured(1), Work(n_requests=n))
    with pytest.raises(EnergyError, match=f"the count is {n}"):
        units_per_joule(measured(1), n, "tokens_per_j")


def test_nothing_is_divided_where_there_is_nothing() -> None:
    with pytest.raises(EnergyError, match="no count of tokens, requests or bytes"):
        energy_figures(measured(1), Work())
    with pytest.raises(EnergyError, match="j_per_input_token: no number: no band is known"):
        energy_figures(NO_NUMBER, WORK)
    with pytest.raises(EnergyError, match="there is no net energy: no idle power was measured"):
        per_unit(measured(1), 1, "j_per_request", which="net")
    with pytest.raises(EnergyError, match="band reaches -1 J"):
        units_per_joule(estimated(-1, 2, 3), 1, "tokens_per_j")


@given(st.floats(0.1, 1e4), st.integers(1, 10**9))
def test_tokens_per_joule_is_the_inverse_of_joules_per_token(joules: float, n: int) -> None:
    energy = estimated(joules / 2, joules, joules * 2)
    one, other = per_unit(energy, n, "j_per_token"), units_per_joule(energy, n, "tokens_per_j")
    assert isinstance(one, EstimatedFigure) and isinstance(other, EstimatedFigure)
    assert one.est_value * other.est_value == pytest.approx(1)
    assert one.est_low * other.est_high == pytest.approx(1)


def test_the_padding_ratio_is_the_share_of_slots_without_a_token() -> None:
    assert padding_ratio(75, 100) == 0.25
    for n_real, n_slots in ((0, 10), (11, 10), (-1, 5)):
        with pytest.raises(EnergyError, match="do not fit"):
            padding_ratio(n_real, n_slots)


def test_cooling_by_pue_or_by_heat_and_cop() -> None:
    by_pue = facility_energy(measured(1000), Pue(1.2, "operator's report 2025"))
    assert by_pue.figure.to_json() == {"facility_j": 1200}
    assert by_pue.assumptions == ("PUE 1.2 (operator's report 2025)",)
    by_cop = facility_energy(estimated(500, 1000, 2000), HeatPump(4.0, "data sheet", heat_share=0.8))
    assert by_cop.figure.to_json() == pytest.approx(
        {"est_facility_j": 1200, "est_facility_j_low": 600, "est_facility_j_high": 2400}
    )
    assert "80% of the heat removed at COP 4, no distribution losses (data sheet)" in str(by_cop)


@pytest.mark.parametrize(
    ("cooling", "text"),
    [
        (Pue(0.9, "x"), "a PUE of 0.9 would mean that the building uses less"),
        (HeatPump(0.0, "x"), "removes no heat"),
        (HeatPump(3.0, "x", heat_share=2), "heat_share 2 is not a share"),
    ],
)
def test_cooling_that_cannot_be_is_refused(cooling: Pue | HeatPump, text: str) -> None:
    with pytest.raises(EnergyError, match=text):
        facility_energy(measured(1), cooling)


def test_carbon_is_energy_times_cooling_times_intensity() -> None:
    grid = GridIntensity(400, "DE", 2024, "a published table")
    located = carbon(measured(3.6e4), grid, Pue(1.5, "stated"))
    assert located.figure.to_json() == pytest.approx({"gco2e_location": 6.0})  # 0.01 kWh x 1.5 x 400 g
    assert located.assumptions == (
        "400 gCO2e/kWh, DE 2024, average, location-based (a published table)",
        "PUE 1.5 (stated)",
    )
    market = carbon(measured(3.6e4), dataclasses.replace(grid, g_per_kwh=0, basis="market"))
    assert market.figure.to_json() == {"gco2e_market": 0.0}
    assert market.assumptions[1] == "no cooling counted"
    with pytest.raises(EnergyError, match="grid intensity of -1"):
        carbon(measured(1), dataclasses.replace(grid, g_per_kwh=-1))


def test_break_even_is_cost_over_saving_with_the_interval_of_both() -> None:
    result = break_even(
        estimated(800, 1000, 1200), Interval(2, 1, 4), unit="requests", against="baseline", saving_is_estimated=False
    )
    assert (result.n, result.n_low, result.n_high, result.is_estimated) == (500, 200, 1200, True)
    assert str(result) == "after 500 requests (estimated) against baseline, 200 to 1,200"
    assert result.to_json()["est_break_even_requests"] == 500
    sure = break_even(measured(1000), Interval(2, 2, 2), unit="tokens", against="int8", saving_is_estimated=False)
    assert sure.to_json()["break_even_tokens"] == 500
    assert "estimated" not in str(sure)
    assert break_even(
        measured(1000), Interval(2, 2, 2), unit="tokens", against="int8", saving_is_estimated=True
    ).is_estimated


@pytest.mark.parametrize(
    ("saving", "text"),
    [
        (
            Interval(1, -0.5, 2),
            "no break-even shown against baseline: the interval of the saving, -0.5 to 2 J, includes zero",
        ),
        (Interval(0, 0, 0), "it uses more energy"),
        (Interval(-2, -3, -1), "it uses more energy, 2 J more for each of the requests"),
    ],
)
def test_no_break_even_is_shown_where_the_interval_includes_zero(saving: Interval, text: str) -> None:
    result = break_even(measured(1000), saving, unit="requests", against="baseline", saving_is_estimated=False)
    assert (result.n, result.n_low, result.n_high) == (None, None, None)
    assert text in str(result)
    assert result.to_json()["break_even_requests"] is None


def test_a_break_even_of_nothing_known_is_refused() -> None:
    with pytest.raises(EnergyError, match="the cost of compressing has no number: no band is known"):
        break_even(NO_NUMBER, Interval(1, 1, 1), unit="tokens", against="b", saving_is_estimated=True)
    with pytest.raises(EnergyError, match="outside its interval"):
        Interval(5, 1, 2)


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.15, "ok"), (1.9, "ok"), (2.1, "warn"), (0.009, "warn"), (21, "fail"), (0.0009, "fail")]
)
def test_a_figure_is_warned_of_beyond_ten_times_and_refused_beyond_a_hundred(value: float, verdict: str) -> None:
    assert check_against(REFERENCES["gpt2-fp32-2vcpu"], value) == verdict


def test_power_and_rate_must_agree() -> None:
    check_mean_power(80, idle_w=40, ceiling_w=200)
    for mean_w in (39, 201):
        with pytest.raises(EnergyError, match="is not between idle"):
            check_mean_power(mean_w, idle_w=40, ceiling_w=200)
    check_rate(0.5, 200, 100.9)
    with pytest.raises(EnergyError, match="energy and speed were not taken over the same work"):
        check_rate(0.5, 200, 102)


def test_int8_cannot_save_more_than_its_weights_shrink() -> None:
    check_int8_saving(0.2, 0.05)
    with pytest.raises(EnergyError, match="saves more than a factor of 4"):
        check_int8_saving(0.2, 0.04)
