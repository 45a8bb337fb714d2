"""Greedy generation over the waist, in numpy: a compressed model writes text with torch not installed.

Sampling and beams are transformers' own (`torch_generation.py`), over the same three calls.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from compressor.errors import UserError
from compressor.runtime.runners import Array, DecoderRunner


def greedy_steps(
    runner: DecoderRunner,
    ids: Array,
    mask: Array,
    *,
    max_new_tokens: int,
    eos_ids: Collection[int] = (),
    pad_id: int = 0,
) -> Iterator[Array]:
    """The most likely next token of each row, one step at a time.

    Args:
        runner: a decoder.
        ids: prompts, padded on the left, (B, T).
        mask: 1 where a prompt's token is real, (B, T).
        max_new_tokens: steps at most; they end earlier when every row has ended.
        eos_ids: tokens that end a row; they are given out, and `pad_id` after them.
        pad_id: what an ended row gives.

    Yields:
        Token ids, (B,).

    Raises:
        UserError: an empty prompt, or a prompt padded on the right.
    """
    if ids.shape[1] == 0 or not mask[:, -1].all():
        raise UserError("each prompt needs a token at its end", hint="pad on the left, and give no empty prompt")
    logits, state = runner.prefill(ids, mask)
    ended = np.zeros(len(ids), dtype=bool)  # (B,)
    stops = np.fromiter(eos_ids, dtype=np.int64)
    for step in range(max_new_tokens):
        tokens = np.where(ended, pad_id, logits.argmax(axis=-1))  # (B,)
        yield tokens
        ended |= np.isin(tokens, stops)
        if ended.all() or step + 1 == max_new_tokens:
            return
        logits, state = runner.decode(tokens[:, None], state)


def greedy(
    runner: DecoderRunner,
    ids: Array,
    mask: Array,
    *,
    max_new_tokens: int,
    eos_ids: Collection[int] = (),
    pad_id: int = 0,
) -> Array:
    """All steps of `greedy_steps` side by side: new token ids, (B, N)."""
    steps = greedy_steps(runner, ids, mask, max_new_tokens=max_new_tokens, eos_ids=eos_ids, pad_id=pad_id)
    tokens: Array = np.stack(list(steps), axis=1)
    return tokens
