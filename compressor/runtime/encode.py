"""Texts -> vectors, as sentence-transformers' `encode` gives them. Needs no torch for an ONNX variant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from compressor.checkpoints.sentence import SentenceModules, read_sentence_modules
from compressor.data.tokenize import encode_texts
from compressor.errors import UserError
from compressor.runtime.predict import Running, run_rows
from compressor.runtime.runners import Array

OUTPUT = "sentence_embedding"


def encode(
    running: Running,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    texts: Sequence[str],
    *,
    prompt: str | None,
    prompt_name: str | None,
    normalise: bool,
    max_tokens: int | None,
) -> Array:
    """One vector of each text, (N, d), in the order of the texts.

    Args:
        prompt: text put before each text.
        prompt_name: of one of the model's own prompts; its default one where neither is given.
        normalise: to length 1, where the model does not do it.
        max_tokens: longest text in tokens; the folder's own limit where that is less.

    Raises:
        UserError: both a prompt and its name.
        CheckpointError: no prompt of that name.
    """
    if prompt is not None and prompt_name is not None:
        raise UserError("give one of: prompt, prompt_name")
    modules = read_sentence_modules(folder) or SentenceModules(("mean",))
    before = prompt if prompt is not None else modules.prompt(prompt_name)
    limits = [limit for limit in (max_tokens, modules.max_tokens) if limit is not None]
    rows = encode_texts(tokenizer, [before + text for text in texts], min(limits) if limits else None)
    if not rows:
        return np.zeros((0, 0), np.float32)
    vectors = np.stack([vector for (vector,) in run_rows(running, rows, (OUTPUT,))])  # (N, d)
    if normalise:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors
