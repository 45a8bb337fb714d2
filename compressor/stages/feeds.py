"""Calibration rows as inputs of an ONNX graph: one row at a time, so that no padding widens a range."""

from __future__ import annotations

import numpy as np

from compressor.checkpoints.store import Checkpoint
from compressor.data.tokenize import draw_windows, encode_rows, load_tokenizer, pad
from compressor.errors import DataError
from compressor.runtime.onnx_runner import OnnxDecoderRunner, OnnxRunner
from compressor.runtime.runners import Array, position_ids
from compressor.stages.context import StageContext
from compressor.stages.rows import pad_id_of


def calibration_feeds(runner: OnnxRunner, source: Checkpoint, ctx: StageContext, n_rows: int) -> list[dict[str, Array]]:
    """The first calibration rows (windows, for a decoder with an empty past), by the names of the graph's inputs.

    Raises:
        DataError: there are no calibration rows.
    """
    if ctx.data.calibration is None:
        raise DataError(
            "static quantisation needs calibration rows, and there is neither `data.calibration` nor `data.train`",
            where="data.calibration",
            hint="add one of them, or use w8a8-dynamic",
        )
    tokenizer = load_tokenizer(source.path)
    if ctx.task.is_decoder:
        n_windows = min(n_rows, ctx.calibration_rows)
        texts = ctx.data.calibration["text"]
        ids = draw_windows(tokenizer, texts, context=ctx.max_tokens, n_windows=n_windows, seed=ctx.seed)
        encoded = [{"input_ids": list(window), "attention_mask": [1] * len(window)} for window in ids]
    else:
        first = ctx.data.calibration.select(range(min(n_rows, len(ctx.data.calibration))))
        encoded = encode_rows(tokenizer, first, ctx.max_tokens)
    return [_feed(runner, pad([row], pad_id_of(tokenizer))) for row in encoded]


def _feed(runner: OnnxRunner, inputs: dict[str, Array]) -> dict[str, Array]:
    inputs = {**inputs, "position_ids": position_ids(inputs["attention_mask"])}
    if isinstance(runner, OnnxDecoderRunner):
        for name, ((_, n_heads, _, head_size), dtype) in runner.past.items():
            inputs[name] = np.zeros((1, n_heads, 0, head_size), dtype)
    return runner.feeds(inputs)
