"""Joules of the building, and carbon: energy times factors that the pipeline names with their sources.

Nothing is looked up, and nothing of this is stored in a reading. Location-based and market-based carbon are two
figures, which are never mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from compressor import energy
from compressor.errors import EnergyError
from compressor.schema.report import AssumedFigure, Candidate, Measurement, StageCost
from compressor.spec.evaluation import Carbon, Energy

_UNITS = {"j_per_request": "request", "j_per_generated_token": "generated_token"}


@dataclass(frozen=True)
class _Subject:
    """Energy of something that was done; `unit` of which `share` is one, None for all of it."""

    of: str
    energy: energy.Energy
    share: float
    unit: str | None


def cooling_of(section: Energy) -> energy.Cooling | None:
    """The PUE or the cooling plant that the pipeline names."""
    if section.pue is not None:
        return energy.Pue(section.pue, section.pue_source or "")
    if section.cop is not None:
        return energy.HeatPump(section.cop, section.cop_source or "", section.heat_share)
    return None


def intensities_of(section: Carbon) -> tuple[energy.GridIntensity, ...]:
    """The location-based factor, and the market-based one where there is one."""
    place = energy.GridIntensity(section.g_per_kwh, section.region, section.year, section.source, section.kind)
    if section.market_g_per_kwh is None:
        return (place,)
    market = energy.GridIntensity(
        section.market_g_per_kwh, section.region, section.year, section.market_source or "", section.kind, "market"
    )
    return place, market


def assumed_figures(
    section: Energy, candidates: Sequence[Candidate], stage_costs: Sequence[StageCost]
) -> tuple[tuple[AssumedFigure, ...], tuple[AssumedFigure, ...]]:
    """(facility, carbon) of all stages together, and of a request or generated token of each candidate."""
    subjects = [*_compressing(stage_costs), *(found for one in candidates for found in _served(one))]
    cooling = cooling_of(section)
    facility: list[AssumedFigure] = []
    if cooling is not None:
        for one in subjects:
            made = energy.facility_energy(one.energy, cooling, share=one.share, unit=one.unit)
            facility.append(_entry(one.of, made, "J"))
    found: list[AssumedFigure] = []
    for intensity in () if section.carbon is None else intensities_of(section.carbon):
        for one in subjects:
            made = energy.carbon(one.energy, intensity, cooling, share=one.share, unit=one.unit)
            found.append(_entry(one.of, made, "g CO2e"))
    return tuple(facility), tuple(found)


def _entry(of: str, made: energy.Assumed, unit: str) -> AssumedFigure:
    text = f"{of}: {made.figure} {unit} [{'; '.join(made.assumptions)}]"
    return AssumedFigure(of=of, figures=made.figure.to_json(), assumptions=made.assumptions, text=text)


def _compressing(stage_costs: Sequence[StageCost]) -> list[_Subject]:
    """All stages together; nothing where one of them has no joules."""
    results = [None if one.energy.result is None else energy.from_json(one.energy.result) for one in stage_costs]
    known = [one for one in results if one is not None]
    if not known or len(known) < len(results):
        return []
    try:
        total = energy.sum_energy(known)
    except EnergyError:  # scopes that do not add up; the table of stages shows each
        return []
    return [_Subject("compressing, all stages", total, 1.0, None)] if _has_number(total) else []


def _served(candidate: Candidate) -> list[_Subject]:
    found = []
    for row in candidate.measurements:
        if row.energy.result is None or row.energy.result.get("schema") is None:
            continue
        result = energy.from_json(row.energy.result)
        unit = _unit_of(row)
        if unit is not None and _has_number(result):
            key, value = unit
            total = result.energy_gross_j if isinstance(result, energy.MeasuredEnergy) else result.est_energy_gross_j
            assert total is not None
            of = f"one {_UNITS[key].replace('_', ' ')} of {candidate.id} ({row.workload}, {row.phase})"
            found.append(_Subject(of, result, value / total, _UNITS[key]))
    return found


def _unit_of(row: Measurement) -> tuple[str, float] | None:
    for key in _UNITS:
        for name in (key, f"est_{key}"):
            if name in row.energy.figures:
                return key, row.energy.figures[name]
    return None


def _has_number(result: energy.EnergyResult) -> TypeGuard[energy.Energy]:
    if isinstance(result, energy.InvalidEnergy):
        return False
    return isinstance(result, energy.MeasuredEnergy) or result.est_energy_gross_j is not None
