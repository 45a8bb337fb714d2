"""From a pipeline to the steps that run and the candidates that are judged. Pure, and free of torch.

Torch stages are measured in ONNX Runtime too, through a scratch export: otherwise the runtime's gain would be booked to
whichever stage happens to export. A scratch export is an ordinary export stage that nobody had to write down.
"""

from __future__ import annotations

from dataclasses import dataclass

from compressor.spec.chain import baseline_id, resolve_sources
from compressor.spec.pipeline import Pipeline
from compressor.spec.stages import YIELDS, Distill, Export, Stage

MODEL = "model"
"""The id of the checkpoint made from the pipeline's `model`."""


@dataclass(frozen=True)
class Step:
    """One stage in the order of running.

    Attributes:
        id: the stage's id; `<stage>@onnx` for a scratch export.
        config: its settings.
        source: id of the step whose checkpoint it starts from.
        teacher: id of the step whose checkpoint teaches, for a distillation.
        scratch: made only to be measured.
    """

    id: str
    config: Stage
    source: str
    teacher: str | None
    scratch: bool


@dataclass(frozen=True)
class Judged:
    """A candidate to judge: which step made it."""

    id: str
    step: str
    scratch: bool


@dataclass(frozen=True)
class Plan:
    """What a run does, in order."""

    steps: tuple[Step, ...]
    candidates: tuple[Judged, ...]
    baseline: str


def make_plan(pipeline: Pipeline) -> Plan:
    """Order the stages, add the scratch exports, and name the candidates."""
    sources = resolve_sources(pipeline)
    baseline = baseline_id(pipeline)
    steps = [
        Step(
            id=config.id,
            config=config,
            source=student_id(config.id) if brings_student(config) else sources[config.id],
            teacher=config.teacher if isinstance(config, Distill) else None,
            scratch=False,
        )
        for config in pipeline.stages
    ]
    exported = {step.source for step in steps if isinstance(step.config, Export)}
    used = {step.source for step in steps}
    kinds = {MODEL: "torch"} | {step.id: YIELDS[step.config.stage] for step in steps}
    order = [MODEL, *(step.id for step in steps)]

    candidates: list[Judged] = []
    scratch: list[Step] = []
    for stage in order:
        is_baseline, is_leaf = stage == baseline, stage not in used
        if stage == MODEL and not is_baseline:
            continue
        if kinds[stage] == "onnx":
            candidates.append(Judged(id=stage, step=stage, scratch=False))
            continue
        if is_baseline or is_leaf:
            candidates.append(Judged(id=stage, step=stage, scratch=False))
        if stage not in exported and (pipeline.evaluate.intermediates or is_baseline):
            export = scratch_export(stage)
            scratch.append(export)
            candidates.append(Judged(id=export.id, step=export.id, scratch=True))
    return Plan(steps=(*steps, *scratch), candidates=tuple(candidates), baseline=baseline)


def brings_student(config: Stage) -> bool:
    """Whether a stage's student comes from elsewhere."""
    return isinstance(config, Distill) and config.student is not None


def student_id(stage: str) -> str:
    """The id of the checkpoint made from a distillation's `student`."""
    return f"{stage}@student"


def scratch_export(stage: str) -> Step:
    """The export of a torch stage that is made only to be measured."""
    # '@' is no letter of a user's stage id, so a scratch export never meets one; hence no validation here.
    config = Export.model_construct(id=f"{stage}@onnx", stage="export", from_=stage, fuse=True)
    return Step(id=config.id, config=config, source=stage, teacher=None, scratch=True)


def needed_for(plan: Plan, until: str | None) -> tuple[Step, ...]:
    """The steps up to and including `until`; all of them where it is None."""
    if until is None:
        return plan.steps
    own = [step for step in plan.steps if not step.scratch]
    last = next(index for index, step in enumerate(own) if step.id == until)
    return tuple(own[: last + 1])
