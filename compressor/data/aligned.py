"""Text whose answers lie inside it: words, answers to questions, hidden tokens, each tied to the tokens it became.

Alignment goes by character offsets, which every fast tokenizer gives, so that no tokenizer needs settings of its own
for text that comes in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from compressor.data.tokenize import Encoded
from compressor.errors import DataError, UserError

MASKED_SHARE = 0.15
"""Of the tokens that are text, as in BERT (arXiv 1810.04805)."""
OVERLAP = 3
"""Two windows over a long text share one part in so many of their room for text."""


@dataclass(frozen=True)
class WordRow:
    """A sentence.

    Attributes:
        encoded: its tokens, with special ones.
        words: numbers of the words that are still in it; a sentence longer than the model's input loses its last ones.
        positions: of each of these, its first token.
    """

    encoded: Encoded
    words: list[int]
    positions: list[int]


def encode_words(
    tokenizer: PreTrainedTokenizerFast, sentences: Sequence[Sequence[str]], max_tokens: int | None
) -> list[WordRow]:
    """Sentences as tokens, with the first token of each word; one that leaves none (control characters) drops out."""
    if not sentences:
        return []
    encoding = tokenizer(
        [" ".join(words) for words in sentences],
        truncation=max_tokens is not None,
        max_length=max_tokens,
        return_offsets_mapping=True,
        verbose=False,
    )
    rows = []
    for number, words in enumerate(sentences):
        ends = np.cumsum([len(word) + 1 for word in words])  # one past the space after each word
        first: dict[int, int] = {}
        text = " ".join(words)
        for position, (start, end) in enumerate(encoding["offset_mapping"][number]):
            while start < end and text[start] == " ":  # byte-level tokens begin with the space before the word
                start += 1
            if start < end:
                first.setdefault(int(np.searchsorted(ends, start, side="right")), position)
        rows.append(WordRow(_row(encoding, number), sorted(first), [first[word] for word in sorted(first)]))
    return rows


@dataclass(frozen=True)
class SpanWindow:
    """A question with a part of the text that may answer it.

    Attributes:
        encoded: both as tokens.
        row: number of the question.
        offsets: (first character, character after the last) of each token in the text; (-1, -1) elsewhere.
    """

    encoded: Encoded
    row: int
    offsets: list[tuple[int, int]]

    def positions(self, start: int, end: int) -> tuple[int, int] | None:
        """First and last token of the characters from `start` to before `end`; None where the window lacks some."""
        inside = [position for position, (_, last) in enumerate(self.offsets) if last > 0]
        if not inside or self.offsets[inside[0]][0] > start or self.offsets[inside[-1]][1] < end:
            return None
        first = next(position for position in inside if self.offsets[position][1] > start)
        last = next(position for position in reversed(inside) if self.offsets[position][0] < end)
        return first, last


def encode_spans(
    tokenizer: PreTrainedTokenizerFast, questions: Sequence[str], texts: Sequence[str], max_tokens: int
) -> list[SpanWindow]:
    """Questions with their texts; a long text comes in windows that overlap by a third of their room.

    Raises:
        DataError: a question that leaves no room for text.
    """
    if not questions:
        return []
    n_special = int(tokenizer.num_special_tokens_to_add(pair=True))
    lengths = [len(ids) for ids in tokenizer(list(questions), add_special_tokens=False)["input_ids"]]
    longest = int(np.argmax(lengths))
    room = max_tokens - n_special - lengths[longest]
    if room < OVERLAP:
        raise DataError(
            f"row {longest + 1}: the question takes {lengths[longest]} of {max_tokens} tokens and leaves no room for "
            "text",
            hint="raise data.max_tokens, or shorten the question",
        )
    encoding = tokenizer(
        list(questions),
        list(texts),
        truncation="only_second",
        max_length=max_tokens,
        stride=room // OVERLAP,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    windows = []
    for number, row in enumerate(encoding["overflow_to_sample_mapping"]):
        sides = encoding.sequence_ids(number)
        pairs = zip(encoding["offset_mapping"][number], sides, strict=True)
        offsets = [(int(start), int(end)) if side == 1 else (-1, -1) for (start, end), side in pairs]
        windows.append(SpanWindow(_row(encoding, number), int(row), offsets))
    return windows


@dataclass(frozen=True)
class MaskedRow:
    """A piece of text of which some tokens are hidden.

    Attributes:
        encoded: what the model sees.
        positions: of the hidden tokens, rising.
        targets: what stood there.
    """

    encoded: Encoded
    positions: list[int]
    targets: list[int]


def mask_rows(
    tokenizer: PreTrainedTokenizerFast,
    pieces: Sequence[Sequence[int]],
    *,
    seed: int,
    variant: int = 0,
    plain: bool = False,
) -> list[MaskedRow]:
    """Hide 15 % of each piece's tokens, at least one; the same seed and variant hide the same.

    Of the hidden ones eight in ten become the mask token, one in ten another token and one in ten stays (BERT, arXiv
    1810.04805); all become the mask token with `plain`, which asks one clear question and is for judging.

    Args:
        pieces: token ids with special tokens around them.
        seed: the pipeline's.
        variant: other numbers hide other tokens.

    Raises:
        UserError: the tokenizer has no mask token.
    """
    mask_id = tokenizer.mask_token_id
    if mask_id is None:
        raise UserError("the tokenizer has no mask token, so none can be hidden", hint="choose an encoder such as BERT")
    special = set(tokenizer.all_special_ids)
    rows = []
    for number, piece in enumerate(pieces):
        rng = np.random.default_rng([seed, variant, number])
        text = np.array([position for position, token in enumerate(piece) if token not in special])
        if not text.size:
            continue
        n_hidden = max(1, round(MASKED_SHARE * text.size))
        positions = np.sort(rng.choice(text, size=n_hidden, replace=False))
        ids = np.array(piece)
        targets = ids[positions].tolist()
        lot = np.zeros(n_hidden) if plain else rng.random(n_hidden)
        drawn = rng.integers(0, len(tokenizer), n_hidden)
        ids[positions] = np.where(lot < 0.8, mask_id, np.where(lot < 0.9, drawn, ids[positions]))
        encoded: Encoded = {"input_ids": ids.tolist(), "attention_mask": [1] * len(piece)}
        if "token_type_ids" in tokenizer.model_input_names:
            encoded["token_type_ids"] = [0] * len(piece)
        rows.append(MaskedRow(encoded, positions.tolist(), targets))
    return rows


def text_pieces(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Each text cut into pieces that fill a model's input, with special tokens around each; texts never mix."""
    before, after = special_ids_around(tokenizer)
    room = max_tokens - len(before) - len(after)
    if room < 1:
        raise UserError(f"{max_tokens} tokens leave no room beside the special ones", where="data.max_tokens")
    pieces = []
    for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]:
        pieces += [[*before, *ids[start : start + room], *after] for start in range(0, len(ids), room)]
    return pieces


def special_ids_around(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """The special tokens that this tokenizer puts before and after a text."""
    encoding = tokenizer("a", return_special_tokens_mask=True)
    text = [i for i, is_special in enumerate(encoding["special_tokens_mask"]) if not is_special]
    ids = list(encoding["input_ids"])
    return ids[: text[0]], ids[text[-1] + 1 :]


_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def _row(encoding: object, number: int) -> Encoded:
    return {name: list(encoding[name][number]) for name in _INPUTS if name in encoding}  # type: ignore[index,operator]
