"""From tokens to training rows and padded batches.

A row knows its place in the split (`index`). Whatever order a sampler shuffles rows into, the teacher's cached outputs
are found by that number and never by position in a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compressor.errors import DataError

Row = Mapping[str, Any]
"""`input_ids`, perhaps `token_type_ids` (lists of ints), `labels` and `index`; of a pair of texts read apart, `pair`
has the inputs of the second. Labels are one number, a tuple of a fixed length, or a list with one entry per token."""

Batch = dict[str, Tensor]
"""`input_ids, attention_mask[, token_type_ids]` (B, T), `labels` (B,), (B, n) or (B, T), `index` (B,). Of pairs read
apart the inputs are (2B, T), all first texts before all second ones."""

IGNORED = -100
"""The label that every loss in torch and transformers leaves out."""

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def labelled_rows(encoded: Sequence[Mapping[str, list[int]]], labels: Sequence[Any]) -> list[Row]:
    """Rows of a split from its encoded texts and their labels; see `Row`.

    Raises:
        DataError: there is no row.
    """
    if not encoded:
        raise DataError("there is no row to train on", hint="check the data file, and `rows` if it is set")
    rows: list[Row] = []
    for index, (inputs, label) in enumerate(zip(encoded, labels, strict=True)):
        rows.append({**_inputs(inputs), "labels": label, "index": index})
    return rows


def pair_rows(
    first: Sequence[Mapping[str, list[int]]], second: Sequence[Mapping[str, list[int]]], labels: Sequence[float]
) -> list[Row]:
    """Rows of pairs whose texts are read apart, for embedders."""
    rows = labelled_rows(first, labels)
    return [{**row, "pair": _inputs(inputs)} for row, inputs in zip(rows, second, strict=True)]


def _inputs(encoded: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Without the mask, which `collate` makes."""
    return {name: encoded[name] for name in MODEL_INPUTS if name in encoded and name != "attention_mask"}


def joined_blocks(documents: Iterable[Sequence[int]], block_tokens: int, *, separator: int | None) -> list[list[int]]:
    """Documents joined end to end (with a separator after each) and cut into full blocks: no position is padding.

    What is left at the end, less than a block, is dropped, unless the text fills no block at all.

    Raises:
        DataError: fewer than two tokens, so there is nothing to predict.
    """
    stream: list[int] = []
    for ids in documents:
        stream.extend(ids)
        if separator is not None:
            stream.append(separator)
    blocks = [stream[at : at + block_tokens] for at in range(0, len(stream) - block_tokens + 1, block_tokens)]
    if not blocks and len(stream) > 1:
        blocks = [stream]
    if not blocks:
        raise DataError(
            "the text has fewer than two tokens, so there is nothing to predict", hint="check the data file"
        )
    return blocks


def language_model_rows(blocks: Sequence[Sequence[int]]) -> list[Row]:
    """Rows of a causal language model: each token but the first of a block is predicted."""
    return [{"input_ids": list(ids), "labels": list(ids), "index": index} for index, ids in enumerate(blocks)]


def collate(rows: Sequence[Row], *, pad_id: int) -> Batch:
    """Pad rows on the right to the longest among them; padded labels are ignored and padded positions masked."""
    texts = [*rows, *(row["pair"] for row in rows if "pair" in row)]
    width = max(len(text["input_ids"]) for text in texts)
    batch: Batch = {}
    for name in ("input_ids", "token_type_ids"):
        if name in rows[0]:
            fill = pad_id if name == "input_ids" else 0
            batch[name] = torch.tensor([_padded(text[name], width, fill) for text in texts])  # (B, T)
    batch["attention_mask"] = torch.tensor([_padded([1] * len(text["input_ids"]), width, 0) for text in texts])
    if isinstance(rows[0]["labels"], list):
        batch["labels"] = torch.tensor([_padded(row["labels"], width, IGNORED) for row in rows])  # (B, T)
    else:
        batch["labels"] = torch.tensor([row["labels"] for row in rows])  # (B,) or (B, n)
    batch["index"] = torch.tensor([row["index"] for row in rows])  # (B,)
    return batch


def model_inputs(batch: Mapping[str, Tensor]) -> Batch:
    """The part of a batch that a model's `forward` takes."""
    return {name: batch[name] for name in MODEL_INPUTS if name in batch}


def on_device(batch: Mapping[str, Tensor], device: torch.device | str) -> Batch:
    """The same batch where the model is."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def longest_first(rows: Sequence[Row]) -> list[Row]:
    """The same rows, those of like length side by side."""
    return sorted(rows, key=lambda row: -len(row["input_ids"]))


def batches_by_length(rows: Sequence[Row], batch_size: int, *, pad_id: int) -> Iterator[Batch]:
    """All rows once, longest first (memory runs out at once or never), in batches with next to no padding."""
    order = sorted(range(len(rows)), key=lambda number: (-len(rows[number]["input_ids"]), number))
    for start in range(0, len(order), batch_size):
        yield collate([rows[number] for number in order[start : start + batch_size]], pad_id=pad_id)


def _padded(values: Sequence[int], width: int, fill: int) -> list[int]:
    return [*values, *([fill] * (width - len(values)))]
