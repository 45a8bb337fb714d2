"""A finished run to export: the made-up report of the render room, with stages, and with measured energy on request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compressor.schema.report import Report

SOURCE = Path(__file__).resolve().parent.parent / "render" / "report.json"

STAGES = [
    {"id": "teacher", "stage": "finetune"},
    {"id": "onnx", "stage": "export"},
    {"id": "int8", "stage": "quantize", "from": "onnx"},
    {"id": "fp16", "stage": "quantize", "from": "onnx"},
]
MEASURED = {
    "schema": "energy-result/1",
    "kind": "measured",
    "energy_gross_j": 7200.0,
    "energy_uncertainty_j": 144.0,
    "energy_net_j": None,
    "net_reason": "not made up",
    "provenance": "device_counter",
    "meter": "rapl",
    "notes": [],
    "log_sha256": "0",
    "wall_s": 300.0,
    "scopes": ["cpu_package"],
    "windows": [],
}


def values() -> dict[str, Any]:
    """The report as plain values, for a test to change."""
    found = json.loads(SOURCE.read_text())
    found["pipeline"] |= {"stages": STAGES, "model": {"task": "sequence-classification", "config": None}}
    return found


def finished(measured: bool = False, **parts: Any) -> Report:
    """The report; with `measured`, all energy of the selected candidate and its stages comes from a counter."""
    found = values() | parts
    if measured:
        for cost in found["stage_costs"]:
            cost["energy"] = {"result": MEASURED, "reason": None, "figures": {}}
        for candidate in found["candidates"]:
            for row in candidate["measurements"]:
                row["energy"] = {"result": MEASURED, "reason": None, "figures": {"j_per_request": 7.2}}
    return Report.model_validate(found)
