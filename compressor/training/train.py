"""Train a module: the one function behind fine-tuning, distillation and recovery."""

from __future__ import annotations

import functools
import json
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from compressor.errors import StageError
from compressor.schema.events import Emit, Note
from compressor.training.evaluate import evaluate
from compressor.training.metrics import Metric
from compressor.training.rows import Row, collate
from compressor.training.trainer import Loss, LossTrainer, RowDataset, Telling

_CLOCKS = ("_runtime", "_per_second", "_preparation_time", "total_flos")
N_LOG_POINTS = 100
"""About how many points a loss curve has."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train; the names are those of the pipeline's `training`."""

    epochs: float
    learning_rate: float
    batch_size: int
    seed: int
    max_steps: int | None = None
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    gradient_accumulation: int = 1
    evaluate_every_steps: int | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    keep: Literal["best", "last"] = "best"
    """Which state stays: the one that validated best, or the last, where validation does not see what is learned."""


@dataclass(frozen=True)
class TrainResult:
    """What training did; all figures are read from the Trainer's state afterwards.

    Attributes:
        n_steps: optimiser steps.
        metric: name of the validation metric; None without a validation split.
        before: its value before the first step.
        after: its value in the state that was kept, the best one seen.
        best_step: the step of that state.
        resumed_at: the step at which this process took over; None when it trained from the start.
        precision: of the products; the weights are fp32.
        history: the curve: points with `step`, `epoch` and `loss` (and its parts), `learning_rate`, `grad_norm`, or
            the validation's figures.
    """

    n_steps: int
    metric: str | None
    before: float | None
    after: float | None
    best_step: int | None
    resumed_at: int | None
    precision: str
    history: tuple[dict[str, float], ...]


def train(
    model: nn.Module,
    *,
    train_rows: Sequence[Row],
    validation_rows: Sequence[Row] | None,
    loss: Loss,
    validation_loss: Loss,
    metric: Metric,
    settings: TrainSettings,
    pad_id: int,
    stage: str,
    emit: Emit,
    workdir: Path,
) -> TrainResult:
    """Train a module in place and leave it in its best validated state (its last without a validation split).

    Batches group rows of like length and are padded to their longest row. State is written to `workdir` at each
    validation; called again with the same arguments after a crash, training goes on from there and ends in the very
    same weights.

    Raises:
        StageError: the loss or the weights stopped being finite.
    """
    arguments = _arguments(settings, len(train_rows), workdir, metric, is_validated=validation_rows is not None)
    telling = Telling(emit, stage, metric.name)
    trainer = LossTrainer(
        model=model,
        args=arguments,
        train_dataset=RowDataset(train_rows),
        eval_dataset=RowDataset(validation_rows) if validation_rows is not None else None,
        data_collator=functools.partial(collate, pad_id=pad_id),
        compute_metrics=functools.partial(_compute, metric),
        preprocess_logits_for_metrics=metric.per_row,
        callbacks=[telling],
        loss=loss,
        validation_loss=validation_loss,
    )
    telling.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)

    before = evaluate(model, validation_rows, metric=metric, pad_id=pad_id) if validation_rows is not None else None
    checkpoint, resumed_at = _last_complete(Path(str(arguments.output_dir)))
    if checkpoint is not None:
        emit(Note(stage, f"resumed after step {resumed_at}"))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    _require_finite(model, settings.learning_rate)
    model.eval()
    state = trainer.state
    return TrainResult(
        n_steps=state.global_step,
        metric=metric.name if validation_rows is not None else None,
        before=before,
        after=_validated(state, metric, settings.keep),
        best_step=state.best_global_step if settings.keep == "best" else state.global_step,
        resumed_at=resumed_at,
        precision=settings.precision,
        history=_curve(state.log_history),
    )


def _validated(state: TrainerState, metric: Metric, keep: Literal["best", "last"]) -> float | None:
    """The validation metric of the state that stays."""
    if keep == "best":
        return None if state.best_metric is None else float(state.best_metric)
    seen = [entry[f"eval_{metric.name}"] for entry in state.log_history if f"eval_{metric.name}" in entry]
    return float(seen[-1]) if seen else None


def n_steps(n_rows: int, settings: TrainSettings) -> int:
    """Optimiser steps of a training, as Trainer counts them."""
    per_epoch = math.ceil(math.ceil(n_rows / settings.batch_size) / settings.gradient_accumulation)
    wanted = math.ceil(settings.epochs * per_epoch)
    return wanted if settings.max_steps is None else min(wanted, settings.max_steps)


def _arguments(
    settings: TrainSettings, n_rows: int, workdir: Path, metric: Metric, *, is_validated: bool
) -> TrainingArguments:
    total = n_steps(n_rows, settings)
    interval: dict[str, Any] = {"strategy": "epoch", "steps": 500}
    if settings.evaluate_every_steps is not None:
        interval = {"strategy": "steps", "steps": settings.evaluate_every_steps}
    n_warmup = math.ceil(settings.warmup_ratio * total)
    schedule = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
    return TrainingArguments(
        output_dir=str(workdir / "trainer"),
        num_train_epochs=settings.epochs,
        max_steps=total,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=n_warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=max(settings.batch_size, 32),
        gradient_accumulation_steps=settings.gradient_accumulation,
        eval_strategy=interval["strategy"] if is_validated else "no",
        eval_steps=interval["steps"],
        save_strategy=interval["strategy"],
        save_steps=interval["steps"],
        save_total_limit=1,
        load_best_model_at_end=is_validated and settings.keep == "best",
        metric_for_best_model=metric.name if is_validated else None,
        greater_is_better=metric.greater_is_better if is_validated else None,
        logging_strategy="steps",
        logging_steps=max(1, total // N_LOG_POINTS),
        logging_nan_inf_filter=False,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=settings.precision == "bf16",
        use_cpu=settings.device == "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=False,
        dataloader_num_workers=0,
        disable_tqdm=True,
        log_level="error",
        report_to="none",
    )


def _compute(metric: Metric, prediction: EvalPrediction) -> dict[str, float]:
    kept, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    return {metric.name: metric.overall(kept, labels)}


def _last_complete(folder: Path) -> tuple[Path | None, int | None]:
    """The newest checkpoint that was written to its end; half-written ones (a kill in mid-write) are removed."""
    best: tuple[Path | None, int | None] = (None, None)
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])):
        try:
            step = json.loads((path / "trainer_state.json").read_text())["global_step"]  # Trainer writes it last
        except (FileNotFoundError, json.JSONDecodeError):
            logging.getLogger(__name__).info("removing the half-written %s", path)
            shutil.rmtree(path)
            continue
        best = (path, int(step))
    return best


def _require_finite(model: nn.Module, learning_rate: float) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise StageError(
                f"training left weights that are not finite (first: {name})",
                hint=f"lower learning_rate (now {learning_rate:g})",
            )


def _curve(log_history: Sequence[dict[str, Any]]) -> tuple[dict[str, float], ...]:
    """The logged points without what depends on the clock, and without figures that are no numbers."""
    kept = []
    for entry in log_history:
        if "train_runtime" in entry:
            continue
        point = {
            name.replace("eval_", "validation_"): float(value)
            for name, value in entry.items()
            if isinstance(value, int | float) and math.isfinite(value) and not name.endswith(_CLOCKS)
        }
        kept.append(point)
    return tuple(kept)
