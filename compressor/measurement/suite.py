"""What judging needs to know of a pipeline, so that a plain folder can be judged without one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor import energy
from compressor.checkpoints.store import Checkpoint
from compressor.errors import EnergyError, UserError
from compressor.measurement.profiles import PROFILES, Profile
from compressor.spec.chain import resolve_sources
from compressor.spec.evaluation import Energy, Evaluate, Goal, Target, Workload
from compressor.spec.pipeline import Pipeline
from compressor.spec.sources import Data
from compressor.spec.tasks import TASKS, Task

SCRATCH_SUFFIX = "@onnx"
"""Ends the id of an export made only to be measured."""


@dataclass(frozen=True)
class CandidateSpec:
    """One (checkpoint, variant) to judge.

    Attributes:
        id: its name in the report.
        stage: the stage that made it.
        checkpoint: the folder.
        variant_id: which variant of it.
        scratch: an export made only to be measured, which cannot win.
    """

    id: str
    stage: str
    checkpoint: Checkpoint
    variant_id: str
    scratch: bool


@dataclass(frozen=True)
class Suite:
    """On what, how and against which goals.

    Attributes:
        model: name of the source model.
        labels: names of the classes; None where rows carry ids.
        leaves: stages from which no other starts; None where every candidate is an end.
        pipeline: the validated pipeline as JSON, for the report; empty where there was none.
        calibration: watts of this machine for estimates; published ones of its CPU family where None.
    """

    name: str
    model: str
    seed: int
    metadata: dict[str, Any]
    task: Task
    labels: tuple[str, ...] | None
    data: Data
    target: Target
    workloads: tuple[Workload, ...]
    evaluate: Evaluate
    profile: Profile
    goals: tuple[Goal, ...]
    leaves: frozenset[str] | None
    pipeline: dict[str, Any]
    calibration: energy.Calibration | None = None

    @property
    def threads(self) -> int:
        """Threads of one inference: those asked for, or all processors that this process may use."""
        return self.target.threads or len(os.sched_getaffinity(0))

    def runs_on(self, workload: Workload, candidates: Sequence[CandidateSpec], baseline: str) -> list[str]:
        """Ids of the candidates that run a workload."""
        if workload.candidates == "all" or self.leaves is None:
            return [one.id for one in candidates]
        ends = self.leaves
        return [one.id for one in candidates if one.id == baseline or one.stage.removesuffix(SCRATCH_SUFFIX) in ends]


def suite_of(pipeline: Pipeline) -> Suite:
    """The suite of a pipeline."""
    used = set(resolve_sources(pipeline).values())
    return Suite(
        name=pipeline.name,
        model=pipeline.model.name or pipeline.model.path or pipeline.model.hub or "random weights",
        seed=pipeline.seed,
        metadata=dict(pipeline.metadata),
        task=TASKS[pipeline.model.task],
        labels=pipeline.model.labels,
        data=pipeline.data,
        target=pipeline.target,
        workloads=pipeline.workloads,
        evaluate=pipeline.evaluate,
        profile=PROFILES[pipeline.energy.profile],
        goals=pipeline.goals,
        leaves=frozenset(stage.id for stage in pipeline.stages if stage.id not in used),
        # As it was written, without defaults: only so does it read back as a valid pipeline.
        pipeline=pipeline.model_dump(mode="json", by_alias=True, exclude_unset=True),
        calibration=calibration_of(pipeline.energy),
    )


def calibration_of(section: Energy, root: Path = Path("/")) -> energy.Calibration | None:
    """The calibration that the pipeline names, read; None where it names none.

    Raises:
        UserError: no such file, one made on another processor, or a guest.
    """
    if section.calibration is None:
        return None
    try:
        return energy.load_calibration(Path(section.calibration), cpu=energy.identify_cpu(root))
    except EnergyError as error:
        raise UserError(
            f"{section.calibration} {error.message}", where="energy.calibration", hint=error.hint
        ) from error
