"""Generation over the waist, in numpy: a compressed model writes text with torch not installed, greedily or by lot.

Beams, penalties and whatever else are transformers' own (`torch_generation.py`), over the same three calls.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from compressor.errors import UserError
from compressor.runtime.runners import Array, DecoderRunner

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Choose: TypeAlias = Callable[[Array], Array]
"""Logits of each row, (B, V), to its next token, (B,)."""
UNFINISHED = "\ufffd"
"""What a tokenizer gives for bytes that are not yet a whole character."""


def most_likely(logits: Array) -> Array:
    """Greedy choice: (B, V) -> (B,)."""
    tokens: Array = logits.argmax(axis=-1)
    return tokens


def drawn(*, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0, seed: int | None = None) -> Choose:
    """A choice by lot from the likelier tokens; each use of the seed gives the same draws.

    Args:
        temperature: divides the logits; below 1 the likely become likelier.
        top_k: draw from this many most likely tokens; from all where None.
        top_p: draw from the fewest tokens that have this much probability together (nucleus sampling, Holtzman et al.
            2020, "The Curious Case of Neural Text Degeneration", arXiv:1904.09751).
        seed: of the draws; others each time where None.

    Raises:
        UserError: a value outside its range.
    """
    if not temperature > 0:
        raise UserError(f"temperature is {temperature:g}; it must be above 0", hint="do_sample=False is greedy")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k is {top_k}; it must be 1 or more", hint="leave it out to draw from all tokens")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p:g}; it must be above 0 and at most 1", hint="1 draws from all tokens")
    rng = np.random.default_rng(seed)

    def choose(logits: Array) -> Array:
        odds = likelihoods(logits, temperature=temperature, top_k=top_k, top_p=top_p)  # (B, V)
        heights = np.cumsum(odds, axis=-1)
        marks = rng.random((len(odds), 1)) * heights[:, -1:]  # the last height is 1 but for rounding
        tokens: Array = (heights > marks).argmax(axis=-1)
        return tokens

    return choose


def likelihoods(logits: Array, *, temperature: float, top_k: int | None, top_p: float) -> Array:
    """What tokens are drawn with, (B, V) -> (B, V): in transformers' order temperature, then top-k, then top-p."""
    scores = logits.astype(np.float64) / temperature
    if top_k is not None and top_k < scores.shape[-1]:
        least = np.partition(scores, -top_k, axis=-1)[:, -top_k, None]  # (B, 1)
        scores = np.where(scores < least, -np.inf, scores)
    odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
    odds /= odds.sum(axis=-1, keepdims=True)
    if top_p < 1:
        order = np.argsort(-odds, axis=-1, kind="stable")
        ranked = np.take_along_axis(odds, order, axis=-1)
        before = np.cumsum(ranked, axis=-1) - ranked  # what likelier tokens have together
        kept = np.where(before < top_p, ranked, 0.0)
        np.put_along_axis(odds, order, kept, axis=-1)
        odds /= odds.sum(axis=-1, keepdims=True)
    result: Array = odds
    return result


def steps(
    runner: DecoderRunner,
    ids: Array,
    mask: Array,
    *,
    max_new_tokens: int,
    choose: Choose = most_likely,
    eos_ids: Collection[int] = (),
    pad_id: int = 0,
) -> Iterator[Array]:
    """The next token of each row, one step at a time.

    Args:
        runner: a decoder.
        ids: prompts, padded on the left, (B, T).
        mask: 1 where a prompt's token is real, (B, T).
        max_new_tokens: steps at most; they end earlier when every row has ended.
        choose: how a token is taken from the logits.
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
        tokens = np.where(ended, pad_id, choose(logits))  # (B,)
        yield tokens
        ended |= np.isin(tokens, stops)
        if ended.all() or step + 1 == max_new_tokens:
            return
        logits, state = runner.decode(tokens[:, None], state)


def generate(
    runner: DecoderRunner,
    ids: Array,
    mask: Array,
    *,
    max_new_tokens: int,
    choose: Choose = most_likely,
    eos_ids: Collection[int] = (),
    pad_id: int = 0,
) -> Array:
    """All steps side by side: new token ids, (B, N)."""
    taken = steps(runner, ids, mask, max_new_tokens=max_new_tokens, choose=choose, eos_ids=eos_ids, pad_id=pad_id)
    tokens: Array = np.stack(list(taken), axis=1)
    return tokens


def pieces(tokenizer: PreTrainedTokenizerFast, tokens: Iterable[int]) -> Iterator[str]:
    """Text as it grows: joined, the pieces are the text of all tokens.

    A token may hold part of a character, and how it is written may hang on the one before. So each step writes the last
    few tokens again, and gives what is longer once its characters are whole.
    """
    taken: list[int] = []
    start = done = 0  # tokens[start:done] have been given, and are written again as context

    def written(end: int | None) -> str:
        return str(tokenizer.decode(taken[start:end], skip_special_tokens=True))

    for token in tokens:
        taken.append(token)
        before, now = written(done), written(None)
        if len(now) > len(before) and not now.endswith(UNFINISHED):
            yield now[len(before) :]
            start, done = done, len(taken)
    rest = written(None)[len(written(done)) :]
    if rest:
        yield rest
