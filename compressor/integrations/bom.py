"""Bills of materials: the energy part of a CycloneDX 1.6 ML-BOM and of an SPDX 3.0.1 AI package.

CycloneDX lets every energy entry carry properties, so an estimate may enter with `provenance: estimated`. The energy
of SPDX is a bare number: there only measured energy enters, and an estimate stands in the comment, in words.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from compressor.integrations.energy_facts import (
    PER_REQUESTS,
    TRAINING_KINDS,
    Amount,
    chosen,
    grid_factor,
    inference,
    making,
    training_activity,
)
from compressor.schema.report import Candidate, Report

PREFIX = "joule-compressor:energy"


def cyclonedx(report: Report) -> dict[str, Any]:
    """A CycloneDX 1.6 document with the selected candidate as its one component."""
    candidate = chosen(report)
    entries, left_out = _energy_entries(report, candidate)
    consumptions = [_consumption(report, *entry) for entry in entries]
    environmental: dict[str, Any] = {}
    if consumptions:
        environmental["energyConsumptions"] = consumptions
    if left_out:
        environmental["properties"] = [_property("left-out", text) for text in left_out]
    card: dict[str, Any] = {
        "modelParameters": _parameters(report),
        "quantitativeAnalysis": {"performanceMetrics": _metrics(candidate)},
        "considerations": {"environmentalConsiderations": environmental},
    }
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": report.created,
            "tools": {
                "components": [
                    {"type": "application", "name": "joule-compressor", "version": version("joule-compressor")}
                ]
            },
        },
        "components": [
            {
                "type": "machine-learning-model",
                "bom-ref": f"model-{candidate.digest}",
                "name": f"{report.name}/{candidate.id}",
                "version": candidate.digest,
                "modelCard": card,
            }
        ],
    }


def spdx(report: Report) -> dict[str, Any]:
    """An SPDX 3.0.1 document with the selected candidate as an AI package."""
    candidate = chosen(report)
    entries, left_out = _energy_entries(report, candidate)
    slots = {"training": "ai_trainingEnergyConsumption", "fine-tuning": "ai_finetuningEnergyConsumption"}
    consumption: dict[str, Any] = {}
    notes = []
    for activity, what, energy in entries:
        slot = {**slots, "inference": "ai_inferenceEnergyConsumption"}.get(activity)
        if energy.kind == "measured" and slot is not None:
            consumption.setdefault(slot, []).append(
                {
                    "type": "ai_EnergyConsumptionDescription",
                    "ai_energyQuantity": energy.kwh,
                    "ai_energyUnit": "kilowattHour",
                }
            )
            notes.append(f"{what}: {energy.kwh:.3g} kWh, {energy.text}, in {slot}.")
        else:
            notes.append(f"{what}: {energy.kwh:.3g} kWh, {energy.text}; not among the energy fields.")
    notes.extend(f"{text}." for text in left_out)
    package: dict[str, Any] = {
        "type": "ai_AIPackage",
        "spdxId": f"urn:joule-compressor:model:{candidate.digest}",
        "creationInfo": "_:creation",
        "name": f"{report.name}/{candidate.id}",
        "software_packageVersion": candidate.digest,
        "ai_metric": [
            {"type": "DictionaryEntry", "key": f"{row.metric} ({row.split})", "value": repr(row.value)}
            for row in candidate.quality
        ],
        "comment": "\n".join(["Energy, with its provenance:", *notes]),
    }
    if consumption:
        package["ai_energyConsumption"] = {"type": "ai_EnergyConsumption", **consumption}
    agent = "urn:joule-compressor:agent"
    return {
        "@context": "https://spdx.org/rdf/3.0.1/spdx-context.jsonld",
        "@graph": [
            {
                "type": "CreationInfo",
                "@id": "_:creation",
                "specVersion": "3.0.1",
                "created": f"{report.created[:19]}Z",
                "createdBy": [agent],
            },
            {
                "type": "SoftwareAgent",
                "spdxId": agent,
                "creationInfo": "_:creation",
                "name": f"joule-compressor {version('joule-compressor')}",
            },
            package,
            {
                "type": "SpdxDocument",
                "spdxId": f"urn:joule-compressor:document:{candidate.digest}",
                "creationInfo": "_:creation",
                "profileConformance": ["core", "software", "ai"],
                "rootElement": [package["spdxId"]],
                "element": [package["spdxId"], agent],
            },
        ],
    }


def _energy_entries(report: Report, candidate: Candidate) -> tuple[list[tuple[str, str, Amount]], list[str]]:
    """(activity, what it was, energy) of everything that can be stated, and a sentence for all that cannot."""
    entries: list[tuple[str, str, Amount]] = []
    left_out = []
    for stage in making(report, candidate):
        what = f"stage {stage.stage} ({stage.kind})"
        if isinstance(stage.energy, str):
            left_out.append(f"{what}: no energy: {stage.energy}")
        else:
            activity = training_activity(report) if stage.kind in TRAINING_KINDS else "other"
            entries.append((activity, what, stage.energy))
    for use in inference(candidate):
        what = f"{PER_REQUESTS} {use.unit.replace('_', ' ')}s of workload {use.row.workload} ({use.row.phase})"
        if isinstance(use.energy, str):
            left_out.append(f"{what}: no energy: {use.energy}")
        else:
            entries.append(("inference", what, use.energy))
    return entries, left_out


def _consumption(report: Report, activity: str, what: str, energy: Amount) -> dict[str, Any]:
    cost = {"value": energy.kwh, "unit": "kWh"}
    properties = [_property("of", what), _property("provenance", energy.kind), _property("how", energy.text)]
    entry: dict[str, Any] = {
        "activity": activity,
        "energyProviders": [
            {
                "description": f"provider not known; the figure is {energy.kind}",
                "organization": {"name": "unknown"},
                "energySource": "unknown",
                "energyProvided": cost,
            }
        ],
        "activityEnergyCost": cost,
    }
    carbon = grid_factor(report)
    if carbon is not None:
        entry["co2CostEquivalent"] = {"value": energy.kwh * carbon.g_per_kwh / 1e6, "unit": "tCO2eq"}
        factor = f"{carbon.g_per_kwh:g} g/kWh, {carbon.region} {carbon.year} ({carbon.source})"
        properties.append(_property("carbon-factor", factor))
    return {**entry, "properties": properties}


def _property(name: str, value: str) -> dict[str, str]:
    return {"name": f"{PREFIX}:{name}", "value": value}


def _parameters(report: Report) -> dict[str, Any]:
    task = report.pipeline.get("model", {}).get("task")
    return {"architectureFamily": "transformer", **({"task": task} if task else {})}


def _metrics(candidate: Candidate) -> list[dict[str, Any]]:
    metrics = []
    for row in candidate.quality:
        metric: dict[str, Any] = {"type": row.metric, "value": repr(row.value), "slice": f"{row.dataset} ({row.split})"}
        if row.ci95 is not None:
            metric["confidenceInterval"] = {"lowerBound": repr(row.ci95.low), "upperBound": repr(row.ci95.high)}
        metrics.append(metric)
    return metrics
