"""Did a conversion change anything? Logits of two runtimes, compared with numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.errors import ParityError

Logits = NDArray[np.floating]

LOSSLESS_TOLERANCES = {"fp32": (1e-4, 1.0), "fp16": (1e-2, 0.999)}  # (relative difference, top-1 agreement)
TIE = 1e-6  # of max |logit|: closer than fp32 arithmetic can order


@dataclass(frozen=True)
class ParityReport:
    """How far a candidate's logits are from the reference's, over real tokens only.

    Attributes:
        max_abs_diff: the largest difference of one logit; infinite where the candidate is not finite.
        max_abs_logit: the largest reference logit, as the scale for it.
        relative: ``max_abs_diff / max_abs_logit``.
        top1_agreement: share of positions with the same largest logit; a tie of the reference agrees with either.
        kl_mean: mean KL(reference || candidate) per position, in nats; infinite where the candidate is not finite.
        n_positions: rows compared.
    """

    max_abs_diff: float
    max_abs_logit: float
    relative: float
    top1_agreement: float
    kl_mean: float
    n_positions: int


def compare_logits(reference: Logits, candidate: Logits, mask: NDArray[np.integer] | None = None) -> ParityReport:
    """Compare two arrays of logits.

    Args:
        reference: (B, C) or (B, T, V).
        candidate: the same shape.
        mask: (B, T), nonzero where a token is real; only with (B, T, V). What a model says on padding means nothing.

    Raises:
        ParityError: shapes differ, nothing to compare, or the reference itself is not finite.
    """
    if reference.shape != candidate.shape:
        raise ParityError(f"logits differ in shape: reference {reference.shape}, candidate {candidate.shape}")
    if mask is not None:
        if mask.shape != reference.shape[:-1]:
            raise ParityError(f"a mask of shape {mask.shape} does not fit logits of shape {reference.shape}")
        reference, candidate = reference[mask != 0], candidate[mask != 0]
    expected, actual = _rows(reference), _rows(candidate)  # (N, V)
    if expected.size == 0:
        raise ParityError("no logits to compare")
    if not np.isfinite(expected).all():
        raise ParityError("the reference logits are not finite", hint="the model itself is broken; train it again")
    max_abs_logit = float(np.abs(expected).max())
    rows = np.arange(len(expected))
    if not np.isfinite(actual).all():
        finite = np.isfinite(actual).all(axis=-1)
        agreement = float((finite & (expected.argmax(-1) == actual.argmax(-1))).mean())
        return ParityReport(float("inf"), max_abs_logit, float("inf"), agreement, float("inf"), len(rows))
    max_abs_diff = float(np.abs(expected - actual).max())
    chosen = expected[rows, actual.argmax(-1)]
    agreement = float((expected.max(-1) - chosen <= TIE * max_abs_logit).mean())
    log_p, log_q = _log_softmax(expected), _log_softmax(actual)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)  # (N,)
    return ParityReport(
        max_abs_diff=max_abs_diff,
        max_abs_logit=max_abs_logit,
        relative=max_abs_diff / max_abs_logit if max_abs_logit else (0.0 if max_abs_diff == 0 else float("inf")),
        top1_agreement=agreement,
        kl_mean=max(float(kl.mean()), 0.0),  # KL >= 0; rounding may leave -1e-17
        n_positions=len(rows),
    )


def check_parity(report: ParityReport, scheme: str, *, is_choice: bool = True) -> None:
    """Refuse a conversion that should change nothing and did.

    ``fp32`` may be off by 1e-4 of the largest logit and must choose the same top-1 everywhere; ``fp16`` by 1e-2 and at
    99.9 %. Lossy schemes are judged by goals, not here, but logits that are not finite fail under every scheme.

    Args:
        is_choice: whether the largest output is an answer; of a vector it is only where it happens to point.

    Raises:
        ParityError: with the numbers.
    """
    if not np.isfinite(report.max_abs_diff):
        raise ParityError(
            f"{scheme}: the converted model gives logits that are not finite",
            hint="fp16 overflows in some models (Gemma 3); use fp32 or int8" if scheme == "fp16" else None,
        )
    if scheme not in LOSSLESS_TOLERANCES:
        return
    relative, agreement = LOSSLESS_TOLERANCES[scheme]
    faults = []
    if report.relative > relative:
        faults.append(
            f"logits differ by up to {report.max_abs_diff:.3g}, that is {report.relative:.3g} of the largest logit "
            f"({report.max_abs_logit:.3g}); {relative:g} is allowed"
        )
    if is_choice and report.top1_agreement < agreement:
        faults.append(
            f"top-1 agrees on {report.top1_agreement:.4%} of {report.n_positions} positions; {agreement:.1%} needed"
        )
    if faults:
        raise ParityError(
            f"{scheme} conversion is not faithful: {'; '.join(faults)}",
            hint="compare the outputs layer by layer, or leave this conversion out",
        )


def _rows(logits: Logits) -> NDArray[np.float64]:
    return logits.reshape(-1, logits.shape[-1]).astype(np.float64)


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
