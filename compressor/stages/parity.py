"""Does a converted graph still say what it was made from? Asked on real calibration text.

Encoders: ragged batches with padding, and single rows. Decoders: whole sequences in one pass, and the same tokens
through the cache (a prompt into an empty past, single steps of a batch, and a chunk after a past).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np

from compressor.checkpoints.store import Checkpoint
from compressor.data.tokenize import draw_windows, encode_rows, load_tokenizer, pad
from compressor.errors import DataError, ParityError
from compressor.graphs.parity import ParityReport, check_parity, compare_logits
from compressor.runtime.runners import Array, DecoderRunner, Runner
from compressor.spec.tasks import Task
from compressor.stages.context import StageContext
from compressor.stages.rows import pad_id_of

ENCODER_ROWS, ENCODER_BATCH = 64, 8
DECODER_ROWS, DECODER_TOKENS, DECODE_STEPS = 4, 48, 4

Rows: TypeAlias = Sequence[dict[str, list[int]]]


def check_conversion(
    reference: Runner, candidate: Runner, source: Checkpoint, ctx: StageContext, *, scheme: str
) -> dict[str, Any]:
    """Compare two runners path by path; what was found, for the record.

    Raises:
        ParityError: a scheme that should change nothing changed something (named with its path), or logits that are
            not finite under any scheme.
        DataError: no calibration rows.
    """
    if ctx.data.calibration is None:
        raise DataError(
            "a converted graph is checked on calibration rows, and the pipeline has neither `data.calibration` nor "
            "`data.train`",
            where="data.calibration",
            hint="add one of them",
        )
    tokenizer = load_tokenizer(source.path)
    pad_id = pad_id_of(tokenizer)
    if ctx.task.is_decoder:
        tokens = min(ctx.max_tokens, DECODER_TOKENS)
        texts = ctx.data.calibration["text"]
        windows = draw_windows(tokenizer, texts, context=tokens, n_windows=DECODER_ROWS, seed=ctx.seed)
        found = _compare_decoders(reference, candidate, windows, pad_id)
    else:
        first = ctx.data.calibration.select(range(min(ENCODER_ROWS, len(ctx.data.calibration))))
        rows = encode_rows(tokenizer, first, ctx.max_tokens)
        found = _compare_encoders(reference, candidate, rows, pad_id, ctx.task)
    for path, report in found.items():
        try:
            check_parity(report, scheme, is_choice=ctx.task.kind != "embedding")
        except ParityError as error:
            raise ParityError(f"{path}: {error.message}", hint=error.hint) from error
    return {path: asdict(report) for path, report in found.items()}


def _compare_encoders(
    reference: Runner, candidate: Runner, rows: Rows, pad_id: int, task: Task
) -> dict[str, ParityReport]:
    """Every output, in ragged batches and row by row; outputs for each token are compared on real tokens."""
    found = {}
    for n in dict.fromkeys((ENCODER_BATCH, 1)):
        batches = [pad(rows[at : at + n], pad_id) for at in range(0, len(rows), n)]
        answers = [(reference.forward(batch), candidate.forward(batch), batch["attention_mask"]) for batch in batches]
        for name in task.outputs:
            pairs = [(_real(one[name], mask, task), _real(other[name], mask, task)) for one, other, mask in answers]
            path = f"batch {n}" if len(task.outputs) == 1 else f"batch {n}, {name}"
            found[path] = compare_logits(*(np.concatenate(side) for side in zip(*pairs, strict=True)))
    return found


def _real(output: Array, mask: Array, task: Task) -> Array:
    """(B, C) as it is; of (B, T, C) the real tokens, (n, C); of the scores of a span (B, T) too, each as one number."""
    if output.ndim == 2 and task.kind != "span":
        return output
    real: Array = output[mask != 0]
    return real if real.ndim == 2 else real[:, None]


def _compare_decoders(
    reference: Runner, candidate: Runner, windows: Sequence[list[int]], pad_id: int
) -> dict[str, ParityReport]:
    """The reference always runs whole sequences, so a fault of the cache cannot be in both."""
    ragged = [ids[: len(ids) - number] for number, ids in enumerate(windows) if len(ids) - number > DECODE_STEPS]
    if not ragged:
        raise DataError("the calibration text is too short to compare a decoder on", hint="give longer documents")
    batch = _left_padded(ragged, pad_id)
    expected = reference.forward(batch)["logits"]  # (B, T, V)
    found = {"uncached": compare_logits(expected, candidate.forward(batch)["logits"], batch["attention_mask"])}
    if not isinstance(candidate, DecoderRunner):
        return found
    tail = expected[:, -DECODE_STEPS - 1 :]  # (B, steps + 1, V)
    steps = np.stack(list(_single_steps(candidate, batch)), axis=1)
    found["cached"] = compare_logits(tail, steps)
    one = _left_padded(ragged[:1], pad_id)
    _, state = candidate.prefill(one["input_ids"][:, :-DECODE_STEPS], one["attention_mask"][:, :-DECODE_STEPS])
    chunk, _ = candidate.decode(one["input_ids"][:, -DECODE_STEPS:], state)
    found["cached, in a chunk"] = compare_logits(reference.forward(one)["logits"][:, -1], chunk)
    return found


def _single_steps(runner: DecoderRunner, batch: dict[str, Array]) -> Iterator[Array]:
    """Logits after the prompt and after each of the last tokens, (B, V) each."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    logits, state = runner.prefill(ids[:, :-DECODE_STEPS], mask[:, :-DECODE_STEPS])
    yield logits
    for step in range(-DECODE_STEPS, 0):
        logits, state = runner.decode(ids[:, step : step + 1 or None], state)
        yield logits


def _left_padded(rows: Sequence[list[int]], pad_id: int) -> dict[str, Array]:
    encoded = [{"input_ids": list(ids), "attention_mask": [1] * len(ids)} for ids in rows]
    return pad(encoded, pad_id, side="left")
