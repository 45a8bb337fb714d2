"""A candidate's answers on the test rows, reduced in the worker to what quality needs. No torch, no tokenizer.

A language model's logits over a test split would fill a disk, so the worker keeps for each predicted token its negative
log-likelihood and the model's first choice, and whole distributions only at a few positions spread over the text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, assert_never

import numpy as np
import numpy.typing as npt

from compressor.errors import StageError
from compressor.measurement.arrays import Array, Batch
from compressor.runtime.runners import DecoderRunner, Runner

OutputKind = Literal["logits", "words", "masked", "spans", "embeddings", "tokens", "tokens_cached"]
"""Logits by row; by word; predictions of hidden tokens; scores of starts and ends; a vector by row; next-token
predictions in one pass; the same one token at a time through the KV cache."""

N_SCORED = "_n_scored"
"""How many tokens at the end of a window are predicted (the ones before are context only); shape ()."""
KEPT = "_kept"
"""Which of the predicted tokens keep their whole distribution; (n_kept,)."""
ROWS, POSITIONS, TARGETS = "_rows", "_positions", "_targets"
"""Of each word or hidden token of a batch: its row, its position, and the token that is hidden there; (n,) each."""


def write_outputs(runner: Runner, kind: OutputKind, batches: list[dict[str, Array]], out: Path) -> None:
    """Run every batch and write the reduced answers.

    Raises:
        StageError: an output that is not finite.
    """
    arrays: dict[str, Array]
    match kind:
        case "logits":
            arrays = {"logits": _joined(runner, batches, "logits")}
        case "embeddings":
            arrays = {"vectors": _joined(runner, batches, "sentence_embedding")}
        case "words":
            found = [_at_positions(runner.forward(_inputs(batch))["logits"], batch) for batch in batches]
            arrays = {"logits": np.concatenate(found)}
        case "masked":
            arrays = _masked(runner, batches)
        case "spans":
            arrays = _spans(runner, batches)
        case "tokens" | "tokens_cached":
            arrays = _tokens(runner, batches, cached=kind == "tokens_cached")
        case _:
            assert_never(kind)
    for name, array in arrays.items():
        if not np.all(np.isfinite(array)):
            raise StageError(f"{name}: {int(np.sum(~np.isfinite(array)))} of {array.size} outputs are not finite")
    partial = out.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub mixes up **arrays and allow_pickle
    partial.replace(out)


def _inputs(batch: Batch) -> dict[str, Array]:
    return {name: array for name, array in batch.items() if not name.startswith("_")}


def _joined(runner: Runner, batches: list[dict[str, Array]], name: str) -> Array:
    return np.concatenate([runner.forward(_inputs(batch))[name] for batch in batches])


def _at_positions(output: Array, batch: Batch) -> Array:
    """(B, T, C) -> (n, C)."""
    found: Array = output[batch[ROWS], batch[POSITIONS]]
    return found


def _masked(runner: Runner, batches: list[dict[str, Array]]) -> dict[str, Array]:
    """Per hidden token its negative log-likelihood (nats) and the first choice, and a few whole distributions."""
    token_nll, top1, kept = [], [], []
    for batch in batches:
        log_probs = log_softmax(_at_positions(runner.forward(_inputs(batch))["logits"], batch))  # (n, V)
        token_nll.append(-log_probs[np.arange(len(log_probs)), batch[TARGETS]])
        top1.append(log_probs.argmax(axis=1))
        kept.append(log_probs[batch[KEPT]].astype(np.float32))
    return {
        "token_nll": np.concatenate(token_nll),
        "top1": np.concatenate(top1),
        "kept_log_probs": np.concatenate(kept),
    }


def _spans(runner: Runner, batches: list[dict[str, Array]]) -> dict[str, Array]:
    """Scores of all real tokens, rows end to end."""
    found: dict[str, list[Array]] = {"start_logits": [], "end_logits": []}
    for batch in batches:
        outputs = runner.forward(_inputs(batch))
        for name, parts in found.items():
            parts.append(outputs[name][batch["attention_mask"] != 0])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _tokens(runner: Runner, batches: list[dict[str, Array]], *, cached: bool) -> dict[str, Array]:
    """Per window the summed negative log-likelihood (nats); per token the likelihood and the first choice."""
    window_nll, token_nll, top1, kept = [], [], [], []
    for batch in batches:
        n_scored = int(batch[N_SCORED])
        logits = _cached_logits(runner, batch) if cached else runner.forward(_inputs(batch))["logits"][0]  # (T, V)
        log_probs = log_softmax(logits[-n_scored - 1 : -1])  # (n_scored, V): position t predicts token t + 1
        targets = batch["input_ids"][0, -n_scored:]  # (n_scored,)
        nll = -log_probs[np.arange(n_scored), targets]
        window_nll.append(nll.sum())
        token_nll.append(nll)
        top1.append(log_probs.argmax(axis=1))
        kept.append(log_probs[batch[KEPT]].astype(np.float32))
    return {
        "window_nll": np.array(window_nll),
        "token_nll": np.concatenate(token_nll),
        "top1": np.concatenate(top1),
        "kept_log_probs": np.concatenate(kept),
    }


def _cached_logits(runner: Runner, batch: Batch) -> Array:
    """Logits of one window, one token at a time through the cache, as generation sees them: (T, V)."""
    if not isinstance(runner, DecoderRunner):
        raise StageError(f"{type(runner).__name__} has no decode path")
    ids = batch["input_ids"]  # (1, T)
    logits, state = runner.prefill(ids[:, :1], batch["attention_mask"][:, :1])
    steps = [logits.reshape(-1, logits.shape[-1])[-1]]
    for t in range(1, ids.shape[1]):
        logits, state = runner.decode(ids[:, t : t + 1], state)
        steps.append(logits.reshape(-1, logits.shape[-1])[-1])
    return np.stack(steps)


def log_softmax(logits: Array) -> npt.NDArray[np.float64]:
    """Log-probabilities over the last axis, in double precision."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
