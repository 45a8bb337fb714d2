"""The pipeline: the validated YAML. Typed, frozen and free of torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from compressor.spec.base import Part, Slug
from compressor.spec.evaluation import Energy, Evaluate, Goal, Target, Workload
from compressor.spec.sources import Data, ModelSource
from compressor.spec.stages import Stage


class Pipeline(Part):
    """One YAML: from a pretrained model to a measured, smaller one."""

    version: Literal[1]
    """Version of this language."""
    name: Slug
    seed: int = Field(default=0, ge=0, lt=2**32)
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Free-form; kept in the report."""
    model: ModelSource
    data: Data
    target: Target = Target()
    workloads: tuple[Workload, ...] = Field(min_length=1)
    stages: tuple[Stage, ...] = Field(min_length=1)
    evaluate: Evaluate = Evaluate()
    energy: Energy = Energy()
    goals: tuple[Goal, ...] = ()
