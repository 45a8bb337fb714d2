"""What the two training stages share: settings into arguments, the result into a record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from compressor.checkpoints.store import Checkpoint, open_checkpoint
from compressor.data.tokenize import load_tokenizer
from compressor.energy.processor import read_cpu_flags
from compressor.errors import UserError
from compressor.methods.surgery import n_parameters
from compressor.schema.events import Emit, Note, Progress
from compressor.spec.stages import Training
from compressor.stages.context import StageContext
from compressor.stages.filler import load_filler
from compressor.stages.rows import calibration_batches, metric_of, pad_id_of, train_rows, validation_rows
from compressor.training.augment import replaced_rows
from compressor.training.metrics import COSINE_TO_TEACHER, Metric
from compressor.training.objective import label_loss
from compressor.training.processes import first_one_first, is_first_process, n_processes
from compressor.training.quantisation_aware import Scheme, fake_quantised, input_limits
from compressor.training.rows import Batch, Row
from compressor.training.train import TrainResult, TrainSettings, train
from compressor.training.trainer import Loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""CPU flags of hardware that multiplies bfloat16; without them it is emulated, and slower than fp32."""


@dataclass(frozen=True)
class Splits:
    """Rows as the student's tokenizer sees them, and the metric that they are validated by."""

    train: list[Row]
    validation: list[Row] | None
    pad_id: int
    metric: Metric
    n_variants: int = 1
    augmented_by: str | None = None
    """sha256 of the weights that replaced words, where any did."""
    calibration: tuple[Batch, ...] = ()
    """Calibration rows one by one, where the training has to know the range of activations."""

    @property
    def n_train_rows(self) -> int:
        """Rows of an epoch."""
        return len(self.train) // self.n_variants


def open_splits(
    source: Checkpoint, ctx: StageContext, training: Training, *, stage: str, emit: Emit, is_taught: bool = False
) -> Splits:
    """Both splits; the training rows in as many variants as masking or augmentation gives them.

    Args:
        is_taught: a teacher says what to learn; see `rows.train_rows`.

    Raises:
        DataError: no training split, or a label that the head does not have.
        UserError: words cannot be replaced for this task, or not with this model.
    """
    tokenizer = load_tokenizer(source.path)
    n_variants = min(training.variants, math.ceil(training.epochs)) if ctx.task.kind == "masked_token" else 1
    train = [
        row
        for variant in range(n_variants)
        for row in train_rows(source, ctx, training.rows, is_taught=is_taught, variant=variant)
    ]
    validation = validation_rows(source, ctx, is_taught=is_taught)
    needs_teacher = validation is not None and validation[0]["labels"] == ()
    splits = Splits(
        train=[{**row, "index": index} for index, row in enumerate(train)],
        validation=validation,
        pad_id=pad_id_of(tokenizer),
        metric=COSINE_TO_TEACHER if needs_teacher else metric_of(ctx.task, source.content.labels),
        n_variants=n_variants,
        calibration=_calibration(source, ctx, training),
    )
    return splits if training.augment is None else _augmented(splits, training, tokenizer, ctx, stage, emit)


def splits_read(training: Training) -> tuple[str, ...]:
    """Names of the splits that `open_splits` opens, for the record."""
    return ("train", "validation", *(("calibration",) if training.quantisation_aware == "w8a8-static" else ()))


def _calibration(source: Checkpoint, ctx: StageContext, training: Training) -> tuple[Batch, ...]:
    """Without padding, whose activations would widen the ranges."""
    if training.quantisation_aware != "w8a8-static":
        return ()
    return tuple(calibration_batches(source, ctx, batch_rows=1))


def _augmented(
    splits: Splits, training: Training, tokenizer: PreTrainedTokenizerFast, ctx: StageContext, stage: str, emit: Emit
) -> Splits:
    augment = training.augment
    assert augment is not None
    if ctx.task.kind not in ("class", "classes", "number"):
        raise UserError(
            f"training.augment replaces words, which would change the labels of {ctx.task.name}",
            where="training.augment",
            hint="leave it out; it serves tasks with a label for the whole row",
        )
    n_variants = min(augment.variants, math.ceil(training.epochs) - 1)
    if n_variants == 0:
        raise UserError(
            "training.augment adds rows for further epochs, and there is one epoch",
            where="training.augment",
            hint="raise training.epochs, or leave augment out",
        )
    filler = load_filler(augment.model, tokenizer)
    with first_one_first():
        rows = replaced_rows(
            splits.train,
            filler.module,
            words=filler.words,
            mask_id=filler.mask_id,
            n_variants=n_variants,
            probability=augment.probability,
            n_candidates=augment.candidates,
            pad_id=splits.pad_id,
            seed=ctx.seed,
            key=f"{filler.digest} {ctx.data.digests['train']}",
            folder=ctx.workdir / "augmented",
            tell=lambda done, total: emit(Progress(stage, "replace words", done, total)),
            device=ctx.target.device,
        )
    return replace(splits, train=rows, n_variants=1 + n_variants, augmented_by=filler.digest)


def train_settings(training: Training, ctx: StageContext) -> TrainSettings:
    """The pipeline's settings as the training room takes them."""
    return TrainSettings(
        epochs=training.epochs,
        learning_rate=training.learning_rate,
        batch_size=training.batch_size,
        seed=ctx.seed,
        max_steps=training.max_steps,
        schedule=training.schedule,
        warmup_ratio=training.warmup_ratio,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        gradient_accumulation=training.gradient_accumulation,
        evaluate_every_steps=training.evaluate_every_steps,
        save_every_steps=training.save_every_steps,
        tokens_per_batch=training.tokens_per_batch,
        gradient_checkpointing=training.gradient_checkpointing,
        compile=training.compile,
        device=ctx.target.device,
        precision=choose_precision(training.precision, ctx.target.device, read_cpu_flags()),
    )


def choose_precision(
    asked: Literal["fp32", "bf16", "auto"], device: str, cpu_flags: frozenset[str]
) -> Literal["fp32", "bf16"]:
    """What `auto` means on this machine: bfloat16 only where the hardware multiplies it."""
    if asked != "auto":
        return asked
    is_faster = torch.cuda.is_bf16_supported() if device == "cuda" else bool(cpu_flags & BF16_FLAGS)
    return "bf16" if is_faster else "fp32"


def fit(
    module: nn.Module,
    *,
    splits: Splits,
    loss: Loss,
    training: Training,
    stage: str,
    ctx: StageContext,
    emit: Emit,
    keep: Literal["best", "last"] = "best",
) -> TrainResult:
    """Train with the pipeline's settings; validation always looks at the task's own loss."""
    with _computing_as(training.quantisation_aware, module, splits):
        result = train(
            module,
            train_rows=splits.train,
            validation_rows=splits.validation,
            loss=loss,
            validation_loss=label_loss(ctx.task.kind),
            metric=splits.metric,
            settings=replace(train_settings(training, ctx), keep=keep),
            pad_id=splits.pad_id,
            stage=stage,
            emit=emit,
            workdir=ctx.workdir,
            n_variants=splits.n_variants,
        )
    if result.gathered is None:
        nn.Module.to(module, "cpu")
    if keep == "best":
        _tell_if_worse(result, splits.metric, stage, emit)
    return result


def _computing_as(scheme: Scheme | None, module: nn.Module, splits: Splits) -> AbstractContextManager[None]:
    """The module as its quantised file will compute, where the pipeline asks for that."""
    if scheme is None:
        return nullcontext()
    limits = input_limits(module, splits.calibration) if scheme == "w8a8-static" else None
    return fake_quantised(module, scheme, limits)


def whole(trained: PreTrainedModel, rebuild: Callable[[], PreTrainedModel], result: TrainResult) -> PreTrainedModel:
    """The trained model; built anew around the gathered weights where processes shared these out among them."""
    if result.gathered is None:
        return trained
    module = rebuild()
    if is_first_process():
        # An embedder's encoder is trained inside what pools its vectors, and perhaps beside learned projections.
        found = {name.removeprefix("body."): weight for name, weight in result.gathered.items()}
        module.load_state_dict({name: found[name] for name in module.state_dict()})
    return module


def sealed_by_the_first(make: Callable[[], Checkpoint], out_dir: Path) -> Checkpoint:
    """The checkpoint that `make` seals; of several processes only the first writes, and the others open it."""
    with first_one_first():
        return make() if is_first_process() else open_checkpoint(out_dir, verify=False)


def _tell_if_worse(result: TrainResult, metric: Metric, stage: str, emit: Emit) -> None:
    """The best of the trained states is kept, even when the untrained one validated better; then that is said."""
    if result.before is None or result.after is None:
        return
    if result.after < result.before if metric.greater_is_better else result.after > result.before:
        emit(
            Note(
                stage,
                f"validation {metric.name} was {result.before:.4f} before training and is {result.after:.4f} after it: "
                "train longer, change learning_rate, or leave this stage out",
            )
        )


def realised(module: PreTrainedModel, result: TrainResult, splits: Splits) -> dict[str, Any]:
    """What a training stage puts on record, with the curve that reports draw."""
    return {
        "parameters": n_parameters(module),
        "steps": result.n_steps,
        "precision": result.precision,
        "train_rows": splits.n_train_rows,
        "variants": splits.n_variants,
        "augmented_by": splits.augmented_by,
        "processes": n_processes(),
        "weights_shared_out": result.gathered is not None,
        "validation": _validation(result, splits.validation),
        "resumed_at_step": result.resumed_at,
        "history": list(result.history),
    }


def _validation(result: TrainResult, rows: Sequence[Row] | None) -> dict[str, Any] | None:
    if rows is None:
        return None
    return {
        "metric": result.metric,
        "rows": len(rows),
        "before": result.before,
        "after": result.after,
        "best_step": result.best_step,
    }
