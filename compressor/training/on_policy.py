"""On-policy distillation (GKD, arXiv 2306.13649) by TRL's own trainer: the teacher judges what the student writes.

TRL is an optional package, imported when it is asked for. Its trainer brings the loop, the sampling and the loss (a
generalised Jensen-Shannon divergence); here it is given rows, and its answer becomes ours.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from compressor.errors import MissingPackageError
from compressor.schema.events import Emit, Progress
from compressor.training.evaluate import evaluate
from compressor.training.metrics import Metric
from compressor.training.rows import IGNORED, Row
from compressor.training.train import TrainResult, TrainSettings, curve_of, schedule_of


def train_on_policy(
    student: PreTrainedModel, teacher: PreTrainedModel, *, train_rows: Sequence[Row],
    validation_rows: Sequence[Row] | None, tokenizer: PreTrainedTokenizerBase, share: float, new_tokens: int,
    temperature: float, beta: float, metric: Metric, settings: TrainSettings, pad_id: int, stage: str, emit: Emit,
    workdir: Path,
) -> TrainResult:  # fmt: skip
    """Train a student in place on its own continuations, judged by the teacher; its last state is left.

    Args:
        train_rows: windows of text; the first half of each is a prompt, the second what to go on with off-policy.
        share: of batches that the student continues itself.
        new_tokens: the longest continuation.
        temperature: of the sampling.
        beta: 0 is forward KL, 1 reverse KL.

    Raises:
        MissingPackageError: TRL is not installed.
    """
    if importlib.util.find_spec("trl") is None:
        raise MissingPackageError("trl", extra="trl", needed_for="on-policy distillation")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    per_epoch = math.ceil(math.ceil(len(train_rows) / settings.batch_size) / settings.gradient_accumulation)
    total = min(settings.max_steps or math.inf, math.ceil(settings.epochs * per_epoch))
    before = evaluate(student, validation_rows, metric=metric, pad_id=pad_id) if validation_rows else None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    arguments = GKDConfig(
        output_dir=str(workdir / "trainer"), max_steps=int(total), learning_rate=settings.learning_rate,
        lr_scheduler_type=schedule_of(settings), warmup_steps=math.ceil(settings.warmup_ratio * total),
        weight_decay=settings.weight_decay, max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=settings.batch_size, gradient_accumulation_steps=settings.gradient_accumulation,
        seed=settings.seed, data_seed=settings.seed, bf16=settings.precision == "bf16",
        use_cpu=settings.device == "cpu", gradient_checkpointing=False, lmbda=share, beta=beta,
        temperature=temperature, max_new_tokens=new_tokens, max_length=None, save_strategy="no", report_to="none",
        logging_steps=max(1, int(total) // 100), disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = GKDTrainer(
        model=student, teacher_model=teacher, args=arguments, data_collator=_halves, processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list([{"input_ids": list(row["input_ids"])} for row in train_rows]),
        callbacks=[_Telling(emit, stage)],
    )  # fmt: skip
    trainer.train()
    student.eval()  # type: ignore[no-untyped-call]  # transformers' own
    after = evaluate(student, validation_rows, metric=metric, pad_id=pad_id) if validation_rows else None
    return TrainResult(
        n_steps=trainer.state.global_step,
        metric=metric.name if validation_rows else None,
        before=before,
        after=after,
        best_step=trainer.state.global_step,
        resumed_at=None,
        precision=settings.precision,
        history=curve_of(trainer.state.log_history),
    )


def _halves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Windows as prompts (their first half) and what follows."""
    width = min(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"][:width] for row in rows])  # (B, T)
    prompts, labels = ids[:, : width // 2], ids.clone()
    labels[:, : width // 2] = IGNORED
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels,
        "prompts": prompts, "prompt_attention_mask": torch.ones_like(prompts),
    }  # fmt: skip


class _Telling(TrainerCallback):
    def __init__(self, emit: Emit, stage: str) -> None:
        self.emit, self.stage = emit, stage

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.emit(Progress(self.stage, "train", state.global_step, state.max_steps))
