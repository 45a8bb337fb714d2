"""What a stage is given besides its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compressor import energy
from compressor.checkpoints.store import Checkpoint
from compressor.data.splits import StageData
from compressor.schema.events import Emit
from compressor.spec.evaluation import Target
from compressor.spec.tasks import Task

if TYPE_CHECKING:
    from compressor.measurement.cost_basis import CostBasis  # brings torch


@dataclass(frozen=True)
class StageContext:
    """Everything a stage may look at: no test split, no pipeline, no global state.

    Attributes:
        data: train, validation and calibration rows.
        task: the row of the task table.
        labels: names of the classes as the pipeline gives them; None where the checkpoint's own hold.
        max_tokens: longest row or window, in tokens.
        calibration_rows: rows (encoders) or windows (decoders) used for calibration.
        seed: the pipeline's.
        target: where the result will run.
        fingerprint: identity of this piece of work; goes into the manifest.
        versions: library versions that matter; go into the manifest.
        emit: takes events.
        workdir: outlives a crash, so training resumes from it; never part of a checkpoint.
        cache_dir: shared by the stages of a run (teacher outputs); `workdir` where absent.
        calibration: watts of this machine for the stage's estimated energy; no part of what the stage makes.
        costs: measured costs for a pruning under a measured budget; their digest is in the fingerprint.
    """

    data: StageData
    task: Task
    labels: tuple[str, ...] | None
    max_tokens: int
    calibration_rows: int
    seed: int
    target: Target
    fingerprint: str
    versions: Mapping[str, str]
    emit: Emit
    workdir: Path
    cache_dir: Path | None = None
    calibration: energy.Calibration | None = None
    costs: CostBasis | None = None


@dataclass(frozen=True)
class SourceInput:
    """A stage that starts from one checkpoint."""

    source: Checkpoint


@dataclass(frozen=True)
class DistillInput:
    """A distillation: the student's start and its teacher."""

    source: Checkpoint
    teacher: Checkpoint


@dataclass(frozen=True)
class StageInputs:
    """The checkpoints of any stage, as the pipeline hands them over."""

    source: Checkpoint
    teacher: Checkpoint | None = None

    def digests(self) -> dict[str, str]:
        """Role -> digest."""
        found = {"source": self.source.digest}
        return found if self.teacher is None else found | {"teacher": self.teacher.digest}
