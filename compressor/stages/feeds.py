"""Rows as inputs of an ONNX graph; calibration rows one at a time, so that no padding widens a range."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compressor.checkpoints.store import Checkpoint
from compressor.data.tokenize import draw_windows, encode_rows, load_tokenizer, pad
from compressor.errors import DataError
from compressor.runtime.onnx_runner import OnnxDecoderRunner, OnnxRunner
from compressor.runtime.runners import Array, position_ids
from compressor.stages.context import StageContext
from compressor.stages.rows import pad_id_of

FEWEST_ROWS, FEWEST_TOKENS = 8, 128
"""Fewer say little about the ranges of activations."""


def calibration_feeds(
    runner: OnnxRunner, source: Checkpoint, ctx: StageContext, n_rows: int, *, max_tokens: int | None = None
) -> list[dict[str, Array]]:
    """The first calibration rows (windows, for a decoder with an empty past), by the names of the graph's inputs.

    Args:
        runner: of the fp32 graph.
        n_rows: at most so many.
        max_tokens: of a row; the pipeline's where absent.

    Raises:
        DataError: there are no calibration rows, or too few to learn from.
    """
    if ctx.data.calibration is None:
        raise DataError(
            "this scheme needs calibration rows, and there is neither `data.calibration` nor `data.train`",
            where="data.calibration",
            hint="add one of them, or use a scheme that needs none (w8a8-dynamic, w8 or w4 with their defaults)",
        )
    tokenizer, max_tokens = load_tokenizer(source.path), max_tokens or ctx.max_tokens
    if ctx.task.is_decoder:
        n_windows = min(n_rows, ctx.calibration_rows)
        texts = ctx.data.calibration["text"]
        ids = draw_windows(tokenizer, texts, context=max_tokens, n_windows=n_windows, seed=ctx.seed)
        encoded = [{"input_ids": list(window), "attention_mask": [1] * len(window)} for window in ids]
    else:
        first = ctx.data.calibration.select(range(min(n_rows, len(ctx.data.calibration))))
        encoded = encode_rows(tokenizer, first, max_tokens)
    _check_enough(encoded, is_decoder=ctx.task.is_decoder)
    return [as_feed(runner, pad([row], pad_id_of(tokenizer))) for row in encoded]


def as_feed(runner: OnnxRunner, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """A batch by the names of the graph's inputs, with positions and, for a decoder, an empty past."""
    given = {**inputs, "position_ids": position_ids(inputs["attention_mask"])}
    if isinstance(runner, OnnxDecoderRunner):
        for name, ((_, n_heads, _, head_size), dtype) in runner.past.items():
            given[name] = np.zeros((len(inputs["input_ids"]), n_heads, 0, head_size), dtype)
    return runner.feeds(given)


def _check_enough(rows: list[dict[str, list[int]]], *, is_decoder: bool) -> None:
    n_tokens = sum(len(row["input_ids"]) for row in rows)
    if n_tokens < FEWEST_TOKENS or (not is_decoder and len(rows) < FEWEST_ROWS):
        raise DataError(
            f"the calibration set is too small: {len(rows)} rows with {n_tokens} tokens, and activations need "
            f"{FEWEST_TOKENS} tokens" + ("" if is_decoder else f" in {FEWEST_ROWS} rows"),
            where="data.calibration",
            hint="give more rows; a few hundred are better",
        )
