"""`transformers.Trainer` with our loss and our batches.

Trainer brings the loop, accumulation, clipping, schedule, evaluation, checkpoints and resuming (Accelerate beneath it).
Two methods are ours. `compute_loss` calls the loss it was given and refuses one that is not finite;
`get_train_dataloader` reads `batching.Batches`, which a resumed run and several processes can trust.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from compressor.errors import StageError
from compressor.schema.events import Emit, Progress
from compressor.training.batching import Batches, EpochLoader
from compressor.training.rows import Batch, Row

Loss = Callable[[nn.Module, Batch], tuple[Tensor, Mapping[str, Tensor], Tensor]]
"""(model, batch) -> (the loss, its parts by name, the logits)."""


class RowDataset(Dataset[Row]):
    """Rows in memory, as torch wants them."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row:
        return self.rows[number]


class LossTrainer(Trainer):
    """A Trainer for a loss that is a plain function.

    Args:
        loss: trains; called with the model in training mode.
        validation_loss: measures; called in evaluation mode, where there is no teacher.
        batches: which rows make a batch.
    """

    def __init__(self, *, loss: Loss, validation_loss: Loss, batches: Batches, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.loss = loss
        self.validation_loss = validation_loss
        self.batches = batches
        self.n_tokens = 0
        self.loss_is_scaled_for_ga = False  # our losses are means over the batch
        self.model_accepts_loss_kwargs = False
        self.parts: list[Mapping[str, Tensor]] = []

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of one batch.

        Raises:
            StageError: it is not finite; says at which step and on which rows.
        """
        loss, parts, logits = (self.loss if model.training else self.validation_loss)(model, inputs)
        if not torch.isfinite(loss):
            self._refuse(loss, inputs["index"], training=model.training)
        if model.training:
            self.parts.append({name: part.detach() for name, part in parts.items()})
            self.n_tokens += int(inputs["attention_mask"].sum())
        return (loss, {"logits": logits}) if return_outputs else loss

    def _refuse(self, loss: Tensor, index: Tensor, *, training: bool) -> None:
        rows = ", ".join(str(number) for number in index[:4].tolist()) + (", ..." if len(index) > 4 else "")
        doing = (
            f"in training step {self.state.global_step + 1}"
            if training
            else f"on validation after step {self.state.global_step}"
        )
        raise StageError(
            f"the loss became {loss.item()} {doing} (epoch {self.state.epoch or 0:.2f}, rows {rows})",
            hint=f"lower learning_rate (now {self.args.learning_rate:g}) or max_grad_norm "
            f"(now {self.args.max_grad_norm:g}), or lengthen warmup_ratio{self._last_good_state()}",
        )

    def _last_good_state(self) -> str:
        found = sorted(Path(str(self.args.output_dir)).glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
        return f"; the state of step {found[-1].name.rpartition('-')[2]} is kept in {found[-1]}" if found else ""

    def get_train_dataloader(self) -> DataLoader[Row]:
        """Our batches; each process takes its own share of them, so Accelerate has nothing to share out."""
        return EpochLoader(self.train_dataset, self.batches, self.data_collator)


class Saving(TrainerCallback):
    """Checkpoints beside those at each validation: every n steps, and at the end of each epoch."""

    def __init__(self, every_steps: int | None) -> None:
        self.every_steps = every_steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.every_steps is not None and state.global_step % self.every_steps == 0:
            control.should_save = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_save = True


class Telling(TrainerCallback):
    """Turns what Trainer does into `Progress` events, and adds the parts of the loss to its log."""

    def __init__(self, emit: Emit, stage: str, metric_key: str) -> None:
        self.emit = emit
        self.stage = stage
        self.metric_key = metric_key
        self.trainer: LossTrainer | None = None
        self.figures: dict[str, float] = {}
        self.n_validated = 0
        self.begun_s = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.begun_s = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        assert self.trainer is not None
        latest = self.trainer.parts[-1] if self.trainer.parts else {}
        self.figures |= {name: part.item() for name, part in latest.items()}
        self.figures["tokens_per_s"] = self.trainer.n_tokens / (time.monotonic() - self.begun_s)
        self.emit(Progress(self.stage, "train", state.global_step, state.max_steps, dict(self.figures)))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        assert self.trainer is not None
        parts, self.trainer.parts = self.trainer.parts, []
        entry = state.log_history[-1]
        if "loss" in entry and parts:
            for name in parts[0]:
                entry[f"loss_{name}"] = float(torch.stack([part[name] for part in parts]).mean())

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **_: Any,
    ) -> None:
        self.n_validated += 1
        self.emit(Progress(self.stage, "validate", self.n_validated, len(eval_dataloader)))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        self.n_validated = 0
        self.figures[self.metric_key] = float(metrics[f"eval_{self.metric_key}"])
