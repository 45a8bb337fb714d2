"""Through which doors the selected candidate goes: opened here, or only where another runtime would look for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compressor.checkpoints.manifest import Variant
from compressor.errors import CheckpointError, UnsupportedError
from compressor.measurement.suite import CandidateSpec
from compressor.runtime.doors import DOORS, graphs_for
from compressor.schema.report import DoorRow, Report


def with_doors(report: Report, specs: Sequence[CandidateSpec]) -> Report:
    """The report with the doors of its selected candidate."""
    selected = next((spec for spec in specs if spec.id == report.selected), None)
    return report if selected is None else report.model_copy(update={"doors": doors_of(selected)})


def doors_of(spec: CandidateSpec) -> tuple[DoorRow, ...]:
    """What measured it has opened it; every other door is laid out by `compressor layout`."""
    content, record = spec.checkpoint.content, spec.checkpoint.record
    variant = spec.checkpoint.variant(spec.variant_id)
    own = "ONNX Runtime" if variant.runtime == "onnxruntime" else "transformers"
    difference, against = _parity(record.realised.get("parity"), variant, record.stage)
    rows = [DoorRow(door=own, file=variant.path, opened=True, difference=difference, note=against)]
    if variant.runtime != "onnxruntime":
        return tuple(rows)
    for name, door in DOORS.items():
        try:
            graphs = graphs_for(name, content, where=spec.id, precision=variant.id)
        except (CheckpointError, UnsupportedError) as error:
            rows.append(DoorRow(door=door.title, file=None, opened=False, difference=None, note=error.message))
            continue
        how = f"laid out by `compressor layout --for {name}`; not opened in this run"
        rows += [DoorRow(door=door.title, file=file, opened=False, difference=None, note=how) for file in graphs]
    return tuple(rows)


def _parity(parity: dict[str, Any] | None, variant: Variant, stage: str) -> tuple[float | None, str]:
    """What the stage that made a graph found on calibration text, against what it made it from."""
    if not parity or variant.stage != stage:
        return None, "measured in this run"
    found = [path["relative"] for path in parity.values() if isinstance(path, dict)]
    against = f"against {parity['against']}, on calibration text"
    return (max(found), against) if found else (None, "measured in this run")
