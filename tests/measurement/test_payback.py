"""Break-even, cooling and carbon from sessions whose joules are made up, so that every number can be worked out."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from made_up import candidate, measured, report

from compressor import energy
from compressor.measurement.assumed import assumed_figures
from compressor.measurement.inputs import PreparedWorkload
from compressor.measurement.payback import Comparison, alternatives_to, paybacks
from compressor.measurement.session import TWIN, Run, Session, Turn
from compressor.render import markdown
from compressor.schema.report import EnergyFigure, Payback, StageCost
from compressor.spec.evaluation import Energy, Workload
from compressor.spec.pipeline import Pipeline

SESSION = "s/rows"
PACKAGE = energy.Domain(
    "package-0",
    energy.Scope.CPU_PACKAGE,
    energy.Provenance.DEVICE_COUNTER,
    energy.Quantity.ENERGY,
    Fraction(1, 1_000_000),
    0.001,
    1000.0,
)
WIGGLE = (1.0, 1.01, 0.99, 1.005, 0.995)
PIPELINE = Pipeline.model_validate(
    {
        "version": 1,
        "name": "p",
        "seed": 0,
        "model": {"path": "m", "task": "sequence-classification"},
        "data": {"train": {"path": "a.jsonl"}, "validation": {"path": "b.jsonl"}, "test": {"path": "c.jsonl"}},
        "workloads": [{"id": "rows", "batch": 8, "from_data": True}],
        "stages": [
            {"id": "teacher", "stage": "finetune"},
            {"id": "student", "stage": "distill", "layers": [1], "teacher": "teacher"},
            {"id": "onnx", "stage": "export"},
            {"id": "int8", "stage": "quantize", "scheme": "w8a8-dynamic"},
            {"id": "big-onnx", "stage": "export", "from": "teacher"},
            {"id": "big-int8", "stage": "quantize", "scheme": "w8a8-dynamic"},
        ],
    }
)


def joules(value_j: float) -> energy.MeasuredEnergy:
    log = energy.DomainLog(PACKAGE, ((0, 0), (1_000_000_000, round(value_j * 1e6))))
    return energy.measured_from([energy.CounterWindow((log,))], meter="RAPL")


def run(cpu_s_per_request: float, j_per_request: float | None) -> Run:
    """Five rounds of ten passes over two rows of 50 tokens each; with CPU time goes as much wall time."""
    turns = []
    for wiggle in WIGGLE:
        cpu_s = 20 * cpu_s_per_request * wiggle
        reading = None if j_per_request is None else joules(20 * j_per_request * wiggle)
        turns.append([Turn(0, 10, cpu_s, cpu_s, (cpu_s / 10,), reading)])
    return Run({"forward": turns})


def session(*, is_measured: bool = True, **costs: float) -> Session:
    """One request of each candidate takes so many joules (and hundredths of a CPU-second)."""
    runs = {id_.replace("_", "-"): run(cost / 100, cost if is_measured else None) for id_, cost in costs.items()}
    runs[TWIN] = run(costs["teacher"] / 100, costs["teacher"] if is_measured else None)
    workload = Workload(id="rows", batch=2, from_data=True)
    prepared = PreparedWorkload(workload, "forward", Path("x"), 2, 100, 0.0, None, ())
    return Session(SESSION, prepared, 1, runs, (), None)


def stage_cost(stage: str, value_j: float | None, reason: str | None = None) -> StageCost:
    result = None if value_j is None else energy.to_json(joules(value_j))
    return StageCost(
        stage=stage, wall_s=1.0, cpu_s=1.0, energy=EnergyFigure(result=result, reason=reason), skipped=False
    )


COSTS = tuple(
    stage_cost(id_, value)
    for id_, value in {"teacher": 500, "student": 300, "onnx": 2, "int8": 1, "big-onnx": 4, "big-int8": 3}.items()
)


def rows(cost: float) -> dict[str, Any]:
    return {"measurements": (measured(cpu_s_per_token=cost, session=SESSION),)}


def find(
    made: Session,
    *,
    alternatives: tuple[str, ...] = (),
    costs: tuple[StageCost, ...] = COSTS,
    is_shown: bool = True,
    calibration: energy.Calibration | None = None,
) -> dict[tuple[str, str], Payback]:
    others = tuple(candidate(id_, **rows(1e-3)) for id_ in alternatives)
    compared = Comparison(candidate("int8", **rows(1e-4)), candidate("teacher", **rows(1e-2)), others, calibration)
    found = paybacks(compared, [made], costs, pipeline=PIPELINE, is_shown=is_shown, seed=0)
    return {(one.role, one.unit): one for one in found}


def test_the_stages_that_the_baseline_did_not_need_are_paid_back_by_what_a_request_saves() -> None:
    found = find(session(teacher=2.0, int8=0.5))
    by_request = found["baseline", "requests"]
    assert by_request.stages == ("int8", "onnx", "student")  # the teacher is the baseline itself
    assert by_request.figures["break_even_requests"] == 202  # 303 J / 1.5 J
    low, high = by_request.figures["break_even_requests_low"], by_request.figures["break_even_requests_high"]
    assert 195 < low < 202 < high < 210
    assert by_request.text.startswith("after 202 requests against teacher, ")
    by_token = found["baseline", "input tokens"]
    assert by_token.figures["break_even_input_tokens"] == 202 * 50  # 50 tokens a row


def test_against_an_alternative_only_what_it_did_not_need_is_paid_back() -> None:
    found = find(session(teacher=2.0, int8=0.5, big_int8=0.8), alternatives=("big-int8",))
    against = found["cheapest alternative", "requests"]
    assert (against.against, against.stages) == ("big-int8", ("int8", "onnx", "student"))
    assert against.figures["break_even_requests"] == 1010  # 303 J / 0.3 J


def test_an_alternative_that_costs_less_to_run_is_said_to() -> None:
    found = find(session(teacher=2.0, int8=0.5, big_int8=0.2), alternatives=("big-int8",))
    against = found["cheapest alternative", "requests"]
    assert against.figures == {}
    assert "no break-even shown against big-int8: it uses more energy, 0.3 J more" in against.text


def test_a_stage_of_the_winner_has_nothing_to_pay_back_against_its_child() -> None:
    found = find(session(teacher=2.0, int8=0.5, onnx=0.8), alternatives=("onnx",))
    assert found["cheapest alternative", "requests"].figures["break_even_requests"] == 4  # 1 J / 0.3 J


def test_a_difference_within_the_noise_is_not_shown() -> None:
    made = session(teacher=1.0, int8=0.999)
    noisy = [[replace(turns[0], energy=joules(20 * j))] for turns, j in zip(
        made.runs["int8"].turns["forward"], (1.05, 0.94, 1.03, 0.97, 1.0), strict=True
    )]  # fmt: skip
    made.runs["int8"].turns["forward"] = noisy
    text = find(made)["baseline", "requests"].text
    assert text.startswith("no break-even shown against teacher: the interval of the saving, -")
    assert text.endswith("includes zero")


def test_estimates_say_so_in_words_and_keys_and_are_wider() -> None:
    estimated = tuple(
        cost.model_copy(
            update={
                "energy": EnergyFigure(
                    result=energy.to_json(energy.estimate_energy(cpu_s=1.0, wall_s=1.0)), reason=None
                )
            }
        )
        for cost in COSTS
    )
    found = find(session(is_measured=False, teacher=2.0, int8=0.5), costs=estimated)["baseline", "requests"]
    assert set(found.figures) == {
        "est_break_even_requests",
        "est_break_even_requests_low",
        "est_break_even_requests_high",
    }
    # Three stages of one CPU-second each over 0.015 CPU-seconds a request, whatever the watts.
    assert found.figures["est_break_even_requests"] == pytest.approx(200, abs=1)
    assert found.figures["est_break_even_requests_high"] > 210
    assert "requests (estimated) against teacher" in found.text


def test_a_calibration_estimates_cost_and_saving_alike() -> None:
    """Stages without joules of their own: 3 CPU-seconds and as many seconds, over 0.015 of each for a request."""
    line = energy.Calibration(idle_w=20.0, dynamic_w=40.0, band=0.02, n_vcpu=2, n_readings=3, cpu="x")
    unread = tuple(stage_cost(cost.stage, None, "resumed") for cost in COSTS)
    made = session(is_measured=False, teacher=2.0, int8=0.5)
    narrow = find(made, costs=unread, calibration=line)["baseline", "requests"].figures
    wide = find(made, costs=unread)["baseline", "requests"].figures
    assert narrow["est_break_even_requests"] == pytest.approx(200, abs=1)
    assert wide["est_break_even_requests_high"] > narrow["est_break_even_requests_high"] > 200


def test_a_measured_saving_does_not_pay_back_an_estimated_cost_of_another_scope() -> None:
    costs = (*COSTS[:1], stage_cost("student", None, "resumed"), *COSTS[2:])
    text = find(session(teacher=2.0, int8=0.5), costs=costs)["baseline", "requests"].text
    assert text.startswith("no break-even shown against teacher: ")
    assert "overlap and are never added" in text


def test_a_stage_of_unknown_cost_and_a_short_profile_show_nothing() -> None:
    made = session(teacher=2.0, int8=0.5)
    assert "what student took is unknown" in find(made, costs=COSTS[2:])["baseline", "requests"].text
    assert "this profile is too short for any claim" in find(made, is_shown=False)["baseline", "requests"].text


def test_alternatives_keep_quality_and_are_neither_winner_nor_baseline() -> None:
    all_of_them = [candidate(id_) for id_ in ("teacher", "onnx", "int8", "bad")]
    kept = alternatives_to("int8", "teacher", all_of_them, lambda one: one.id != "bad")
    assert [one.id for one in kept] == ["onnx"]


# Cooling and carbon


def test_cooling_and_carbon_bring_their_assumptions() -> None:
    section = Energy.model_validate(
        {
            "pue": 1.5,
            "pue_source": "operator",
            "carbon": {
                "g_per_kwh": 36,
                "region": "FR",
                "year": 2024,
                "source": "grid operator",
                "market_g_per_kwh": 0,
                "market_source": "contract",
            },
        }
    )
    figure = EnergyFigure(result=energy.to_json(joules(100.0)), reason=None, figures={"j_per_request": 2.0})
    winner = candidate("int8", measurements=(measured(energy=figure),))
    facility, carbon = assumed_figures(section, [winner], COSTS)
    assert [one.of for one in facility] == ["compressing, all stages", "one request of int8 (rows, forward)"]
    assert facility[0].figures == {"facility_j": pytest.approx(810 * 1.5)}
    assert facility[1].figures == {"facility_j_per_request": pytest.approx(3.0)}
    assert facility[1].assumptions == ("PUE 1.5 (operator)",)
    assert [list(one.figures) for one in carbon] == [
        ["gco2e_location"],
        ["gco2e_location_per_request"],
        ["gco2e_market"],
        ["gco2e_market_per_request"],
    ]
    assert carbon[0].figures["gco2e_location"] == pytest.approx(810 * 1.5 * 36 / 3.6e6)
    assert "36 gCO2e/kWh, FR 2024, average, location-based (grid operator); PUE 1.5 (operator)" in carbon[0].text


def test_a_cooling_plant_by_its_cop_is_printed_with_its_assumption() -> None:
    """810 J of stages, of which the plant carries out 80 % at 4 J of heat a joule: 810 J x (1 + 0.8 / 4)."""
    section = Energy(cop=4.0, cop_source="data sheet", heat_share=0.8)
    figure = EnergyFigure(result=energy.to_json(joules(100.0)), reason=None, figures={"j_per_request": 2.0})
    winner = candidate("int8", measurements=(measured(energy=figure),))
    facility, carbon = assumed_figures(section, [winner], COSTS)
    assert carbon == ()
    assert [one.figures for one in facility] == [
        {"facility_j": pytest.approx(972.0)},
        {"facility_j_per_request": pytest.approx(2.4)},
    ]
    text = markdown(report(facility=facility))
    assert (
        "compressing, all stages: 972 +-1 J [80% of the heat removed at COP 4, no distribution losses (data sheet)]"
        in text
    )


def test_without_factors_there_is_neither() -> None:
    assert assumed_figures(Energy(), [], COSTS) == ((), ())


def test_a_report_prints_them() -> None:
    (shown,) = (one for key, one in find(session(teacher=2.0, int8=0.5)).items() if key == ("baseline", "requests"))
    facility, carbon = assumed_figures(Energy(pue=1.5, pue_source="operator"), [], COSTS)
    text = markdown(report(payback=(shown,), facility=facility, carbon=carbon))
    assert "## Break-even of int8" in text
    assert "after 202 requests against teacher" in text
    assert "[PUE 1.5 (operator)]" in text
