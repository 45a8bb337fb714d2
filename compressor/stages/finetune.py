"""Fine-tuning: train all weights on the labels, or on the text itself for a language model."""

from __future__ import annotations

from pathlib import Path

from compressor.checkpoints.store import Checkpoint
from compressor.runtime.torch_models import load_module, quiet_transformers, with_head
from compressor.spec.stages import Finetune
from compressor.stages.context import SourceInput, StageContext
from compressor.stages.cost import measure_cost
from compressor.stages.fitting import fit, open_splits, realised, sealed_by_the_first, splits_read, whole
from compressor.stages.sealing import made_by, seal_module
from compressor.training.objective import label_loss
from compressor.training.processes import cpu_s_of_others


def finetune(config: Finetune, inputs: SourceInput, out_dir: Path, ctx: StageContext) -> Checkpoint:
    """Train the source's weights; the state that was best on validation is kept.

    Raises:
        DataError: no training rows, or a label that the head does not have.
        StageError: the loss stopped being a number.
    """
    source = inputs.source
    with measure_cost(ctx.workdir, ctx.calibration) as meter, quiet_transformers():
        emit = meter.watching(ctx.emit)
        splits = open_splits(source, ctx, config.training, stage=config.id, emit=emit)
        module = load_module(source)
        result = fit(
            with_head(module, source.path, ctx.task),
            splits=splits,
            loss=label_loss(ctx.task.kind),
            training=config.training,
            stage=config.id,
            ctx=ctx,
            emit=emit,
        )
        module = whole(module, lambda: load_module(source), result)
        meter.add(cpu_s_of_others())
    made = made_by(
        config,
        inputs={"source": source.digest},
        splits=splits_read(config.training),
        realised=realised(module, result, splits),
    )

    def seal() -> Checkpoint:
        return seal_module(
            module, out_dir, made=made, ctx=ctx, cost=meter.cost, labels=source.content.labels,
            structure=source.content.structure, carry_from=source.path,
        )  # fmt: skip

    return sealed_by_the_first(seal, out_dir)
