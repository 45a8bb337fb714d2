"""What a training looks at on the validation split to keep its best state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from compressor.data.scores import entities, f1_of, pearson, spearman
from compressor.spec.tasks import Kind, Task
from compressor.training.rows import IGNORED

Kept = NDArray[np.floating]
Labels = NDArray[np.integer] | NDArray[np.floating]


@dataclass(frozen=True)
class Metric:
    """One validation metric, computed in two steps so that a language model's logits are never kept.

    Attributes:
        name: as in reports.
        greater_is_better: which way is up.
        per_row: (answer, labels) of a batch -> what is kept of each row, (B, k).
        overall: (all kept rows, all labels) -> the figure; labels are empty where they have a line per token.
        kind: of the answers that `per_row` takes.
    """

    name: str
    greater_is_better: bool
    per_row: Callable[[Tensor, Tensor], Tensor]
    overall: Callable[[Kept, Labels], float]
    kind: Kind


def metric_for(task: Task, classes: Sequence[str] | None = None) -> Metric:
    """The metric that picks the best state of a task.

    Args:
        task: its row of the table.
        classes: of a token classifier; entities are counted where their names are in IOB notation.
    """
    kind = task.kind
    match kind:
        case "class":
            return ACCURACY
        case "classes":
            return Metric("micro_f1", True, _as_it_is, _micro_f1, kind)
        case "number" if task.name == "regression":
            return Metric("pearson", True, _as_it_is, lambda kept, labels: pearson(kept[:, 0], labels), kind)
        case "number":
            return Metric("spearman", True, _as_it_is, lambda kept, labels: spearman(kept[:, 0], labels), kind)
        case "token_class" if is_iob(classes or ()):
            count = functools.partial(_entity_counts, classes=tuple(classes or ()))
            return Metric("entity_f1", True, count, _f1, kind)
        case "token_class":
            return Metric("token_accuracy", True, _hits, _share, kind)
        case "span":
            return Metric("exact_match", True, _same_span, _share, kind)
        case "masked_token":
            return Metric("masked_perplexity", False, _masked_nll, _perplexity, kind)
        case "next_token":
            return TOKEN_PERPLEXITY
        case "embedding":
            return Metric("spearman", True, _cosines, _alike, kind)


def is_iob(classes: Sequence[str]) -> bool:
    """Whether classes are named `O`, `B-...`, `I-...`: the parts of entities."""
    return "O" in classes and all(name == "O" or name[:2] in ("B-", "I-", "E-", "S-") for name in classes)


def _as_it_is(answer: Tensor, labels: Tensor) -> Tensor:
    return answer.float()  # (B, C)


def _mean(kept: Kept, labels: Labels) -> float:
    return float(kept.mean())


def _accuracy(logits: Kept, labels: Labels) -> float:
    return float((logits.argmax(-1) == labels).mean())


def _micro_f1(logits: Kept, labels: Labels) -> float:
    told, true = logits > 0, labels > 0.5
    return f1_of(int((told & true).sum()), int(told.sum()), int(true.sum()))


def _entity_counts(answer: Tensor, labels: Tensor, *, classes: tuple[str, ...]) -> Tensor:
    """Found, told and true entities of each row, (B, 3)."""
    counts = []
    for told, true in zip(answer.argmax(-1).tolist(), labels.tolist(), strict=True):
        asked = [position for position, label in enumerate(true) if label != IGNORED]
        told_entities = entities([classes[told[position]] for position in asked])
        true_entities = entities([classes[true[position]] for position in asked])
        counts.append([len(told_entities & true_entities), len(told_entities), len(true_entities)])
    return torch.tensor(counts, dtype=torch.float32)


def _f1(kept: Kept, labels: Labels) -> float:
    found, told, true = kept.sum(axis=0)
    return f1_of(int(found), int(told), int(true))


def _hits(answer: Tensor, labels: Tensor) -> Tensor:
    """Right and asked tokens of each row, (B, 2)."""
    asked = labels != IGNORED
    return torch.stack([((answer.argmax(-1) == labels) & asked).sum(-1), asked.sum(-1)], dim=-1).float()


def _same_span(answer: Tensor, labels: Tensor) -> Tensor:
    """Whether both ends are right, and 1, (B, 2)."""
    same = (answer.argmax(dim=1) == labels).all(dim=-1).float()
    return torch.stack([same, torch.ones_like(same)], dim=-1)


def _share(kept: Kept, labels: Labels) -> float:
    right, asked = kept.sum(axis=0)
    return float(right / asked)


def _cosines(answer: Tensor, labels: Tensor) -> Tensor:
    """Of the two texts of each pair, or of a text's vector with the wanted one, (B, 1)."""
    first, second = answer.float().chunk(2) if labels.dim() == 1 else (answer.float(), labels)
    return functional.cosine_similarity(first, second, dim=-1).unsqueeze(-1)


def _alike(kept: Kept, labels: Labels) -> float:
    return spearman(kept[:, 0], labels)


def _nll_and_count(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed negative log-likelihood and number of predicted tokens of each row, (B, 2)."""
    return _masked_nll(logits[:, :-1], labels[:, 1:])


def _masked_nll(logits: Tensor, targets: Tensor) -> Tensor:
    nll = functional.cross_entropy(
        logits.float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )  # (B, T)
    return torch.stack([nll.sum(-1), (targets != IGNORED).sum(-1)], dim=-1)


def _perplexity(kept: Kept, labels: Labels) -> float:
    nll, n_tokens = kept.sum(axis=0)
    return float(np.exp(nll / n_tokens))


ACCURACY = Metric("accuracy", True, _as_it_is, _accuracy, "class")
TOKEN_PERPLEXITY = Metric("token_perplexity", False, _nll_and_count, _perplexity, "next_token")
"""Over windows that do not overlap: context and stride are both the length of a training row."""
COSINE_TO_TEACHER = Metric("cosine_to_teacher", True, _cosines, _mean, "embedding")
"""Of an embedder whose texts have no labels but the vectors that its teacher gives them."""
