"""What a training looks at on the validation split to keep its best state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from compressor.training.rows import IGNORED


@dataclass(frozen=True)
class Metric:
    """One validation metric, computed in two steps so that a language model's logits are never kept.

    Attributes:
        name: as in reports.
        greater_is_better: which way is up.
        per_row: (logits, labels) of a batch -> what is kept of each row, (B, k).
        overall: (all kept rows, all labels) -> the figure.
    """

    name: str
    greater_is_better: bool
    per_row: Callable[[Tensor, Tensor], Tensor]
    overall: Callable[[NDArray[np.floating], NDArray[np.integer]], float]


def _class_logits(logits: Tensor, labels: Tensor) -> Tensor:
    return logits  # (B, C)


def _accuracy(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    return float((logits.argmax(-1) == labels).mean())


def _nll_and_count(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed negative log-likelihood and number of predicted tokens of each row, (B, 2)."""
    targets = labels[:, 1:]  # (B, T - 1)
    nll = functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )  # (B, T - 1)
    return torch.stack([nll.sum(-1), (targets != IGNORED).sum(-1)], dim=-1)


def _token_perplexity(kept: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    nll, n_tokens = kept.sum(axis=0)
    return float(np.exp(nll / n_tokens))


ACCURACY = Metric("accuracy", True, _class_logits, _accuracy)
TOKEN_PERPLEXITY = Metric("token_perplexity", False, _nll_and_count, _token_perplexity)
"""Over windows that do not overlap: context and stride are both the length of a training row."""
