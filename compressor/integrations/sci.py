"""The inputs of a Software Carbon Intensity score (ISO/IEC 21031:2024): SCI = (E x I + M) / R. Never the score.

E is all we know, and I where the pipeline names a grid factor. M, the embodied carbon of the hardware, nobody measures
with a run; without it there is no score, and none is printed.
"""

from __future__ import annotations

from typing import Any

from compressor.integrations.energy_facts import PER_REQUESTS, Inference, chosen, grid_factor, inference
from compressor.schema.report import Report

NO_M = "the embodied carbon of the hardware is not known to this toolkit"


def sci_inputs(report: Report) -> dict[str, Any]:
    """E, I, M and R of using the selected candidate, per workload and phase; what is missing is null with a reason."""
    carbon = grid_factor(report)
    return {
        "schema": "sci-inputs/1",
        "formula": "SCI = (E * I + M) / R (ISO/IEC 21031:2024)",
        "name": report.name,
        "candidate": chosen(report).id,
        "persona": "consumer",
        "boundary": ["partial: the inference process alone"],
        "I_g_per_kwh": None if carbon is None else carbon.g_per_kwh,
        "I_source": None if carbon is None else f"{carbon.source}, {carbon.region} {carbon.year}",
        "I_reason": "the pipeline names no grid factor (energy.carbon)" if carbon is None else None,
        "M_g": None,
        "M_reason": NO_M,
        "score": None,
        "score_reason": NO_M if carbon is not None else f"no grid factor, and {NO_M}",
        "inputs": [_inputs(use) for use in inference(chosen(report))],
    }


def _inputs(use: Inference) -> dict[str, Any]:
    unit = "token" if use.unit == "generated_token" else "inference"
    entry: dict[str, Any] = {
        "workload": use.row.workload,
        "phase": use.row.phase,
        "functional_unit": unit,
        "R": PER_REQUESTS,
        "R_unit": f"{use.unit.replace('_', ' ')}s",
    }
    energy = use.energy
    if isinstance(energy, str):
        return {**entry, "E_kwh": None, "E_reason": energy}
    if energy.kind == "measured":
        return {**entry, "E_kwh": energy.kwh, "E_method": energy.text}
    assert energy.low_j is not None and energy.high_j is not None
    scale = energy.kwh / energy.j
    band = {"est_E_kwh_low": energy.low_j * scale, "est_E_kwh_high": energy.high_j * scale}
    return {**entry, "est_E_kwh": energy.kwh, **band, "E_method": energy.text}
