"""A model's answer as one tensor, and the loss of an answer against its labels; one of each for every kind of task.

Losses, teachers and metrics work on answers, so that they need not know what a model's output is called:

| kind | answer | labels |
| --- | --- | --- |
| class | logits (B, C) | (B,) |
| classes | logits (B, C) | 0.0 or 1.0, (B, C) |
| number | (B, 1) | (B,) |
| token_class | logits (B, T, C) | (B, T), `IGNORED` where nothing is asked |
| span | logits of start and end (B, T, 2) | the two positions (B, 2) |
| next_token | logits (B, T, V) | the tokens themselves (B, T) |
| masked_token | logits (B, T, V) | (B, T), `IGNORED` where the token is seen |
| embedding | vectors (B, d); of pairs (2B, d) | how alike a pair is (B,), or wanted vectors (B, d) |
"""

from __future__ import annotations

from typing import Any, assert_never

import torch
from torch import Tensor
from torch.nn import functional

from compressor.errors import UserError
from compressor.spec.tasks import Kind
from compressor.training.rows import IGNORED

PER_TOKEN: frozenset[Kind] = frozenset({"token_class", "next_token", "masked_token"})
"""Kinds with one distribution for each token."""
VOCABULARY: frozenset[Kind] = frozenset({"next_token", "masked_token"})
"""Kinds whose distributions go over the entire vocabulary."""
COSENT_SCALE = 20.0


def answer_of(outputs: Any, kind: Kind) -> Tensor:
    """The answer in a model's outputs; an embedder's come from `methods.pooling.SentenceEncoder`."""
    answer: Tensor
    if kind == "span":
        answer = torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)
    else:
        answer = outputs.sentence_embedding if kind == "embedding" else outputs.logits
    return answer


def label_error(answer: Tensor, labels: Tensor, kind: Kind) -> Tensor:
    """The task's own loss, a mean; for embedders `cosent`, for all others what transformers' own model computes.

    Raises:
        UserError: an embedder that has no pairs to learn from.
    """
    answer = answer.float()
    match kind:
        case "class":
            return functional.cross_entropy(answer, labels)
        case "classes":
            return functional.binary_cross_entropy_with_logits(answer, labels)
        case "number":
            return functional.mse_loss(answer.squeeze(-1), labels)
        case "token_class" | "masked_token":
            return _per_token(answer, labels)
        case "next_token":
            return _per_token(answer[:, :-1], labels[:, 1:])
        case "span":
            return functional.cross_entropy(answer, labels)  # over T; the mean over rows and over start and end
        case "embedding":
            return _pair_error(answer, labels)
        case _:
            assert_never(kind)


def cosent(cosines: Tensor, labels: Tensor) -> Tensor:
    """log(1 + sum of exp(20 (cos_j - cos_i)) over all pairs of which i should be the more alike).

    Only the order of the labels counts, so any scale of likeness will do (Su, CoSENT, 2022; the loss that
    sentence-transformers recommends for scored pairs).

    Args:
        cosines: (B,).
        labels: how alike the texts of each pair are, (B,).
    """
    scaled = cosines * COSENT_SCALE
    differences = scaled[None, :] - scaled[:, None]  # [i, j] = cos_j - cos_i
    wrong = differences[labels[:, None] > labels[None, :]]
    return torch.cat([wrong.new_zeros(1), wrong]).logsumexp(dim=0)


def _per_token(answer: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(answer.reshape(-1, answer.shape[-1]), labels.reshape(-1), ignore_index=IGNORED)


def _pair_error(answer: Tensor, labels: Tensor) -> Tensor:
    if labels.dim() == 2:
        return (1 - functional.cosine_similarity(answer, labels, dim=-1)).mean()
    if len(answer) != 2 * len(labels):
        raise UserError(
            "an embedder learns from labels only where its rows are pairs",
            where="data.train",
            hint="give text, text_pair and label; texts alone serve distillation",
        )
    first, second = answer.chunk(2)
    return cosent(functional.cosine_similarity(first, second, dim=-1), labels)
