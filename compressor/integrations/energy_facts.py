"""What a report says of energy, brought into the one shape that every export reads.

An estimate stays an estimate: an `Amount` knows its kind, and what cannot be stated is a reason in words. Simulated
figures never leave the toolkit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compressor.errors import UserError
from compressor.schema.report import Candidate, EnergyFigure, Measurement, Report
from compressor.spec.chain import MODEL, links_of
from compressor.spec.evaluation import Carbon

J_PER_KWH = 3.6e6
TRAINING_KINDS = ("finetune", "distill")
PER_REQUESTS = 1000
"""Inference is stated for so many requests (or generated tokens): one costs too little to read."""


@dataclass(frozen=True)
class Amount:
    """Energy with its provenance.

    Attributes:
        kind: measured by a counter or meter, or estimated from CPU time and published power figures.
        j: joules, idle power included.
        low_j: lower end of an estimate's band; None where measured.
        high_j: its upper end.
        plus_minus_j: uncertainty of a measurement, where it is known.
        method: the meter, or the formula of the estimate.
        scopes: what was covered: package, VM share, ...
        wall_s: how long it took; None for a figure per unit of work.
    """

    kind: Literal["measured", "estimated"]
    j: float
    low_j: float | None
    high_j: float | None
    plus_minus_j: float | None
    method: str
    scopes: tuple[str, ...]
    wall_s: float | None

    @property
    def kwh(self) -> float:
        """Kilowatt-hours."""
        return self.j / J_PER_KWH

    @property
    def text(self) -> str:
        """How the figure came to be, in words."""
        scopes = ", ".join(self.scopes)
        if self.kind == "measured":
            band = "" if self.plus_minus_j is None else f", +-{self.plus_minus_j / J_PER_KWH:.3g} kWh"
            return f"measured ({self.method}, {scopes}{band})"
        assert self.low_j is not None and self.high_j is not None
        band = f"{self.low_j / J_PER_KWH:.3g} to {self.high_j / J_PER_KWH:.3g} kWh"
        return f"ESTIMATED, not measured ({self.method}, {scopes}; band {band})"


@dataclass(frozen=True)
class StageEnergy:
    """What one stage took to make.

    Attributes:
        kind: of the stage in the pipeline, such as `finetune`.
        energy: or why it cannot be stated.
    """

    stage: str
    kind: str
    energy: Amount | str


@dataclass(frozen=True)
class Inference:
    """What using a candidate takes, on one workload in one phase.

    Attributes:
        unit: `request` or `generated_token`.
        energy: of `PER_REQUESTS` of them, or why it cannot be stated.
    """

    row: Measurement
    unit: str
    energy: Amount | str


def chosen(report: Report) -> Candidate:
    """The candidate that exports describe: the selected one.

    Raises:
        UserError: the run selected none.
    """
    if report.selected is None:
        raise UserError(f"nothing to export: no candidate was selected ({report.selected_reason})", where=report.name)
    return report.candidate(report.selected)


def amount_of(figure: EnergyFigure) -> Amount | str:
    """All energy of a record, or why there is none that may be stated."""
    result = figure.result
    if result is None:
        return figure.reason or "no reason recorded"
    if result.get("provenance") == "simulated":
        return "simulated by a stand-in for a meter"
    if result["kind"] == "measured":
        return _measured(figure, result["energy_gross_j"], result["energy_uncertainty_j"], result["wall_s"])
    if result["kind"] == "estimated" and result["est_energy_gross_j"] is not None:
        low, value, high = (result[f"est_energy_gross_{part}j"] for part in ("low_", "", "high_"))
        return _estimated(figure, low, value, high, result["wall_s"])
    return figure.reason or str(result["reason"])


def making(report: Report, candidate: Candidate) -> list[StageEnergy]:
    """Energy of every stage that the candidate needed, teachers included, in the order of the run."""
    needed = _needed(report, candidate)
    kinds = {link.id: link.kind or "stage" for link in links_of(report.pipeline.get("stages"))}
    costs = [cost for cost in report.stage_costs if cost.stage in needed]
    return [StageEnergy(cost.stage, kinds.get(cost.stage, "stage"), amount_of(cost.energy)) for cost in costs]


def training_activity(report: Report) -> Literal["training", "fine-tuning"]:
    """Weights that were drawn at random are trained; weights that were there are fine-tuned."""
    model = report.pipeline.get("model", {})
    return "training" if model.get("config") is not None else "fine-tuning"


def grid_factor(report: Report) -> Carbon | None:
    """Carbon of a kilowatt-hour, where the pipeline names it."""
    given = (report.pipeline.get("energy") or {}).get("carbon")
    return None if given is None else Carbon.model_validate(given)


def inference(candidate: Candidate) -> list[Inference]:
    """Energy of using a candidate, one entry per workload and phase."""
    return [_inference(row) for row in candidate.measurements]


def add(amounts: Sequence[Amount]) -> Amount:
    """The sum of parts that were done one after the other; estimated as soon as one part is."""
    measured = all(one.kind == "measured" for one in amounts)
    return Amount(
        kind="measured" if measured else "estimated",
        j=sum(one.j for one in amounts),
        low_j=None if measured else sum(one.j if one.low_j is None else one.low_j for one in amounts),
        high_j=None if measured else sum(one.j if one.high_j is None else one.high_j for one in amounts),
        plus_minus_j=sum(one.plus_minus_j or 0.0 for one in amounts) if measured else None,
        method=" + ".join(dict.fromkeys(one.method for one in amounts)),
        scopes=tuple(dict.fromkeys(scope for one in amounts for scope in one.scopes)),
        wall_s=sum(one.wall_s or 0.0 for one in amounts),
    )


def _inference(row: Measurement) -> Inference:
    unit = "generated_token" if row.phase == "decode" else "request"
    whole = amount_of(row.energy)
    if isinstance(whole, str):
        return Inference(row, unit, whole)
    if not row.valid:
        return Inference(row, unit, f"the session is not valid ({'; '.join(row.remarks)})")
    figures, key = row.energy.figures, f"j_per_{unit}"
    if whole.kind == "estimated":
        parts = [figures.get(f"est_{key}{end}") for end in ("_low", "", "_high")]
        if any(part is None for part in parts):
            return Inference(row, unit, f"no energy per {unit.replace('_', ' ')} in the record")
        low, value, high = (PER_REQUESTS * part for part in parts if part is not None)
        return Inference(row, unit, _estimated(row.energy, low, value, high, None))
    if key not in figures:
        return Inference(row, unit, f"no energy per {unit.replace('_', ' ')} in the record")
    value = PER_REQUESTS * figures[key]
    # Decoding is a slope over several windows: the uncertainty of their sum does not carry over.
    share = None if unit == "generated_token" or whole.plus_minus_j is None else whole.plus_minus_j / whole.j
    return Inference(row, unit, _measured(row.energy, value, None if share is None else value * share, None))


def _measured(figure: EnergyFigure, j: float, plus_minus_j: float | None, wall_s: float | None) -> Amount:
    assert figure.result is not None
    return Amount(
        "measured", j, None, None, plus_minus_j, figure.result["meter"], tuple(figure.result["scopes"]), wall_s
    )


def _estimated(figure: EnergyFigure, low: float, j: float, high: float, wall_s: float | None) -> Amount:
    assert figure.result is not None
    return Amount("estimated", j, low, high, None, figure.result["method"], tuple(figure.result["scopes"]), wall_s)


def _needed(report: Report, candidate: Candidate) -> frozenset[str]:
    links = links_of(report.pipeline.get("stages"))
    sources: dict[str, tuple[str | None, str | None]] = {}
    before = MODEL
    for link in links:
        if link.id is not None:
            sources[link.id] = (link.from_ or before, link.teacher)
            before = link.id
    needed: set[str] = set()
    waiting: list[str | None] = [candidate.id, candidate.stage]
    while waiting:
        id_ = waiting.pop()
        if id_ is not None and id_ not in needed:
            needed.add(id_)
            waiting.extend(sources.get(id_, ()))
    return frozenset(needed)
