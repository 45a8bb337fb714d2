"""Losses as functions of a module and a batch: the task's own, and what a teacher adds to it.

A distillation sums weighted parts: the labels' cross-entropy, the divergence of logits, the distance of hidden states.
The terms themselves live in `methods.losses`; here they meet the model's outputs, the mask and the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.errors import UserError
from compressor.methods.losses import hidden_cosine, hidden_mse, jsd, logit_kl, reverse_kl
from compressor.training.rows import IGNORED, Batch, model_inputs
from compressor.training.teacher import Teacher
from compressor.training.trainer import Loss

PROJECTIONS = "distillation_projections"
"""Name under which learned projections live on the student while it trains; removed afterwards."""


@dataclass(frozen=True)
class LogitTerm:
    """Divergence of the output distributions."""

    weight: float
    kind: Literal["forward_kl", "reverse_kl", "jsd"]
    temperature: float


@dataclass(frozen=True)
class HiddenTerm:
    """Distance of hidden states; `layer_map[i]` is the teacher layer for student layer i."""

    weight: float
    kind: Literal["mse", "cosine"]
    layer_map: tuple[int, ...]


def label_loss(*, is_decoder: bool) -> Loss:
    """Cross-entropy against the labels; of a language model, against the next token."""

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        logits = _forward(model, batch, hidden=False).logits
        value = cross_entropy(logits, batch["labels"], is_decoder=is_decoder)
        return value, {}, logits

    return loss


def distillation_loss(
    teacher: Teacher,
    *,
    label_weight: float,
    logits: LogitTerm | None,
    hidden: HiddenTerm | None,
    is_decoder: bool,
) -> Loss:
    """The weighted sum of what the labels, the teacher's logits and its hidden states ask for."""

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        student = _forward(model, batch, hidden=hidden is not None)
        taught = teacher(batch)
        mask = batch["attention_mask"]  # (B, T)
        parts: dict[str, Tensor] = {}
        total = student.logits.new_zeros(())
        if label_weight:
            parts["labels"] = cross_entropy(student.logits, batch["labels"], is_decoder=is_decoder)
            total = total + label_weight * parts["labels"]
        if logits is not None and logits.weight:
            parts["logits"] = _divergence(logits, student.logits, taught.logits, mask if is_decoder else None)
            total = total + logits.weight * parts["logits"]
        if hidden is not None and hidden.weight:
            distance = hidden_mse if hidden.kind == "mse" else hidden_cosine
            projections = getattr(model, PROJECTIONS, None)
            terms = [
                distance(
                    student.hidden_states[layer + 1], taught.hidden[teacher_layer], mask,
                    projections[layer] if projections is not None else None,
                )
                for layer, teacher_layer in enumerate(hidden.layer_map)
            ]  # fmt: skip
            parts["hidden"] = torch.stack(terms).mean()
            total = total + hidden.weight * parts["hidden"]
        return total, parts, student.logits

    return loss


def cross_entropy(logits: Tensor, labels: Tensor, *, is_decoder: bool) -> Tensor:
    """Mean cross-entropy over rows (B, C), or over the predicted tokens of (B, T, V)."""
    if not is_decoder:
        return functional.cross_entropy(logits.float(), labels)
    flat = logits[:, :-1].reshape(-1, logits.shape[-1]).float()  # (B * (T - 1), V)
    return functional.cross_entropy(flat, labels[:, 1:].reshape(-1), ignore_index=IGNORED)


def spread_layers(n_student: int, n_teacher: int) -> tuple[int, ...]:
    """The last teacher layer of each of `n_student` equal shares: 3 of 6 gives (1, 3, 5) (TinyBERT's g(m))."""
    return tuple((number + 1) * n_teacher // n_student - 1 for number in range(n_student))


def check_layer_map(layer_map: Sequence[int] | None, n_student: int, n_teacher: int) -> tuple[int, ...]:
    """The layer map to use, `spread_layers` where none is given.

    Raises:
        UserError: not one teacher layer for each student layer, or one that the teacher does not have.
    """
    if layer_map is None:
        return spread_layers(n_student, n_teacher)
    if len(layer_map) != n_student:
        raise UserError(
            f"losses.hidden.layer_map names {len(layer_map)} layers, but the student has {n_student}",
            hint="give one teacher layer for each student layer, or leave it out to spread them evenly",
        )
    if any(not 0 <= layer < n_teacher for layer in layer_map):
        raise UserError(
            f"losses.hidden.layer_map {list(layer_map)} leaves the teacher, which has {n_teacher} layers",
            hint=f"layers are counted from 0 to {n_teacher - 1}",
        )
    return tuple(layer_map)


def add_projections(student: nn.Module, n_layers: int, student_width: int, teacher_width: int) -> None:
    """Give the student one learned map per layer to the teacher's width, where the widths differ.

    They hang on the student while it trains, so that optimiser and checkpoints include them.
    """
    if student_width != teacher_width:
        maps = nn.ModuleList(nn.Linear(student_width, teacher_width, bias=False) for _ in range(n_layers))
        student.add_module(PROJECTIONS, maps)


def remove_projections(student: nn.Module) -> None:
    """Take the learned maps off again: they are no part of the model."""
    if hasattr(student, PROJECTIONS):
        delattr(student, PROJECTIONS)


def _divergence(term: LogitTerm, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    match term.kind:
        case "forward_kl":
            return logit_kl(student, teacher, temperature=term.temperature, mask=mask)
        case "reverse_kl":
            return reverse_kl(student, teacher, temperature=term.temperature, mask=mask)
        case "jsd":
            return jsd(student, teacher, temperature=term.temperature, mask=mask)


def _forward(model: nn.Module, batch: Batch, *, hidden: bool) -> Any:
    extra = {"use_cache": False} if getattr(model.config, "use_cache", False) else {}
    return model(**model_inputs(batch), output_hidden_states=hidden, **extra)
