"""Exports: each format's own required fields and words, and no estimate in the place of a measurement.

BoAmps is held to its own schemas; test_bom_schema.py has those of SPDX and CycloneDX.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finished import finished, values
from jsonschema import Draft4Validator, Draft202012Validator
from jsonschema.protocols import Validator
from referencing import Registry
from referencing.jsonschema import DRAFT4

from compressor.errors import UserError
from compressor.integrations.boamps import boamps_inference, boamps_training
from compressor.integrations.bom import cyclonedx, spdx
from compressor.integrations.energy_facts import J_PER_KWH, amount_of, chosen, inference, making
from compressor.integrations.exports import FORMATS, export_results
from compressor.integrations.prometheus import HELP, prometheus
from compressor.integrations.sci import sci_inputs
from compressor.render.card import model_card
from compressor.schema.report import EnergyFigure, read_report

SMOKE = Path(__file__).parents[1] / "render" / "smoke_report.json"
ESTIMATED, MEASURED = finished(), finished(measured=True)
CARBON = {"g_per_kwh": 400.0, "year": 2024, "source": "somebody"}


def with_carbon() -> dict[str, Any]:
    return values()["pipeline"] | {"energy": {"carbon": CARBON}}


# The one shape that all exports read ------------------------------------------------------------------------------


def test_only_the_stages_that_were_needed_are_paid_for() -> None:
    report = ESTIMATED.model_copy(update={"selected": "teacher"})
    assert [one.stage for one in making(report, chosen(report))] == ["teacher"]
    assert [one.stage for one in making(ESTIMATED, chosen(ESTIMATED))] == ["teacher", "int8"]


def test_a_thousand_requests_in_joules() -> None:
    [estimated] = inference(chosen(ESTIMATED))
    assert not isinstance(estimated.energy, str)
    assert estimated.energy.j == pytest.approx(2.6666667)
    assert (estimated.energy.low_j, estimated.energy.high_j) == pytest.approx((1.8333333, 6.5555556))
    assert estimated.energy.text.startswith(
        "ESTIMATED, not measured (spec_share/1, VM share".replace("VM share", "vm_share")
    )
    [measured] = inference(chosen(MEASURED))
    assert not isinstance(measured.energy, str)
    assert (measured.energy.kind, measured.energy.j, measured.energy.plus_minus_j) == ("measured", 7200.0, 144.0)


def test_a_simulated_figure_leaves_the_toolkit_nowhere() -> None:
    simulated = {"kind": "measured", "provenance": "simulated"}
    assert amount_of(EnergyFigure(result=simulated, reason=None)) == "simulated by a stand-in for a meter"


def test_a_session_that_is_not_valid_gives_no_energy() -> None:
    found = values()["candidates"]
    for candidate in found:
        for row in candidate["measurements"]:
            row |= {"valid": False, "remarks": ["disturbed"]}
    report = finished(measured=True, candidates=found)
    with pytest.raises(UserError, match=r"no energy of int8 to export: rows \(forward\): the session is not valid"):
        boamps_inference(report)


def test_a_run_that_selected_nothing_has_nothing_to_export() -> None:
    report = finished(selected=None, selected_reason="no candidate keeps the quality goals")
    for name in set(FORMATS) - {"prometheus"}:
        with pytest.raises(UserError, match="nothing to export: no candidate was selected"):
            export_results(report, name)
    with pytest.raises(UserError, match="there is no format 'pdf'\n  -> one of: boamps"):
        export_results(report, "pdf")


# BoAmps -----------------------------------------------------------------------------------------------------------


def boamps_faults(found: dict[str, Any], dialect: type[Validator]) -> list[str]:
    """What the format's published schemas have against a report; also a property that none of them knows."""
    schemas = json.loads((Path(__file__).parent / "boamps.schema.json").read_text())["schemas"]
    parts = [DRAFT4.create_resource(schema) for schema in schemas]
    named = [(schema["id"], part) for schema, part in zip(schemas, parts, strict=True)]
    check = dialect(schemas[0], registry=Registry[Any]().with_resources(named))
    known = {name for schema in schemas for name in property_names(schema)}
    faults = [f"{error.json_path}: {error.message}" for error in check.iter_errors(found)]
    return faults + [f"{name} is no property of the format" for name in sorted(keys_of(found) - known)]


def property_names(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for name, part in schema.get("properties", {}).items():
            yield name
            yield from property_names(part)


def keys_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


DIALECTS = [Draft4Validator, Draft202012Validator]
"""The one that the schemas name, and the one that the format's own validator uses."""


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("export", [boamps_inference, boamps_training])
@pytest.mark.parametrize("report", [ESTIMATED, MEASURED], ids=["estimated", "measured"])
def test_boamps_keeps_its_published_schemas(export: Any, report: Any, dialect: type[Validator]) -> None:
    found = export(report)
    assert boamps_faults(found, dialect) == []
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", found["header"]["reportDatetime"])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_boamps_schemas_refuse_what_is_wrong(dialect: type[Validator]) -> None:
    found = boamps_inference(ESTIMATED)
    del found["task"]["dataset"][0]["dataType"]
    found["measures"][0]["powerConsumption"] = "little"
    found["infrastructure"]["components"][0]["nbComponent"] = 1.5
    found["energyUsed"] = 1
    texts = "\n".join(boamps_faults(found, dialect))
    for fault in ("'dataType' is a required", "'little' is not of type 'number'", "1.5 is not of", "energyUsed is no"):
        assert fault in texts


def test_boamps_calls_an_estimate_one() -> None:
    estimated, measured = boamps_inference(ESTIMATED), boamps_inference(MEASURED)
    assert estimated["measures"][0]["measurementMethod"].startswith("joule-compressor: ESTIMATED, not measured")
    assert (estimated["measures"][0]["cpuTrackingMode"], estimated["quality"]) == ("constant", "low")
    assert measured["measures"][0]["measurementMethod"].startswith("joule-compressor: measured (rapl")
    assert (measured["measures"][0]["cpuTrackingMode"], measured["quality"]) == ("rapl", "high")
    assert measured["measures"][0]["powerConsumption"] == pytest.approx(0.002)
    assert measured["task"]["nbRequest"] == 1000


def test_boamps_names_what_its_sum_leaves_out() -> None:
    assert "NOT in the sum: int8: made elsewhere" in boamps_training(ESTIMATED)["task"]["taskDescription"]
    assert boamps_training(MEASURED)["measures"][0]["powerConsumption"] == pytest.approx(2 * 7200 / J_PER_KWH)
    assert boamps_training(ESTIMATED)["task"]["taskStage"] == "finetuning"


# Bills of materials -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("report", [ESTIMATED, MEASURED], ids=["estimated", "measured"])
def test_cyclonedx_marks_every_figure(report: Any) -> None:
    found = cyclonedx(report)
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    [component] = found["components"]
    assert component["type"] == "machine-learning-model"
    environmental = component["modelCard"]["considerations"]["environmentalConsiderations"]
    entries = environmental["energyConsumptions"]
    assert {entry["activity"] for entry in entries} <= {"training", "fine-tuning", "inference", "other"}
    kind = "measured" if report is MEASURED else "estimated"
    for entry in entries:
        assert set(entry["energyProviders"][0]) >= {"organization", "energySource", "energyProvided"}
        assert entry["activityEnergyCost"]["unit"] == "kWh"
        assert {"name": "joule-compressor:energy:provenance", "value": kind} in entry["properties"]
        assert entry["energyProviders"][0]["description"].endswith(f"the figure is {kind}")
        assert "co2CostEquivalent" not in entry
    if report is ESTIMATED:
        [left_out] = environmental["properties"]
        assert left_out["value"] == "stage int8 (quantize): no energy: made elsewhere"


def test_cyclonedx_has_carbon_only_with_a_factor() -> None:
    found = cyclonedx(finished(measured=True, pipeline=with_carbon()))
    card = found["components"][0]["modelCard"]["considerations"]["environmentalConsiderations"]
    entry = card["energyConsumptions"][-1]
    assert entry["co2CostEquivalent"] == {"value": pytest.approx(0.002 * 400 / 1e6), "unit": "tCO2eq"}
    assert any("somebody" in part["value"] for part in entry["properties"])


def test_spdx_takes_no_estimate() -> None:
    package = next(one for one in spdx(ESTIMATED)["@graph"] if one["type"] == "ai_AIPackage")
    assert "ai_energyConsumption" not in package
    assert package["comment"].count("ESTIMATED, not measured") == 2
    assert "stage int8 (quantize): no energy: made elsewhere." in package["comment"]


def test_spdx_states_what_was_measured() -> None:
    graph = spdx(MEASURED)["@graph"]
    package = next(one for one in graph if one["type"] == "ai_AIPackage")
    one = {"type": "ai_EnergyConsumptionDescription", "ai_energyQuantity": 0.002, "ai_energyUnit": "kilowattHour"}
    assert package["ai_energyConsumption"] == {
        "type": "ai_EnergyConsumption",
        "ai_finetuningEnergyConsumption": [one],
        "ai_inferenceEnergyConsumption": [one],
    }
    ids = {element.get("spdxId") for element in graph}
    document = next(element for element in graph if element["type"] == "SpdxDocument")
    assert set(document["element"]) <= ids and document["rootElement"] == [package["spdxId"]]
    creation = graph[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", creation["created"]) and creation["createdBy"][0] in ids


# SCI --------------------------------------------------------------------------------------------------------------


def test_sci_gives_inputs_and_never_a_score() -> None:
    bare, with_factor = sci_inputs(ESTIMATED), sci_inputs(finished(pipeline=with_carbon()))
    assert bare["I_g_per_kwh"] is None and bare["I_reason"]
    assert with_factor["I_g_per_kwh"] == 400.0
    for found in (bare, with_factor):
        assert found["score"] is None and found["M_g"] is None and found["M_reason"] in found["score_reason"]
        assert "E_kwh" not in found["inputs"][0] and found["inputs"][0]["est_E_kwh"] > 0
    assert sci_inputs(MEASURED)["inputs"][0]["E_kwh"] == pytest.approx(0.002)


# Prometheus -------------------------------------------------------------------------------------------------------

LINE = re.compile(r'([a-z_]+)\{((?:[a-z_]+="(?:[^"\\\n]|\\[\\"n])*",?)*)\} (-?[0-9.e+-]+)')


@pytest.mark.parametrize("report", [ESTIMATED, MEASURED], ids=["estimated", "measured"])
def test_prometheus_lines_are_well_formed_and_unique(report: Any) -> None:
    lines = [line for line in prometheus(report).splitlines() if not line.startswith("#")]
    parsed = [LINE.fullmatch(line) for line in lines]
    assert all(parsed)
    assert len({line.rpartition(" ")[0] for line in lines}) == len(lines)
    assert {found.group(1) for found in parsed if found} <= set(HELP)
    joules = {found.group(1) for found in parsed if found and "joules" in found.group(1)}
    assert joules and all(name.startswith("compressor_est_") is (report is ESTIMATED) for name in joules)


def test_prometheus_escapes_what_a_user_may_call_a_run() -> None:
    text = prometheus(finished(name='a "b"\nc'))
    assert 'run="a \\"b\\"\\nc"' in text


def test_every_format_is_text() -> None:
    for name in FORMATS:
        text = export_results(MEASURED, name)
        assert text.endswith("\n")
        if name != "prometheus":
            json.loads(text)


def test_folders_that_were_measured_without_a_pipeline_are_exported_too() -> None:
    report = finished(measured=True, pipeline={})
    for name in FORMATS:
        assert export_results(report, name)


def test_no_export_claims_that_a_law_is_kept_or_borrows_the_name_of_a_score() -> None:
    claims = re.compile(r"compl(?:y|ies|iant|iance)\b|\bAI Act\b|energy score|\bregulation", re.IGNORECASE)
    assert claims.search("This model complies with the AI Act.")
    texts = {name: export_results(report, name) for name in FORMATS for report in (ESTIMATED, MEASURED)}
    texts["card"] = model_card(read_report(SMOKE))
    assert [name for name, text in texts.items() if claims.search(text)] == []
