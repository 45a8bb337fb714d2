"""Rows, blocks and batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import DataError
from compressor.training.rows import (
    IGNORED,
    batches_by_length,
    collate,
    joined_blocks,
    labelled_rows,
    language_model_rows,
)

DOCUMENTS = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=12), min_size=1, max_size=8)


@given(documents=DOCUMENTS, block_tokens=st.integers(2, 10))
def test_blocks_are_full_and_keep_the_stream(documents: list[list[int]], block_tokens: int) -> None:
    blocks = joined_blocks(documents, block_tokens, separator=100)
    stream = [token for document in documents for token in [*document, 100]]
    joined = [token for block in blocks for token in block]
    assert joined == stream[: len(joined)]
    if len(stream) >= block_tokens:
        assert {len(block) for block in blocks} == {block_tokens}
        assert len(stream) - len(joined) < block_tokens


def test_text_shorter_than_a_block_is_one_short_block() -> None:
    assert joined_blocks([[5, 6, 7]], 10, separator=None) == [[5, 6, 7]]


def test_a_single_token_cannot_be_trained_on() -> None:
    with pytest.raises(DataError, match="fewer than two tokens, so there is nothing to predict"):
        joined_blocks([[5]], 10, separator=None)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="there is no row to train on"):
        labelled_rows([], [])


def test_collate_pads_to_the_longest_row_of_the_batch() -> None:
    encoded = [
        {"input_ids": [4, 5], "attention_mask": [1, 1], "token_type_ids": [0, 1]},
        {"input_ids": [6, 7, 8], "attention_mask": [1, 1, 1], "token_type_ids": [0, 0, 1]},
    ]
    batch = collate(labelled_rows(encoded, [1, 0]), pad_id=9)
    assert batch["input_ids"].tolist() == [[4, 5, 9], [6, 7, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["token_type_ids"].tolist() == [[0, 1, 0], [0, 0, 1]]
    assert batch["labels"].tolist() == [1, 0]
    assert batch["index"].tolist() == [0, 1]


def test_padded_labels_of_a_language_model_are_ignored() -> None:
    batch = collate(language_model_rows([[4, 5, 6], [7, 8]]), pad_id=9)
    assert batch["labels"].tolist() == [[4, 5, 6], [7, 8, IGNORED]]


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20), batch_size=st.integers(1, 7))
def test_batches_by_length_hold_each_row_once(lengths: list[int], batch_size: int) -> None:
    rows = language_model_rows([[1] * length for length in lengths])
    batches = list(batches_by_length(rows, batch_size, pad_id=0))
    assert sorted(torch.cat([batch["index"] for batch in batches]).tolist()) == list(range(len(lengths)))
    widths = [batch["input_ids"].shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)
