"""Distillation losses: pure functions of tensors, one paper each.

Conventions, the same for all:
- logits are (..., V), hidden states (B, T, H), masks (B, T) with 1 at real tokens; a mask of None means all are real;
- a loss is the mean over real positions, so padding and batch shape change nothing. KL terms sum over the classes of a
  position ("batchmean" over unpadded positions);
- the teacher's side is detached here: no gradient reaches it;
- a temperature T divides both sides' logits and multiplies the loss by T^2, which keeps the size of the gradient
  (Hinton et al. 2015, arXiv 1503.02531, section 2).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.errors import DataError


def logit_kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Forward KL(teacher || student) x T^2 (Hinton et al., arXiv 1503.02531; DistilBERT, arXiv 1910.01108).

    Args:
        student_logits, teacher_logits: (..., V), equal shapes.
        mask: the leading shape; 1 where a position counts.
    """
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    return _mean(_kl(teacher, student), mask) * temperature**2


def reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """KL(student || teacher) x T^2: seeks one mode instead of covering all (MiniLLM, arXiv 2306.08543)."""
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    return _mean(_kl(student, teacher), mask) * temperature**2


def jsd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 0.5,
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Generalised Jensen-Shannon divergence x T^2 (GKD, arXiv 2306.13649, equation 1).

    With m = beta teacher + (1 - beta) student: beta KL(teacher || m) + (1 - beta) KL(student || m).

    Args:
        beta: strictly between 0 and 1; use `logit_kl` or `reverse_kl` for the ends.
    """
    if not 0.0 < beta < 1.0:
        raise ValueError(f"beta must lie strictly between 0 and 1, not {beta}")
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    mixture = _log_mixture(teacher, student, beta)
    value = beta * _kl(teacher, mixture) + (1.0 - beta) * _kl(student, mixture)
    return _mean(value, mask) * temperature**2


def skew_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    skew: float = 0.1,
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Skew forward KL(teacher || skew teacher + (1 - skew) student) x T^2 (DistiLLM, arXiv 2402.03898)."""
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    return _mean(_kl(teacher, _log_mixture(teacher, student, skew)), mask) * temperature**2


def skew_reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    skew: float = 0.1,
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Skew reverse KL(student || (1 - skew) teacher + skew student) x T^2 (DistiLLM, arXiv 2402.03898)."""
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    return _mean(_kl(student, _log_mixture(student, teacher, skew)), mask) * temperature**2


def topk_logit_kl(
    student_logits: Tensor,
    topk_values: Tensor,
    topk_indices: Tensor,
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Forward KL x T^2 from a teacher of which only the k largest logits were cached.

    The tail: the teacher's softmax is taken over its k cached classes alone, so its k probabilities add up to 1 and the
    classes outside get none. The student keeps its full softmax and is therefore taught to put all its mass on the k
    classes. The cached values need no normaliser, and with k = V this is `logit_kl`. The bias is the teacher's tail
    mass: choose k so that it is small at the temperature used.

    Args:
        student_logits: (..., V).
        topk_values: (..., k) raw teacher logits, before any temperature.
        topk_indices: (..., k) their classes.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(topk_values.detach().float() / temperature, dim=-1)
    return _mean(_kl(teacher, student.gather(-1, topk_indices.long())), mask) * temperature**2


def hidden_mse(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, projection: nn.Module | None = None
) -> Tensor:
    """Mean squared error of hidden states over real tokens and channels (TinyBERT, arXiv 1909.10351, equation 9).

    Args:
        student: (B, T, H_student).
        teacher: (B, T, H_teacher).
        projection: learned map from the student's width to the teacher's; needed when they differ.

    Raises:
        DataError: widths that differ without a projection.
    """
    if projection is not None:
        student = projection(student)  # (B, T, H_teacher)
    _same_width(student, teacher, "hidden states")
    return _mean((student.float() - teacher.detach().float()).pow(2).mean(dim=-1), mask)


def hidden_cosine(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, projection: nn.Module | None = None
) -> Tensor:
    """1 - cosine of hidden states, mean over real tokens (DistilBERT, arXiv 1910.01108, section 3).

    Also fits (B, H) sentence embeddings, with a mask of None.

    Raises:
        DataError: widths that differ without a projection.
    """
    if projection is not None:
        student = projection(student)
    _same_width(student, teacher, "hidden states")
    return _mean(1.0 - F.cosine_similarity(student.float(), teacher.detach().float(), dim=-1), mask)


def pkd(student_states: Tensor, teacher_states: Tensor, position: int = 0) -> Tensor:
    """Patient KD: squared distance of normalised states at one token (arXiv 1908.09355, equation 6).

    Args:
        student_states, teacher_states: (M, B, T, H), the M matched layers; summed over layers, mean over the batch.
        position: the token compared, the first by default ([CLS]).

    Raises:
        DataError: widths that differ.
    """
    _same_width(student_states, teacher_states, "hidden states")
    student = F.normalize(student_states[:, :, position].float(), dim=-1)  # (M, B, H)
    teacher = F.normalize(teacher_states[:, :, position].detach().float(), dim=-1)
    return (student - teacher).pow(2).sum(dim=-1).sum(dim=0).mean()


def attention_mse(student_scores: Tensor, teacher_scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of pre-softmax attention scores (TinyBERT, arXiv 1909.10351, equation 8).

    Pairs with a padded query or key are zeroed on both sides and left out of the mean, so padding changes nothing.

    Args:
        student_scores, teacher_scores: (B, heads, T, T), equal shapes.
        mask: (B, T).

    Raises:
        DataError: head counts that differ; use `relation_kl` then.
    """
    if student_scores.shape != teacher_scores.shape:
        raise DataError(
            f"attention scores {tuple(student_scores.shape)} and {tuple(teacher_scores.shape)} cannot be compared",
            hint="this loss needs equal head counts; the MiniLMv2 relation loss does not",
        )
    pairs = _pair_mask(mask, student_scores)  # (B, 1, T, T)
    difference = (student_scores.float() - teacher_scores.detach().float()).masked_fill(~pairs, 0.0)
    return difference.pow(2).sum() / (pairs.sum() * student_scores.shape[1])


def attention_kl(student_scores: Tensor, teacher_scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """KL(teacher || student) of attention distributions, mean over heads and real queries (MiniLM, arXiv 2002.10957).

    Args:
        student_scores, teacher_scores: (B, heads, T, T) pre-softmax scores, equal head counts.

    Raises:
        DataError: head counts that differ.
    """
    if student_scores.shape[1] != teacher_scores.shape[1]:
        raise DataError(
            f"{student_scores.shape[1]} and {teacher_scores.shape[1]} attention heads cannot be compared one by one",
            hint="the MiniLMv2 relation loss takes any head counts",
        )
    return _relation_divergence(student_scores, teacher_scores.detach(), mask)


def value_relation_kl(student_values: Tensor, teacher_values: Tensor, mask: Tensor | None = None) -> Tensor:
    """KL of value relations softmax(V V^T / sqrt(d)) (MiniLM, arXiv 2002.10957, equation 4).

    Args:
        student_values, teacher_values: (B, heads, T, d); head sizes may differ, head counts may not.

    Raises:
        DataError: head counts that differ.
    """
    return attention_kl(_relations(student_values), _relations(teacher_values), mask)


def relation_kl(
    student_vectors: Tensor, teacher_vectors: Tensor, n_relation_heads: int, mask: Tensor | None = None
) -> Tensor:
    """KL of self-attention relations after re-splitting into relation heads (MiniLMv2, arXiv 2012.15828, section 3).

    Call once each for queries, keys and values and add up. Student and teacher may differ in width and head count: the
    right loss for width-pruned students.

    Args:
        student_vectors: (B, T, A_r x d_student), all heads side by side.
        teacher_vectors: (B, T, A_r x d_teacher).
        n_relation_heads: A_r; must divide both widths.

    Raises:
        DataError: a width that A_r does not divide.
    """
    for name, vectors in (("student", student_vectors), ("teacher", teacher_vectors)):
        if vectors.shape[-1] % n_relation_heads:
            raise DataError(
                f"{n_relation_heads} relation heads do not divide the {name}'s width {vectors.shape[-1]}",
                hint="choose a common divisor of both widths, such as "
                f"{math.gcd(student_vectors.shape[-1], teacher_vectors.shape[-1])}",
            )
    student, teacher = (_split_heads(v, n_relation_heads) for v in (student_vectors, teacher_vectors.detach()))
    return _relation_divergence(_relations(student), _relations(teacher), mask)


def _split_heads(vectors: Tensor, n_heads: int) -> Tensor:
    batch, length, width = vectors.shape
    return vectors.view(batch, length, n_heads, width // n_heads).transpose(1, 2)  # (B, A_r, T, d)


def _relations(vectors: Tensor) -> Tensor:
    """Scaled dot products of every two tokens: (B, heads, T, d) -> (B, heads, T, T)."""
    vectors = vectors.float()
    return vectors @ vectors.transpose(-1, -2) / math.sqrt(vectors.shape[-1])


def _relation_divergence(student_scores: Tensor, teacher_scores: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over heads and real queries of KL(softmax(teacher) || softmax(student)) over real keys."""
    pairs = _pair_mask(mask, student_scores)
    keys = pairs.any(dim=-2, keepdim=True)  # (B, 1, 1, T)
    lowest = torch.finfo(torch.float32).min
    student = F.log_softmax(student_scores.float().masked_fill(~keys, lowest), dim=-1)
    teacher = F.log_softmax(teacher_scores.float().masked_fill(~keys, lowest), dim=-1)
    divergence = _kl(teacher, student).mean(dim=1)  # (B, heads, T) -> (B, T)
    return _mean(divergence, pairs.any(dim=-1).squeeze(1))


def _pair_mask(mask: Tensor | None, scores: Tensor) -> Tensor:
    """(B, 1, T, T): both tokens are real."""
    if mask is None:
        return torch.ones(scores.shape[0], 1, *scores.shape[-2:], dtype=torch.bool, device=scores.device)
    real = mask.bool()
    return real[:, None, :, None] & real[:, None, None, :]


def _log_probabilities(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    if temperature <= 0:
        raise ValueError(f"the temperature must be positive, not {temperature}")
    _same_width(student, teacher, "logits")
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    return log_student, F.log_softmax(teacher.detach().float() / temperature, dim=-1)


def _log_mixture(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """log(weight exp(first) + (1 - weight) exp(second)), without leaving log space."""
    if not 0.0 <= weight < 1.0:
        raise ValueError(f"the mixture weight must lie in [0, 1), not {weight}")
    if weight == 0.0:
        return second
    return torch.logaddexp(first + math.log(weight), second + math.log1p(-weight))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last axis; a class of probability 0 adds 0."""
    terms = log_p.exp() * (log_p - log_q)
    return torch.where(log_p.exp() > 0, terms, torch.zeros_like(terms)).sum(dim=-1)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the positions that count.

    Raises:
        DataError: a mask without a single real position.
    """
    if mask is None:
        return values.mean()
    weights = mask.to(values.dtype)
    if weights.shape != values.shape:
        raise DataError(f"a mask of shape {tuple(mask.shape)} does not fit values of shape {tuple(values.shape)}")
    n_real = weights.sum()
    if not bool(n_real > 0):
        raise DataError("a batch without a single unpadded position has no loss", hint="drop empty texts from the data")
    return (values.masked_fill(~mask.bool(), 0.0) * weights).sum() / n_real


def _same_width(student: Tensor, teacher: Tensor, what: str) -> None:
    if student.shape != teacher.shape:
        raise DataError(
            f"{what} {tuple(student.shape)} (student) and {tuple(teacher.shape)} (teacher) cannot be compared",
            hint="give a projection to the teacher's width, or a loss that takes unequal widths (MiniLMv2 relations)",
        )
