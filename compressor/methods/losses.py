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


def coarse_logits(logits: Tensor, classes: Tensor, temperature: float = 1.0) -> Tensor:
    """Logits of k classes of a position and, as one more class, of all the others together.

    With this a cache of a teacher's k largest logits keeps the mass of its tail: its softmax is the teacher's own
    probability of each kept class and of "something else". Both sides are made coarse with the same classes, and any
    divergence of this module is taken between them with its temperature left at 1 (times T^2, as everywhere). Adding
    up classes never makes a divergence larger, so the value is a lower bound of the one over all classes, and equal to
    it where the two sides share out their tails alike.

    Args:
        logits: (..., V).
        classes: (..., k) indices, k < V.
        temperature: T; the sum over the tail depends on it, so a cache belongs to one T.

    Returns:
        (..., k + 1) logits at temperature T; the last is the log of the tail's sum.
    """
    scaled = logits.float() / temperature
    kept = scaled.gather(-1, classes)
    tail = scaled.scatter(-1, classes, -torch.inf).logsumexp(dim=-1, keepdim=True)  # (..., 1)
    return torch.cat([kept, tail], dim=-1)


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


def output_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of the outputs themselves: a score, a number, or an embedding, and logits where it is asked.

    For rerankers it is score distillation (the pointwise recipe of the Ettin rerankers), for sentence embeddings the
    recipe of multilingual distillation (arXiv 2004.09813). `hidden_cosine` is the same for directions alone.

    Args:
        student, teacher: (..., C), equal shapes; mean over the channels.
        mask: the leading shape.

    Raises:
        DataError: widths that differ.
    """
    _same_width(student, teacher, "outputs")
    return _mean((student.float() - teacher.detach().float()).pow(2).mean(dim=-1), mask)


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


def attention_mse(
    student_scores: Tensor, teacher_scores: Tensor, mask: Tensor | None = None, *, is_causal: bool = False
) -> Tensor:
    """Mean squared error of pre-softmax attention scores (TinyBERT, arXiv 1909.10351, equation 8).

    Pairs with a padded query or key are zeroed on both sides and left out of the mean, so padding changes nothing.

    Args:
        student_scores, teacher_scores: (B, heads, T, T), equal shapes.
        mask: (B, T).
        is_causal: whether a token sees only itself and those before it, as in decoders.

    Raises:
        DataError: head counts that differ; use `relation_kl` then.
    """
    if student_scores.shape != teacher_scores.shape:
        raise DataError(
            f"attention scores {tuple(student_scores.shape)} and {tuple(teacher_scores.shape)} cannot be compared",
            hint="this loss needs equal head counts; the MiniLMv2 relation loss does not",
        )
    pairs = _pair_mask(mask, student_scores, is_causal)  # (B, 1, T, T)
    difference = (student_scores.float() - teacher_scores.detach().float()).masked_fill(~pairs, 0.0)
    return difference.pow(2).sum() / (pairs.sum() * student_scores.shape[1])


def attention_kl(
    student_scores: Tensor, teacher_scores: Tensor, mask: Tensor | None = None, *, is_causal: bool = False
) -> Tensor:
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
    return _relation_divergence(student_scores, teacher_scores.detach(), mask, is_causal)


def relation_kl(
    student_vectors: Tensor,
    teacher_vectors: Tensor,
    n_relation_heads: int,
    mask: Tensor | None = None,
    *,
    is_causal: bool = False,
) -> Tensor:
    """KL of self-attention relations after re-splitting into relation heads (MiniLMv2, arXiv 2012.15828, section 3).

    Call once each for queries, keys and values and add up; values alone, split into the heads of attention, are the
    value relations of MiniLM (arXiv 2002.10957, equation 4). Student and teacher may differ in width and head count:
    the right loss for width-pruned students.

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
    student, teacher = (split_heads(v, n_relation_heads) for v in (student_vectors, teacher_vectors.detach()))
    return _relation_divergence(dot_products(student), dot_products(teacher), mask, is_causal)


def split_heads(vectors: Tensor, n_heads: int) -> Tensor:
    """(B, T, heads x d), all heads side by side -> (B, heads, T, d)."""
    batch, length, width = vectors.shape
    return vectors.view(batch, length, n_heads, width // n_heads).transpose(1, 2)


def dot_products(rows: Tensor, columns: Tensor | None = None) -> Tensor:
    """Scaled dot products of every two tokens: (B, heads, T, d) -> (B, heads, T, T).

    Of queries with keys they are the attention scores before the softmax; of one kind of vector with itself (no
    `columns`), its relations. Grouped-query attention: each group of heads in `rows` shares a head of `columns`.
    """
    rows = rows.float()
    columns = rows if columns is None else columns.float()
    if columns.shape[1] != rows.shape[1]:
        columns = columns.repeat_interleave(rows.shape[1] // columns.shape[1], dim=1)
    return rows @ columns.transpose(-1, -2) / math.sqrt(rows.shape[-1])


def _relation_divergence(
    student_scores: Tensor, teacher_scores: Tensor, mask: Tensor | None, is_causal: bool
) -> Tensor:
    """Mean over heads and real queries of KL(softmax(teacher) || softmax(student)) over the keys that a query sees."""
    pairs = _pair_mask(mask, student_scores, is_causal)
    real = pairs.any(dim=-1)  # (B, 1, T), the queries
    # A padded query sees nothing; it gets all keys here, so that its softmax is finite, and no weight below.
    keys = pairs | ~real.unsqueeze(-1)  # (B, 1, T, T)
    lowest = torch.finfo(torch.float32).min
    student = F.log_softmax(student_scores.float().masked_fill(~keys, lowest), dim=-1)
    teacher = F.log_softmax(teacher_scores.float().masked_fill(~keys, lowest), dim=-1)
    divergence = _kl(teacher, student).mean(dim=1)  # (B, heads, T) -> (B, T)
    return _mean(divergence, real.squeeze(1))


def _pair_mask(mask: Tensor | None, scores: Tensor, is_causal: bool) -> Tensor:
    """(B, 1, T, T): both tokens are real and, where attention is causal, the key does not come after the query."""
    batch, length = scores.shape[0], scores.shape[-1]
    real = torch.ones(batch, length, dtype=torch.bool, device=scores.device) if mask is None else mask.bool()
    pairs = real[:, None, :, None] & real[:, None, None, :]
    return pairs & torch.ones(length, length, dtype=torch.bool, device=scores.device).tril() if is_causal else pairs


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
