"""Model compression judged by energy.

    import compressor

    result = compressor.run("pipelines/smoke.yaml")
    model = compressor.load(result.selected.path)

Everything below is imported when it is first used, so that `import compressor` is quick and loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor import energy
    from compressor.checkpoints.store import Checkpoint, open_checkpoint
    from compressor.errors import (
        CheckpointError,
        CompressorError,
        DataError,
        EnergyError,
        GateError,
        GoalError,
        InterruptedRunError,
        MissingPackageError,
        ParityError,
        PipelineError,
        Problem,
        ProvenanceError,
        StageError,
        UnsupportedError,
        UserError,
    )
    from compressor.integrations.push import Push, push
    from compressor.measurement.certify import certify
    from compressor.measurement.folders import measure
    from compressor.pipeline.run import RunResult, run
    from compressor.runtime.load import CompressedModel, load
    from compressor.schema.certificate import Certificate
    from compressor.schema.report import Report, read_report
    from compressor.spec.load import load_pipeline
    from compressor.spec.pipeline import Pipeline

_HOMES = {
    "compressor.checkpoints.store": ("Checkpoint", "open_checkpoint"),
    "compressor.errors": (
        "CheckpointError",
        "CompressorError",
        "DataError",
        "EnergyError",
        "GateError",
        "GoalError",
        "InterruptedRunError",
        "MissingPackageError",
        "ParityError",
        "PipelineError",
        "Problem",
        "ProvenanceError",
        "StageError",
        "UnsupportedError",
        "UserError",
    ),
    "compressor.integrations.push": ("Push", "push"),
    "compressor.measurement.certify": ("certify",),
    "compressor.measurement.folders": ("measure",),
    "compressor.pipeline.run": ("RunResult", "run"),
    "compressor.runtime.load": ("CompressedModel", "load"),
    "compressor.schema.certificate": ("Certificate",),
    "compressor.schema.report": ("Report", "read_report"),
    "compressor.spec.load": ("load_pipeline",),
    "compressor.spec.pipeline": ("Pipeline",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Certificate",
    "Checkpoint",
    "CheckpointError",
    "CompressedModel",
    "CompressorError",
    "DataError",
    "EnergyError",
    "GateError",
    "GoalError",
    "InterruptedRunError",
    "MissingPackageError",
    "ParityError",
    "Pipeline",
    "PipelineError",
    "Problem",
    "ProvenanceError",
    "Push",
    "Report",
    "RunResult",
    "StageError",
    "UnsupportedError",
    "UserError",
    "certify",
    "energy",
    "load",
    "load_pipeline",
    "measure",
    "open_checkpoint",
    "push",
    "read_report",
    "run",
]


def __getattr__(name: str) -> Any:
    if name == "energy":
        return import_module("compressor.energy")
    if name not in _HOME:
        raise AttributeError(f"module 'compressor' has no attribute {name!r}")
    if name == "run":
        require_torch = import_module("compressor.runtime.runners").require_torch
        require_torch("running a pipeline")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
