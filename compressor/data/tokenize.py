"""Text -> token ids -> padded batches and perplexity windows. Fast tokenizers, numpy, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from compressor.errors import CheckpointError, DataError, UserError

if TYPE_CHECKING:  # a loaded model tokenizes without it
    from datasets import Dataset

Encoded = dict[str, list[int]]
"""One row: `input_ids`, `attention_mask` and, where the model has them, `token_type_ids`; not padded."""

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
}  # fmt: skip


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder. One without a padding token pads with its end-of-text token.

    Raises:
        CheckpointError: no tokenizer files here, or files that cannot be read.
    """
    where = str(folder)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise CheckpointError("no tokenizer here", where=where, hint=f"wanted: {' or '.join(_TOKENIZER_FILES)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the tokenizer cannot be read: {str(error).strip().splitlines()[0]}", where=where, hint="fetch it again"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(
            f"{type(tokenizer).__name__} is no fast tokenizer", where=where, hint="convert it to a tokenizer.json"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise CheckpointError("the tokenizer has neither a padding nor an end-of-text token", where=where)
    return tokenizer


_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, decoder: bool) -> PreTrainedTokenizerFast:
    """A tokenizer learned from text: byte-level BPE as GPT-2's for decoders, lower-case WordPiece as BERT's otherwise.

    The same texts give the same tokenizer.

    Raises:
        DataError: too little text for a vocabulary of that size.
    """
    if decoder:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        bpe = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer=bpe)
        names = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    else:
        tokenizer = _word_piece(list(texts), vocab_size)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
        )
        names = SPECIAL_TOKENS
    if tokenizer.get_vocab_size() != vocab_size:
        raise DataError(
            f"the text gives a vocabulary of {tokenizer.get_vocab_size()} tokens where {vocab_size} are asked for",
            where="model.tokenizer.vocab_size",
            hint="ask for a vocabulary of another size, or train it on other text (a byte-level one has 257 at least)",
        )
    inputs = ["input_ids", "attention_mask"] if decoder else ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, model_input_names=inputs, **names
    )


def _word_piece(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Train WordPiece so that the same texts give the same ids.

    The trainer meets characters inside words ("##e") in the order of a hash map, which differs between processes, and
    breaks ties by id. So it is told these first, in order, as tokens to reserve; the vocabulary then moves to a
    tokenizer in which they are nothing special.
    """
    scratch = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    scratch.normalizer, scratch.pre_tokenizer = normalizer, pre_tokenizer
    inside: set[str] = set()
    for text in texts:
        for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)):
            inside.update(word[1:])
    special = list(SPECIAL_TOKENS.values())
    reserved = special + [f"##{character}" for character in sorted(inside)]
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=reserved, show_progress=False)
    scratch.train_from_iterator(texts, trainer=trainer)
    tokenizer = Tokenizer(models.WordPiece(scratch.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, pre_tokenizer, decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    return tokenizer


def encode_texts(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_tokens: int | None) -> list[Encoded]:
    """Each text as ids with special tokens, cut to `max_tokens` and not padded."""
    if not texts:
        return []
    encoding = tokenizer(list(texts), truncation=max_tokens is not None, max_length=max_tokens, verbose=False)
    names = [name for name in encoding if name in _PADDING or name == "input_ids"]
    return [{name: encoding[name][row] for name in names} for row in range(len(texts))]


def encode_rows(tokenizer: PreTrainedTokenizerFast, dataset: Dataset, max_tokens: int) -> list[Encoded]:
    """Each row's `text` (and `text_pair`) as ids with special tokens, cut to `max_tokens` and not padded."""
    texts = list(dataset["text"])
    pairs = list(dataset["text_pair"]) if "text_pair" in dataset.column_names else None
    encoding = tokenizer(texts, pairs, truncation=True, max_length=max_tokens)
    names = [name for name in encoding if name in _PADDING or name == "input_ids"]
    return [{name: encoding[name][row] for name in names} for row in range(len(texts))]


_PADDING = {"attention_mask": 0, "token_type_ids": 0}


def batch_order(encoded: Sequence[Encoded], order: Literal["file", "length"]) -> list[int]:
    """Row numbers in the order in which `batches` takes them: as they stand, or shortest first."""
    rows = list(range(len(encoded)))
    return rows if order == "file" else sorted(rows, key=lambda row: len(encoded[row]["input_ids"]))


def batches(
    encoded: Sequence[Encoded],
    batch_size: int,
    pad_id: int,
    *,
    order: Literal["file", "length"] = "file",
    side: Literal["right", "left"] = "right",
) -> Iterator[dict[str, np.ndarray]]:
    """Rows in batches, each padded to its own longest row; int64 arrays of shape (B, T).

    With `order="length"` row i of the stream is row `batch_order(encoded, order)[i]` of the input.
    """
    rows = batch_order(encoded, order)
    for start in range(0, len(rows), batch_size):
        yield pad([encoded[row] for row in rows[start : start + batch_size]], pad_id, side=side)


def pad(rows: Sequence[Encoded], pad_id: int, *, side: Literal["right", "left"] = "right") -> dict[str, np.ndarray]:
    """One batch, padded to its longest row; padded positions have attention mask 0 and token type 0."""
    width = max(len(row["input_ids"]) for row in rows)
    batch = {}
    for name in rows[0]:
        filler = pad_id if name == "input_ids" else _PADDING[name]
        array = np.full((len(rows), width), filler, dtype=np.int64)  # (B, T)
        for number, row in enumerate(rows):
            length = len(row[name])
            array[number, slice(0, length) if side == "right" else slice(width - length, width)] = row[name]
        batch[name] = array
    return batch


@dataclass(frozen=True)
class Window:
    """Part of a document, for perplexity.

    Attributes:
        ids: its tokens, (T,).
        n_scored: how many of them, counted from the end, this window predicts; those before are context only.
        n_bytes: UTF-8 bytes of text that the predicted tokens stand for.
        document: number of the document it comes from.
    """

    ids: list[int]
    n_scored: int
    n_bytes: int
    document: int


def windows(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], context: int, stride: int) -> list[Window]:
    """Cut documents so that a model that sees `context` tokens at once predicts each token once.

    The first window predicts all its tokens but the first; each later one moves on by `stride` tokens and predicts
    these, with `context - stride` or more before them. No special tokens, and documents never mix; so the first token
    of a document is predicted by nobody, and its bytes are not counted either. Byte perplexity is
    `exp(sum NLL / sum n_bytes)`, token perplexity `exp(sum NLL / sum n_scored)`.

    Raises:
        UserError: a stride that leaves a token without context.
        DataError: no document of two tokens or more.
    """
    if not 0 < stride < context:
        raise UserError(
            f"stride {stride} must lie between 1 and context - 1 = {context - 1}: a token needs one before it",
            where="evaluate.stride",
        )
    found: list[Window] = []
    for number, text in enumerate(texts):
        ids, ends = _ids_and_byte_ends(tokenizer, text)
        done = 1  # tokens that are predicted already, or never
        end = min(context, len(ids))
        while done < len(ids):
            found.append(Window(ids[max(0, end - context) : end], end - done, ends[end - 1] - ends[done - 1], number))
            done, end = end, min(end + stride, len(ids))
    if not found:
        raise DataError("no document has two tokens, so there is nothing to predict", where="data")
    return found


def _ids_and_byte_ends(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[list[int], list[int]]:
    """Token ids without special tokens, and for each the bytes of text up to its end (the last one's: all bytes)."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    n_bytes = np.cumsum([0, *(len(character.encode()) for character in text)])  # bytes before each character
    ends = np.maximum.accumulate([int(n_bytes[end]) for _, end in encoding["offset_mapping"]] or [0])
    ends[-1] = n_bytes[-1]
    return list(encoding["input_ids"]), [int(end) for end in ends]


def draw_windows(
    tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], *, context: int, n_windows: int, seed: int
) -> list[list[int]]:
    """`n_windows` pieces of `context` tokens drawn from documents, for calibration; no special tokens.

    Documents are read in their order (a calibration split is in a drawn order already) until there are four times as
    many pieces as are wanted. A document shorter than `context` is a piece of its own; a tail is left out.

    Raises:
        DataError: there is no text.
    """
    pool: list[list[int]] = []
    for text in texts:
        ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        last = max(len(ids) - context, 0)
        pool.extend(ids[start : start + context] for start in range(0, last + 1, context) if ids)
        if len(pool) >= 4 * n_windows:
            break
    if not pool:
        raise DataError("no text to draw calibration windows from", where="data.calibration")
    chosen = np.random.default_rng(seed).permutation(len(pool))[:n_windows]
    return [pool[index] for index in sorted(chosen)]
