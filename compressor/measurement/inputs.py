"""Test rows -> arrays in files: what workers run. The parent tokenizes, so that workers need no tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from compressor.data.aligned import special_ids_around
from compressor.data.tokenize import Encoded, batches, encode_rows, pad, windows
from compressor.errors import DataError, UserError
from compressor.measurement.arrays import Batch, save_batches
from compressor.measurement.outputs import KEPT, N_SCORED, OutputKind
from compressor.schema.report import Phase
from compressor.spec.evaluation import Workload
from compressor.spec.tasks import Task

BATCHES_OF_FIXED_LENGTH = 4
"""Batches in one pass of an encoder's workload with `input_tokens`: different text, equal shapes. A decoder, which
generates a whole text for every batch, runs one."""
KEPT_DISTRIBUTIONS = 256
"""Positions of a language model's test text at which whole distributions are compared (KL)."""
DECODE_PATH_TOKENS = 1_024
"""Tokens of test text that are predicted one by one through the KV cache: enough to see the path go wrong."""


@dataclass(frozen=True)
class PreparedWorkload:
    """A workload as it will be run.

    Attributes:
        workload: as the pipeline names it.
        phase: `forward`, or `prefill` (after which `decode` follows where there are output tokens).
        path: its batches.
        requests: rows per pass.
        tokens: real tokens per pass: special tokens inside rows count, padding does not.
        padding_ratio: padded positions / all positions.
        input_bytes: UTF-8 bytes of text per pass; None where text was cut to length.
        output_tokens: lengths over which the cost of decoding is fitted; empty without a decode phase.
        own_paths: the batches of candidates that number tokens otherwise.
    """

    workload: Workload
    phase: Phase
    path: Path
    requests: int
    tokens: int
    padding_ratio: float
    input_bytes: int | None
    output_tokens: tuple[int, ...]
    own_paths: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class PreparedRows:
    """The test rows of one quality pass.

    Attributes:
        kind: what the worker reduces the answers to.
        path: the batches.
        digest: of the arrays: equal inputs have an equal digest.
        settings: what the numbers will depend on.
        labels: class of each row (classification), its classes as 0 and 1 (n, C), its number, the class of each word,
            or how alike each pair is; None otherwise.
        window_tokens: predicted tokens of each window (language models); None otherwise.
        window_bytes: UTF-8 bytes that they stand for.
        targets: the predicted tokens themselves, in order.
        groups: what belongs together and is drawn together: the row of each word or hidden token, or the query of each
            passage; (n,).
        pairs: of an embedder, which two texts make each pair, (n, 2).
        questions: of question answering, each with its windows.
    """

    kind: OutputKind
    path: Path
    digest: str
    settings: dict[str, Any]
    labels: np.ndarray | None = None
    window_tokens: np.ndarray | None = None
    window_bytes: np.ndarray | None = None
    targets: np.ndarray | None = None
    groups: np.ndarray | None = None
    pairs: np.ndarray | None = None
    questions: tuple[Question, ...] = ()


@dataclass(frozen=True)
class Question:
    """A question and where to look for its answer.

    Attributes:
        text: the text that may answer it.
        answers: the right ones; none where the text does not tell.
        windows: (first token, token after the last) of each window among all real tokens of the split.
        offsets: of each window, the characters of each of its tokens; (-1, -1) outside the text.
    """

    text: str
    answers: tuple[str, ...]
    windows: tuple[tuple[int, int], ...]
    offsets: tuple[tuple[tuple[int, int], ...], ...]


def prepare_workload(
    workload: Workload, rows: Dataset, tokenizer: PreTrainedTokenizerFast, task: Task, max_tokens: int, folder: Path
) -> PreparedWorkload:
    """Tokenize and batch a workload's text.

    Raises:
        DataError: too little text for `input_tokens`.
        UserError: `output_tokens` on a task that generates nothing.
    """
    if workload.output_tokens is not None and not task.is_decoder:
        raise UserError(
            f"output_tokens is for tasks that generate; {task.name} does not", where=f"workloads.{workload.id}"
        )
    rows = texts_of(rows, task)
    if workload.from_data:
        chosen = rows.select(range(min(workload.rows, len(rows))))
        n_bytes: int | None
        encoded, n_bytes = encode_rows(tokenizer, chosen, max_tokens), text_bytes(chosen)
        if any(len(row["input_ids"]) >= max_tokens for row in encoded):
            n_bytes = None  # text was cut, so the bytes that went in are not those of the rows
    else:
        assert workload.input_tokens is not None
        n_bytes = None
        encoded = rows_of_length(tokenizer, rows["text"], workload.input_tokens, workload.batch, workload.id, task)
    # A decoder goes on from the right end of its prompt, so its padding stands on the left.
    side: Literal["left", "right"] = "left" if task.is_decoder else "right"
    assert tokenizer.pad_token_id is not None
    made: list[Batch] = list(
        batches(encoded, workload.batch, int(tokenizer.pad_token_id), order=workload.order, side=side)
    )
    path = folder / f"workload-{workload.id}.npz"
    save_batches(path, made)
    n_positions = sum(batch["attention_mask"].size for batch in made)
    n_real = sum(int(batch["attention_mask"].sum()) for batch in made)
    return PreparedWorkload(
        workload=workload,
        phase="prefill" if task.is_decoder else "forward",
        path=path,
        requests=len(encoded),
        tokens=n_real,
        padding_ratio=1 - n_real / n_positions,
        input_bytes=n_bytes,
        output_tokens=output_lengths(workload.output_tokens) if workload.output_tokens is not None else (),
    )


def texts_of(rows: Dataset, task: Task) -> Dataset:
    """What one request holds: an embedder reads the two texts of a pair by themselves."""
    if task.kind != "embedding" or "text_pair" not in rows.column_names:
        return rows
    return Dataset.from_dict(
        {"text": [text for pair in zip(rows["text"], rows["text_pair"], strict=True) for text in pair]}
    )


def text_bytes(rows: Dataset) -> int:
    """UTF-8 bytes of the rows' text."""
    names = [name for name in ("text", "text_pair") if name in rows.column_names]
    return sum(len(text.encode()) for name in names for text in rows[name])


def rows_of_length(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], n_tokens: int, batch: int, workload: str, task: Task
) -> list[Encoded]:
    """Rows of exactly `n_tokens` tokens, special tokens included, cut from running text.

    Raises:
        DataError: not enough text for one batch.
        UserError: no room for text beside the special tokens.
    """
    n_special = 0 if task.is_decoder else int(tokenizer.num_special_tokens_to_add())
    n_text = n_tokens - n_special
    if n_text < 1:
        raise UserError(
            f"{n_tokens} tokens leave no room beside {n_special} special ones", where=f"workloads.{workload}"
        )
    most = 1 if task.is_decoder else BATCHES_OF_FIXED_LENGTH
    wanted = most * batch * n_text
    stream: list[int] = []
    for text in texts:
        stream += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(stream) >= wanted:
            break
    n_batches = min(most, len(stream) // (batch * n_text))
    if n_batches == 0:
        raise DataError(
            f"the test split has {len(stream)} tokens of text, and one batch of {batch} rows takes {batch * n_text}",
            where=f"workloads.{workload}",
            hint="ask for fewer input_tokens or a smaller batch",
        )
    before, after = special_ids_around(tokenizer)
    names = [name for name in tokenizer.model_input_names if name in ("attention_mask", "token_type_ids")]
    filler = {"attention_mask": 1, "token_type_ids": 0}
    encoded = []
    for i in range(n_batches * batch):
        piece = stream[i * n_text : (i + 1) * n_text]
        ids = piece if task.is_decoder else [*before, *piece, *after]
        encoded.append({"input_ids": ids, **{name: [filler[name]] * len(ids) for name in names}})
    return encoded


def output_lengths(longest: int) -> tuple[int, ...]:
    """Lengths over which decoding is fitted: a quarter, a half and all of the longest.

    Raises:
        UserError: too few tokens for a slope.
    """
    lengths = tuple(sorted({max(longest // 4, 2), max(longest // 2, 2), longest}))
    if len(lengths) < 2 or longest < 3:
        raise UserError(f"output_tokens: {longest} is too few to fit a cost per token", hint="ask for 8 or more")
    return lengths


def prepare_windows(
    rows: Dataset, tokenizer: PreTrainedTokenizerFast, *, context: int, stride: int, folder: Path, n_tokens: int | None
) -> PreparedRows:
    """The windows of a language model's test text, one to a batch.

    Args:
        n_tokens: only as many windows as predict this many tokens, for the decode path; all where None.

    Raises:
        UserError, DataError: as `windows`.
    """
    cut = windows(tokenizer, rows["text"], context, stride)
    if n_tokens is not None:
        totals = np.cumsum([window.n_scored for window in cut])
        cut = cut[: int(np.searchsorted(totals, n_tokens)) + 1]
    n_scored = np.array([window.n_scored for window in cut])
    kept = np.unique(np.linspace(0, n_scored.sum() - 1, KEPT_DISTRIBUTIONS).astype(np.int64))  # spread over the text
    starts = np.concatenate([[0], np.cumsum(n_scored)])
    made: list[Batch] = [
        {
            **pad([{"input_ids": window.ids, "attention_mask": [1] * len(window.ids)}], 0),
            N_SCORED: np.array(window.n_scored),
            KEPT: kept[(kept >= starts[i]) & (kept < starts[i + 1])] - starts[i],
        }
        for i, window in enumerate(cut)
    ]
    settings = {"context": context, "stride": stride, "batch": 1, "path": "uncached" if n_tokens is None else "decode"}
    prepared = PreparedRows(
        "tokens" if n_tokens is None else "tokens_cached",
        folder,
        "",
        settings,
        window_tokens=n_scored,
        window_bytes=np.array([window.n_bytes for window in cut]),
        targets=np.concatenate([window.ids[-window.n_scored :] for window in cut]),
    )
    return save_rows(made, folder, str(settings["path"]), prepared)


def save_rows(made: list[Batch], folder: Path, name: str, prepared: PreparedRows) -> PreparedRows:
    """Write the batches, and say in the rows where they are and what they hold."""
    path = folder / f"quality-{name}.npz"
    save_batches(path, made)
    digest = hashlib.sha256()
    for batch in made:
        for key, array in sorted(batch.items()):
            digest.update(f"{key}{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return replace(prepared, path=path, digest=digest.hexdigest())
