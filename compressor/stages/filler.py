"""A masked language model that replaces words, from a plain folder, held against the student's tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

from compressor.checkpoints.files import digest_json, sha256_file
from compressor.data.tokenize import load_tokenizer
from compressor.errors import CheckpointError, UserError

WHERE = "training.augment.model"


@dataclass(frozen=True)
class Filler:
    """What replaces words.

    Attributes:
        words: which tokens are whole words, (V,).
        digest: of its files.
    """

    module: PreTrainedModel
    words: NDArray[np.bool_]
    mask_id: int
    digest: str


def load_filler(folder: str, tokenizer: PreTrainedTokenizerFast) -> Filler:
    """Open it.

    Raises:
        CheckpointError: no such folder, or no safetensors weights of a masked language model in it.
        UserError: its tokens are not the student's, or it has none to mask with.
    """
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        raise CheckpointError(
            f"there is no model with config.json and safetensors in {folder}",
            where=WHERE,
            hint="name the folder of a masked language model, such as a downloaded bert-base-uncased",
        )
    own = load_tokenizer(path)
    if own.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            "the model that replaces words has other tokens than the student",
            where=WHERE,
            hint="choose a masked language model of the student's family",
        )
    if tokenizer.mask_token_id is None:
        raise UserError(
            "the tokenizer has no mask token", where=WHERE, hint="augmentation serves encoders such as BERT"
        )
    module, report = AutoModelForMaskedLM.from_pretrained(
        path, config=AutoConfig.from_pretrained(path), use_safetensors=True, local_files_only=True,
        output_loading_info=True,
    )  # fmt: skip
    if report["missing_keys"]:
        raise CheckpointError(
            f"{folder} lacks weights of a masked language model, such as {min(report['missing_keys'])}",
            where=WHERE,
            hint="a fine-tuned or pooled model predicts no words; take the pretrained one",
        )
    return Filler(module, whole_words(tokenizer), tokenizer.mask_token_id, _digest(path))


def _digest(folder: Path) -> str:
    return digest_json({path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))})


def whole_words(tokenizer: PreTrainedTokenizerFast) -> NDArray[np.bool_]:
    """Which tokens are words by themselves: letters that do not go on from the token before."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    marked = [token for token in tokens if token.startswith(("\u0120", "\u2581"))]  # a space comes before the word
    starts = [token[1:] for token in tokens] if marked else tokens
    is_word = [
        start.isalpha() and number not in special and (not marked or token.startswith(("\u0120", "\u2581")))
        for number, (token, start) in enumerate(zip(tokens, starts, strict=True))
    ]
    return np.array(is_word)
