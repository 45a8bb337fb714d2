"""Prompts to text: what `CompressedModel.generate` and `.stream` do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from compressor.data.tokenize import Encoded, pad
from compressor.errors import UserError
from compressor.runtime.generate import Choose, drawn, most_likely, pieces, steps
from compressor.runtime.runners import Array, DecoderRunner, require_torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Streamer(Protocol):
    """What transformers' `TextStreamer` and its kin are given: the prompt, then each token, then the end."""

    def put(self, value: Any) -> None: ...

    def end(self) -> None: ...


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the defaults are greedy."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None

    def choice(self) -> Choose:
        """The numpy choice, with draws of its own."""
        if not self.do_sample:
            return most_likely
        return drawn(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, seed=self.seed)


@dataclass(frozen=True)
class Prompts:
    """Prompts side by side, padded on the left: ids and mask, (B, T), and the tokens that end a text."""

    ids: Array
    mask: Array
    pad_id: int
    eos_ids: frozenset[int]


def line_up(rows: Sequence[Encoded], pad_id: int, eos_ids: frozenset[int]) -> Prompts:
    """One batch of prompts of any lengths.

    Raises:
        UserError: a prompt without a token.
    """
    if not all(row["input_ids"] for row in rows):
        raise UserError("a prompt is empty", hint="give each at least one token")
    batch = pad(rows, pad_id, side="left")
    return Prompts(batch["input_ids"], batch["attention_mask"], pad_id, eos_ids)


def write(
    runner: DecoderRunner, prompts: Prompts, *, max_new_tokens: int, sampling: Sampling, streamer: Streamer | None
) -> Array:
    """New token ids, (B, N), without torch."""
    if streamer is not None:
        streamer.put(prompts.ids)
    taken = []
    for tokens in _steps(runner, prompts, max_new_tokens, sampling):
        taken.append(tokens)
        if streamer is not None:
            streamer.put(tokens)
    if streamer is not None:
        streamer.end()
    found: Array = np.stack(taken, axis=1)
    return found


def write_pieces(
    runner: DecoderRunner,
    prompts: Prompts,
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_new_tokens: int,
    sampling: Sampling,
) -> Iterator[str]:
    """The text of one prompt as it grows, without torch."""
    taken = (int(tokens[0]) for tokens in _steps(runner, prompts, max_new_tokens, sampling))
    return pieces(tokenizer, _until(taken, prompts.eos_ids))


def write_with_transformers(
    runner: DecoderRunner,
    prompts: Prompts,
    folder: Path,
    *,
    max_new_tokens: int,
    num_beams: int,
    sampling: Sampling,
    settings: Mapping[str, Any],
    streamer: Streamer | None,
) -> Array:
    """New token ids, (B, N), by transformers' own loop: beams, and any setting of its `GenerationConfig`.

    Raises:
        MissingPackageError: torch is not installed.
    """
    require_torch("beam search and transformers' generation settings")
    from compressor.runtime.torch_generation import generate_with_transformers
    from compressor.runtime.torch_models import read_config

    chosen: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "num_beams": num_beams,
        "do_sample": sampling.do_sample,
        "eos_token_id": sorted(prompts.eos_ids) or None,
        "pad_token_id": prompts.pad_id,
    }
    if sampling.do_sample:
        chosen |= {"temperature": sampling.temperature, "top_k": sampling.top_k or 0, "top_p": sampling.top_p}
    return generate_with_transformers(
        runner,
        prompts.ids,
        prompts.mask,
        config=read_config(folder),
        settings={**chosen, **settings},
        seed=sampling.seed,
        streamer=streamer,
    )


def _steps(runner: DecoderRunner, prompts: Prompts, max_new_tokens: int, sampling: Sampling) -> Iterator[Array]:
    return steps(
        runner,
        prompts.ids,
        prompts.mask,
        max_new_tokens=max_new_tokens,
        choose=sampling.choice(),
        eos_ids=prompts.eos_ids,
        pad_id=prompts.pad_id,
    )


def _until(tokens: Iterator[int], eos_ids: frozenset[int]) -> Iterator[int]:
    """Tokens before the first that ends a text."""
    for token in tokens:
        if token in eos_ids:
            return
        yield token
