"""The test rows of every encoder task as arrays for the workers, with what their answers are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from compressor.data.aligned import encode_spans, encode_words, mask_rows, text_pieces
from compressor.data.tokenize import Encoded, batches, encode_rows, encode_texts
from compressor.measurement.arrays import Array, Batch
from compressor.measurement.inputs import KEPT_DISTRIBUTIONS, PreparedRows, Question, save_rows
from compressor.measurement.outputs import KEPT, POSITIONS, ROWS, TARGETS, OutputKind
from compressor.spec.tasks import Task

Save = Callable[..., PreparedRows]


def prepare_encoder_rows(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    *,
    n_classes: int,
    batch: int,
    max_tokens: int,
    seed: int,
    folder: Path,
) -> PreparedRows:
    """The rows of a test split, in file order.

    Args:
        n_classes: of the head, for tasks that choose any number of them.
        seed: hides tokens of a masked language model; the same for all candidates.
    """
    settings: dict[str, Any] = {"batch": batch, "order": "file", "max_tokens": max_tokens}
    save: Save = partial(_save, tokenizer=tokenizer, batch=batch, folder=folder)
    match task.kind:
        case "token_class":
            return _words(rows, tokenizer, max_tokens, settings, save)
        case "masked_token":
            return _hidden(rows, tokenizer, max_tokens, settings | {"seed": seed}, save)
        case "span":
            return _questions(rows, tokenizer, max_tokens, settings, save)
        case "embedding":
            return _texts(rows, tokenizer, max_tokens, settings, save)
        case "classes":
            labels = np.zeros((len(rows), n_classes), dtype=np.int64)
            for number, row in enumerate(rows["label"]):
                labels[number, row] = 1
        case "class" | "number" | "next_token":
            labels = np.array(rows["label"])
    groups = _queries(rows["text"]) if task.name == "reranking" else None
    return save(
        encode_rows(tokenizer, rows, max_tokens),
        "logits",
        PreparedRows("logits", folder, "", settings, labels=labels, groups=groups),
    )


def _words(
    rows: Dataset, tokenizer: PreTrainedTokenizerFast, max_tokens: int, settings: dict[str, Any], save: Save
) -> PreparedRows:
    encoded = encode_words(tokenizer, rows["words"], max_tokens)
    tags = rows["label"]
    labels = np.array([tags[number][word] for number, row in enumerate(encoded) for word in row.words])
    n_cut = sum(len(words) for words in rows["words"]) - labels.size
    groups = np.repeat(np.arange(len(encoded)), [len(row.words) for row in encoded])
    prepared = PreparedRows("words", Path(), "", settings | {"words_cut": n_cut}, labels=labels, groups=groups)
    return save([row.encoded for row in encoded], "words", prepared, positions=[row.positions for row in encoded])


def _hidden(
    rows: Dataset, tokenizer: PreTrainedTokenizerFast, max_tokens: int, settings: dict[str, Any], save: Save
) -> PreparedRows:
    masked = mask_rows(tokenizer, text_pieces(tokenizer, rows["text"], max_tokens), seed=settings["seed"], plain=True)
    groups = np.repeat(np.arange(len(masked)), [len(row.positions) for row in masked])
    targets = [row.targets for row in masked]
    prepared = PreparedRows(
        "masked", Path(), "", settings | {"hidden": "15 % of each piece, all as the mask token"},
        targets=np.array([token for row in targets for token in row]), groups=groups,
    )  # fmt: skip
    positions = [row.positions for row in masked]
    return save([row.encoded for row in masked], "masked", prepared, positions=positions, targets=targets)


def _questions(
    rows: Dataset, tokenizer: PreTrainedTokenizerFast, max_tokens: int, settings: dict[str, Any], save: Save
) -> PreparedRows:
    windows = encode_spans(tokenizer, rows["text"], rows["text_pair"], max_tokens)
    ends = np.cumsum([len(window.offsets) for window in windows])
    of_row: list[list[int]] = [[] for _ in range(len(rows))]
    for number, window in enumerate(windows):
        of_row[window.row].append(number)
    questions = tuple(
        Question(
            text=text,
            answers=tuple(answer["text"] for answer in answers),
            windows=tuple((int(ends[number]) - len(windows[number].offsets), int(ends[number])) for number in numbers),
            offsets=tuple(tuple(windows[number].offsets) for number in numbers),
        )
        for text, answers, numbers in zip(rows["text_pair"], rows["label"], of_row, strict=True)
    )
    has_none = any(not question.answers for question in questions)
    settings = settings | {"windows": len(windows), "may_have_no_answer": has_none}
    return save(
        [window.encoded for window in windows],
        "spans",
        PreparedRows("spans", Path(), "", settings, questions=questions),
    )


def _texts(
    rows: Dataset, tokenizer: PreTrainedTokenizerFast, max_tokens: int, settings: dict[str, Any], save: Save
) -> PreparedRows:
    """Each different text once; pairs refer to them by number."""
    sides = [list(rows[name]) for name in ("text", "text_pair") if name in rows.column_names]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(text for side in sides for text in side))}
    labels = np.array(rows["label"]) if "label" in rows.column_names else None
    pairs = None if labels is None else np.array([[numbers[text] for text in side] for side in sides]).T  # (n, 2)
    prepared = PreparedRows("embeddings", Path(), "", settings, labels=labels, pairs=pairs)
    return save(encode_texts(tokenizer, list(numbers), max_tokens), "embeddings", prepared)


def _queries(texts: Sequence[str]) -> Array:
    """A number for each different query, (n,)."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return np.array([numbers[text] for text in texts])


def _save(
    encoded: list[Encoded],
    kind: OutputKind,
    prepared: PreparedRows,
    *,
    tokenizer: PreTrainedTokenizerFast,
    batch: int,
    folder: Path,
    positions: Sequence[Sequence[int]] | None = None,
    targets: Sequence[Sequence[int]] | None = None,
) -> PreparedRows:
    assert tokenizer.pad_token_id is not None
    made: list[Batch] = list(batches(encoded, batch, int(tokenizer.pad_token_id)))
    if positions is not None:
        n_before, n_all = 0, sum(map(len, positions))
        kept = np.unique(np.linspace(0, max(n_all - 1, 0), KEPT_DISTRIBUTIONS).astype(np.int64))
        for number, inputs in enumerate(made):
            mine = range(number * batch, min((number + 1) * batch, len(encoded)))
            extra = {
                ROWS: np.repeat(np.arange(len(mine)), [len(positions[row]) for row in mine]),
                POSITIONS: np.array([place for row in mine for place in positions[row]], dtype=np.int64),
            }
            n_here = extra[POSITIONS].size
            if targets is not None:
                extra[TARGETS] = np.array([token for row in mine for token in targets[row]], dtype=np.int64)
                extra[KEPT] = kept[(kept >= n_before) & (kept < n_before + n_here)] - n_before
            made[number] = {**inputs, **extra}
            n_before += n_here
    return save_rows(made, folder, kind, prepared)
