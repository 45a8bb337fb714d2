"""Train a module: the one function behind fine-tuning, distillation and recovery."""

from __future__ import annotations

import functools
import json
import logging
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from compressor.errors import StageError
from compressor.schema.events import Emit, Note
from compressor.training.batching import Batches
from compressor.training.evaluate import evaluate
from compressor.training.metrics import Metric
from compressor.training.processes import first_one_first, is_first_process, n_processes, process_number
from compressor.training.rows import Row, collate, longest_first, on_device
from compressor.training.trainer import Loss, LossTrainer, RowDataset, Saving, Telling

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
    save_every_steps: int | None = None
    tokens_per_batch: int | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
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
        gathered: where processes shared the weights out among them (FSDP): all of them by name in the first process,
            none in the others. The module that was trained then holds a share, and is of no more use.
    """

    n_steps: int
    metric: str | None
    before: float | None
    after: float | None
    best_step: int | None
    resumed_at: int | None
    precision: str
    history: tuple[dict[str, float], ...]
    gathered: Mapping[str, Tensor] | None = None


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
    n_variants: int = 1,
) -> TrainResult:
    """Train a module in place and leave it in its best validated state (its last without a validation split).

    Batches group rows of like length and are padded to their longest row. State is written to `workdir` at each
    validation, at the end of each epoch and every `save_every_steps`; called again with the same arguments after a
    crash, training goes on from there and ends in the very same weights. Where a launcher started several processes
    (`processes.join_processes`), each calls this with the same arguments and ends in the same weights, or, where they
    share the weights out among them, with a share of these and all of them in the first one's `gathered`.

    Args:
        train_rows: all variants of each row one after the other, `n_variants` times as many as there are rows.

    Raises:
        DataError: a row longer than `tokens_per_batch`.
        StageError: the loss or the weights stopped being finite.
    """
    batches = batches_of(train_rows, settings, n_variants)
    arguments = _arguments(settings, batches, workdir, metric, is_validated=validation_rows is not None)
    telling = Telling(emit, stage, metric.name)
    trainer = LossTrainer(
        model=model,
        args=arguments,
        train_dataset=RowDataset(train_rows),
        eval_dataset=RowDataset(longest_first(validation_rows)) if validation_rows is not None else None,
        data_collator=functools.partial(collate, pad_id=pad_id),
        compute_metrics=functools.partial(_compute, metric),
        preprocess_logits_for_metrics=metric.per_row,
        callbacks=[telling, Saving(settings.save_every_steps)],
        loss=loss,
        validation_loss=validation_loss,
        batches=batches,
    )
    telling.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)

    before = None
    with first_one_first():
        if is_first_process() and validation_rows is not None:
            before = evaluate(model, validation_rows, metric=metric, pad_id=pad_id)
        checkpoint, resumed_at = _last_complete(Path(str(arguments.output_dir)))
    if checkpoint is not None:
        emit(Note(stage, f"resumed after step {resumed_at}"))
    with _only_touched(model, loss, train_rows, pad_id):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    gathered = _gather(trainer)
    _require_finite(model.named_parameters() if gathered is None else gathered.items(), settings.learning_rate)
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
        history=curve_of(state.log_history),
        gathered=gathered,
    )


def _gather(trainer: LossTrainer) -> dict[str, Tensor] | None:
    """The weights from all processes, for the first one; None where each process has them all."""
    if not trainer.is_fsdp_enabled:
        return None
    found = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return {name: weight.cpu() for name, weight in found.items()} if is_first_process() else {}


def _validated(state: TrainerState, metric: Metric, keep: Literal["best", "last"]) -> float | None:
    """The validation metric of the state that stays."""
    if keep == "best":
        return None if state.best_metric is None else float(state.best_metric)
    seen = [entry[f"eval_{metric.name}"] for entry in state.log_history if f"eval_{metric.name}" in entry]
    return float(seen[-1]) if seen else None


def batches_of(rows: Sequence[Row], settings: TrainSettings, n_variants: int = 1) -> Batches:
    """The batches of this process.

    Raises:
        DataError: a row longer than `tokens_per_batch`.
    """
    return Batches(
        [len(row["input_ids"]) for row in rows],
        batch_rows=settings.batch_size,
        tokens_per_batch=settings.tokens_per_batch,
        group_batches=settings.gradient_accumulation,
        n_variants=n_variants,
        seed=settings.seed,
        process=process_number(),
        n_processes=n_processes(),
    )


def n_steps(batches: Batches, settings: TrainSettings) -> int:
    """Optimiser steps of a training, as Trainer counts them."""
    per_epoch = math.ceil(len(batches) / settings.gradient_accumulation)
    wanted = math.ceil(settings.epochs * per_epoch)
    return wanted if settings.max_steps is None else min(wanted, settings.max_steps)


def n_drawn(batches: Batches, settings: TrainSettings) -> int:
    """About how many rows training draws, those that it draws again included; all rows in a whole epoch."""
    per_epoch = math.ceil(len(batches) / settings.gradient_accumulation)
    return round(batches.n_rows * n_steps(batches, settings) / per_epoch)


def _arguments(
    settings: TrainSettings, batches: Batches, workdir: Path, metric: Metric, *, is_validated: bool
) -> TrainingArguments:
    total = n_steps(batches, settings)
    batch_rows = max(1, settings.batch_size // batches.n_processes)
    interval: dict[str, Any] = {"strategy": "epoch", "steps": 500}
    if settings.evaluate_every_steps is not None:
        interval = {"strategy": "steps", "steps": settings.evaluate_every_steps}
    n_warmup = math.ceil(settings.warmup_ratio * total)
    return TrainingArguments(
        output_dir=str(workdir / "trainer"),
        num_train_epochs=settings.epochs,
        max_steps=total,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=schedule_of(settings),
        warmup_steps=n_warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=batch_rows,
        per_device_eval_batch_size=max(batch_rows, 32),
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
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        torch_compile=settings.compile,
        ddp_backend="gloo" if settings.device == "cpu" and batches.n_processes > 1 else None,
        ddp_find_unused_parameters=False,
        use_cpu=settings.device == "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=False,
        dataloader_num_workers=0,
        disable_tqdm=True,
        log_level="error",
        report_to="none",
    )


def schedule_of(settings: TrainSettings) -> str:
    """The schedule as Trainer calls it."""
    return "constant_with_warmup" if settings.schedule == "constant" else settings.schedule


@contextmanager
def _only_touched(model: nn.Module, loss: Loss, rows: Sequence[Row], pad_id: int) -> Iterator[None]:
    """Let only those weights train that the loss depends on: several processes wait for each other's every gradient."""
    if n_processes() == 1:
        yield
        return
    batch = on_device(collate(rows[:2], pad_id=pad_id), next(model.parameters()).device)
    model.eval()  # no dropout, so that no random number is drawn
    loss(model, batch)[0].backward()  # type: ignore[no-untyped-call]
    untouched = [weight for weight in model.parameters() if weight.requires_grad and weight.grad is None]
    model.zero_grad()
    for weight in untouched:
        weight.requires_grad_(False)
    yield
    for weight in untouched:
        weight.requires_grad_(True)


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


def _require_finite(weights: Iterable[tuple[str, Tensor]], learning_rate: float) -> None:
    for name, parameter in weights:
        if not torch.isfinite(parameter).all():
            raise StageError(
                f"training left weights that are not finite (first: {name})",
                hint=f"lower learning_rate (now {learning_rate:g})",
            )


def curve_of(log_history: Sequence[dict[str, Any]]) -> tuple[dict[str, float], ...]:
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
