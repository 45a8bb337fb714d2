"""A model's answer in words, one function for each kind of task. numpy only: an ONNX variant predicts without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerFast

from compressor.data.aligned import encode_spans, encode_words
from compressor.data.tokenize import Encoded, batch_order, batches, encode_texts
from compressor.errors import UserError
from compressor.runtime.runners import Array, Runner

LONGEST_ANSWER = 30
"""Tokens of an answer to a question; as in the SQuAD evaluation of BERT."""


@dataclass(frozen=True)
class Running:
    """A runner and how texts become its batches."""

    runner: Runner
    batch_size: int
    pad_id: int
    order: Literal["file", "length"] = "file"


def run_rows(running: Running, rows: Sequence[Encoded], names: Sequence[str]) -> list[tuple[Array, ...]]:
    """The named outputs of each row, in the order of the rows; those with a line per token without padding."""
    numbers = batch_order(rows, running.order)
    found: list[tuple[Array, ...]] = [()] * len(rows)
    done = 0
    for batch in batches(rows, running.batch_size, running.pad_id, order=running.order):
        outputs = running.runner.forward(batch)
        n, width = batch["input_ids"].shape
        for place in range(n):
            number = numbers[done + place]
            length = len(rows[number]["input_ids"])
            values = (outputs[name][place] for name in names)
            found[number] = tuple(value[:length] if value.shape[:1] == (width,) else value for value in values)
        done += n
    return found


def one_class(logits: Array, labels: Sequence[str] | None) -> list[dict[str, Any]]:
    """(N, C) -> the most likely class of each row and its probability."""
    odds = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    scores = odds / odds.sum(axis=1, keepdims=True)
    best = scores.argmax(axis=1)
    return [
        {"label": _name(int(index), labels), "score": float(row[index])}
        for row, index in zip(scores, best, strict=True)
    ]


def class_sets(logits: Array, labels: Sequence[str] | None) -> list[dict[str, Any]]:
    """(N, C) -> the classes of each row that are more likely than not, and the probability of every class."""
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return [
        {
            "labels": [_name(int(index), labels) for index in np.flatnonzero(row > 0.5)],
            "scores": {_name(index, labels): float(score) for index, score in enumerate(row)},
        }
        for row in scores
    ]


def numbers(logits: Array) -> list[dict[str, Any]]:
    """(N, 1) -> the number of each row."""
    return [{"score": float(row[0])} for row in logits]


def tagged_words(
    running: Running,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str | Sequence[str]],
    labels: Sequence[str] | None,
    max_tokens: int | None,
) -> list[list[dict[str, Any]]]:
    """The class of each word of each text; words beyond the model's length have none.

    Args:
        texts: words, or text whose words are taken apart at spaces.
    """
    sentences = [text.split() if isinstance(text, str) else list(text) for text in texts]
    rows = encode_words(tokenizer, sentences, max_tokens)
    outputs = run_rows(running, [row.encoded for row in rows], ("logits",))
    found: list[list[dict[str, Any]]] = []
    for words, row, (logits,) in zip(sentences, rows, outputs, strict=True):
        answers = [{"word": word, "label": None, "score": None} for word in words]
        for number, answer in zip(
            row.words, one_class(logits[row.positions], labels) if row.words else [], strict=True
        ):
            answers[number] = {"word": words[number], **answer}
        found.append(answers)
    return found


def answers_in_text(
    running: Running,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[tuple[str, str]],
    max_tokens: int | None,
) -> list[dict[str, Any]]:
    """The part of each text that answers its question: `answer`, its characters `start` and `end`, and `score`.

    The score is the sum of the logits of its start and its end; it ranks answers to one question.

    Args:
        questions: (question, text) pairs; a long text is read in windows.

    Raises:
        UserError: texts that are no pairs.
    """
    if any(not isinstance(pair, tuple) for pair in questions):
        raise UserError("question answering takes (question, text) pairs", hint='predict([("Who?", "It was Ada.")])')
    asked, texts = [question for question, _ in questions], [text for _, text in questions]
    windows = encode_spans(tokenizer, asked, texts, max_tokens or 512)
    outputs = run_rows(running, [window.encoded for window in windows], ("start_logits", "end_logits"))
    best: list[dict[str, Any]] = [{"answer": "", "start": 0, "end": 0, "score": -np.inf} for _ in questions]
    for window, (start, end) in zip(windows, outputs, strict=True):
        found = best_span(start, end, [last > 0 for _, last in window.offsets])
        if found is not None and found[2] > best[window.row]["score"]:
            first, after = window.offsets[found[0]][0], window.offsets[found[1]][1]
            answer = texts[window.row][first:after]
            best[window.row] = {"answer": answer, "start": first, "end": after, "score": found[2]}
    return best


def best_span(start: Array, end: Array, inside: Sequence[bool]) -> tuple[int, int, float] | None:
    """First token, last token and score of the best answer of at most 30 tokens; None where there is no text.

    Args:
        start, end: score of each token, (T,).
        inside: which tokens are text that may answer.
    """
    places = np.flatnonzero(inside)
    if not places.size:
        return None
    low, n = int(places[0]), int(places[-1]) + 1 - int(places[0])
    scores = start[low : low + n, None].astype(float) + end[None, low : low + n]  # (n, n)
    steps = np.arange(n)[None, :] - np.arange(n)[:, None]
    scores[(steps < 0) | (steps >= LONGEST_ANSWER)] = -np.inf
    first, last = np.unravel_index(int(scores.argmax()), scores.shape)
    return low + int(first), low + int(last), float(scores[first, last])


def filled_masks(
    running: Running, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_tokens: int | None
) -> list[list[dict[str, Any]]]:
    """For each mask token of each text the most likely token and its probability.

    Raises:
        UserError: a text without a mask token.
    """
    rows = encode_texts(tokenizer, texts, max_tokens)
    mask_id = tokenizer.mask_token_id
    for number, row in enumerate(rows, 1):
        if mask_id not in row["input_ids"]:
            raise UserError(f"text {number} has no {tokenizer.mask_token} to fill")
    found = []
    for row, (logits,) in zip(rows, run_rows(running, rows, ("logits",)), strict=True):
        places = [place for place, token in enumerate(row["input_ids"]) if token == mask_id]
        answers = one_class(logits[places], None)
        found.append([{"token": tokenizer.decode([int(one["label"])]), "score": one["score"]} for one in answers])
    return found


def _name(index: int, labels: Sequence[str] | None) -> str:
    return labels[index] if labels else str(index)
