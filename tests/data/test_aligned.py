"""Words, answers and hidden tokens: each is found again in the tokens that it became."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from compressor.data.aligned import encode_spans, encode_words, mask_rows, text_pieces
from compressor.data.tokenize import load_tokenizer
from compressor.errors import DataError, UserError

WORDS = st.lists(st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=8), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def word_piece(tiny_bert_dir: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(tiny_bert_dir)


@pytest.fixture(scope="module")
def byte_level(tiny_gpt2_dir: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(tiny_gpt2_dir)


@settings(deadline=None, max_examples=25)
@given(words=WORDS)
def test_the_first_token_of_each_word_begins_it(
    word_piece: PreTrainedTokenizerFast, byte_level: PreTrainedTokenizerFast, words: list[str]
) -> None:
    text = " ".join(words)
    starts = [sum(len(word) + 1 for word in words[:number]) for number in range(len(words))]
    for tokenizer in (word_piece, byte_level):
        row = encode_words(tokenizer, [words], 1000)[0]
        offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        for word, position in zip(row.words, row.positions, strict=True):
            start, end = offsets[position]
            assert start <= starts[word] < end
    assert row.words == list(range(len(words)))  # a byte-level tokenizer leaves no word out


def test_a_long_sentence_loses_its_last_words(word_piece: PreTrainedTokenizerFast) -> None:
    row = encode_words(word_piece, [["union"] * 50], 12)[0]
    assert row.words == list(range(len(row.words)))
    assert len(row.words) < 50
    assert len(row.encoded["input_ids"]) == 12


def test_an_answer_is_read_back_from_the_windows_that_hold_it(word_piece: PreTrainedTokenizerFast) -> None:
    text = " ".join(f"word{number} stands here." for number in range(60))
    answer = "word37 stands"
    start = text.index(answer)
    windows = encode_spans(word_piece, ["where is it?"], [text], 48)
    assert len(windows) > 3
    found = [(window, window.positions(start, start + len(answer))) for window in windows]
    holders = [(window, positions) for window, positions in found if positions is not None]
    assert 1 <= len(holders) < len(windows)
    for window, (first, last) in holders:
        assert text[window.offsets[first][0] : window.offsets[last][1]] == answer
    covered = {place for window in windows for a, b in window.offsets if b > 0 for place in range(a, b)}
    assert covered == {place for place, character in enumerate(text) if character != " "}


def test_a_question_without_room_for_text_is_named(word_piece: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"row 2: the question takes \d+ of 16 tokens and leaves no room for text"):
        encode_spans(word_piece, ["why?", "why " * 40], ["a", "b"], 16)


def test_the_same_seed_hides_the_same_tokens(word_piece: PreTrainedTokenizerFast) -> None:
    pieces = text_pieces(word_piece, ["the state of the union is strong and the people are free " * 8] * 6, 64)
    one, same, other, second = (
        mask_rows(word_piece, pieces, seed=seed, variant=variant) for seed, variant in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert one == same
    assert one not in (other, second)
    special = set(word_piece.all_special_ids)
    kept, masked = 0, 0
    for piece, row in zip(pieces, one, strict=True):
        assert [piece[position] for position in row.positions] == row.targets
        assert not special.intersection(row.targets)
        n_text = sum(token not in special for token in piece)
        assert len(row.positions) == max(1, round(0.15 * n_text))
        seen = [row.encoded["input_ids"][position] for position in row.positions]
        masked += sum(token == word_piece.mask_token_id for token in seen)
        kept += sum(token == target for token, target in zip(seen, row.targets, strict=True))
        others = [number for number in range(len(piece)) if number not in row.positions]
        assert [piece[number] for number in others] == [row.encoded["input_ids"][number] for number in others]
    assert 0 < kept < masked
    plain = mask_rows(word_piece, pieces, seed=0, plain=True)
    assert {row.encoded["input_ids"][at] for row in plain for at in row.positions} == {word_piece.mask_token_id}


def test_a_tokenizer_without_a_mask_token_is_refused(byte_level: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="the tokenizer has no mask token"):
        mask_rows(byte_level, [[1, 2, 3]], seed=0)
