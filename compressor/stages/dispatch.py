"""Which function does which stage: one exhaustive match."""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

from compressor.checkpoints.files import full_disk_named
from compressor.checkpoints.store import Checkpoint
from compressor.spec.stages import Distill, Export, Finetune, Prune, Quantize, Stage, TrimVocabulary, Tune
from compressor.stages.context import DistillInput, SourceInput, StageContext, StageInputs


def run_stage(config: Stage, inputs: StageInputs, out_dir: Path, ctx: StageContext) -> Checkpoint:
    """Do one stage and leave a sealed folder, or raise and leave none.

    Stages that train run in a child process, which gives all its memory and threads back before anything is measured.

    Raises:
        CompressorError: whatever the stage found wrong.
    """
    if isinstance(config, Finetune | Distill):
        from compressor.stages.job import run_in_child

        return run_in_child(config, inputs, out_dir, ctx)
    return run_here(config, inputs, out_dir, ctx)


def run_here(config: Stage, inputs: StageInputs, out_dir: Path, ctx: StageContext) -> Checkpoint:
    """Do one stage in this process.

    Raises:
        CompressorError: whatever the stage found wrong, a full disk too.
    """
    with full_disk_named(out_dir):
        return _run(config, inputs, out_dir, ctx)


def _run(config: Stage, inputs: StageInputs, out_dir: Path, ctx: StageContext) -> Checkpoint:
    # torch is imported with the first stage that runs, so that planning and skipping stay light
    source = SourceInput(inputs.source)
    match config:
        case Finetune():
            from compressor.stages.finetune import finetune

            return finetune(config, source, out_dir, ctx)
        case Distill():
            from compressor.stages.distill import distill

            assert inputs.teacher is not None, "the chain check gives every distillation its teacher"
            return distill(config, DistillInput(inputs.source, inputs.teacher), out_dir, ctx)
        case Prune():
            from compressor.stages.prune import prune

            return prune(config, source, out_dir, ctx)
        case TrimVocabulary():
            from compressor.stages.trim_vocabulary import trim_vocabulary

            return trim_vocabulary(config, source, out_dir, ctx)
        case Export():
            from compressor.stages.export import export

            return export(config, source, out_dir, ctx)
        case Quantize():
            from compressor.stages.quantize import quantize

            return quantize(config, source, out_dir, ctx)
        case Tune():
            from compressor.stages.tune import tune

            return tune(config, source, out_dir, ctx)
        case _:
            assert_never(config)


def stage_version(config: Stage) -> int:
    """The stage's own version: raised when its code makes something else from the same inputs."""
    match config:
        case Finetune():
            return 2
        case Distill():
            return 2
        case Prune():
            return 2
        case TrimVocabulary():
            return 1
        case Export():
            return 2
        case Quantize():
            return 2
        case Tune():
            return 1
        case _:
            assert_never(config)
