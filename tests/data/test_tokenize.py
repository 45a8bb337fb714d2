"""Tokens, batches and windows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from compressor.data.tokenize import (
    batch_order,
    batches,
    draw_windows,
    encode_rows,
    load_tokenizer,
    train_tokenizer,
    windows,
)
from compressor.errors import CheckpointError, DataError, UserError

TEXTS = ["The state of the Union is strong.", "Fellow citizens of the Senate, and of the House: ünïcode too!"] * 3


@pytest.fixture(scope="module")
def decoder() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 300, decoder=True)


def test_the_same_texts_give_the_same_tokenizer_in_any_process(tmp_path: Path, sotu_text: dict[str, Path]) -> None:
    """The trainer's own hash maps differ from process to process."""
    program = (
        "import sys; from pathlib import Path; from compressor.data.tokenize import train_tokenizer\n"
        "texts = Path(sys.argv[1]).read_text().splitlines()[:4]\n"
        "for decoder in (True, False):\n"
        "    train_tokenizer(texts, 400, decoder=decoder).save_pretrained(f'{sys.argv[2]}/{decoder}')"
    )
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-c", program, str(sotu_text["train"]), str(tmp_path / name)], check=True)
    for kind in ("True", "False"):
        first, second = (tmp_path / name / kind / "tokenizer.json" for name in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()
        loaded = load_tokenizer(tmp_path / "a" / kind)
        assert len(loaded) == 400 and loaded.pad_token_id is not None
        assert loaded.decode(loaded("the union", add_special_tokens=False)["input_ids"]) == "the union"


def test_encoders_get_bert_s_special_tokens_and_types() -> None:
    tokenizer = train_tokenizer(TEXTS, 80, decoder=False)
    encoded = tokenizer("the state", "of")
    assert encoded["input_ids"][0] == tokenizer.cls_token_id and encoded["input_ids"][-1] == tokenizer.sep_token_id
    assert encoded["token_type_ids"][0] == 0 and encoded["token_type_ids"][-1] == 1
    assert "token_type_ids" not in train_tokenizer(TEXTS, 300, decoder=True)("the")


def test_too_little_text_for_a_vocabulary() -> None:
    with pytest.raises(DataError, match=r"vocab_size: the text gives a vocabulary of \d+ tokens where 9000 are asked"):
        train_tokenizer(TEXTS, 9000, decoder=False)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer here\n  -> wanted: tokenizer\.json or vocab\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read: "):
        load_tokenizer(tmp_path)


def test_rows_are_cut_and_not_padded(tiny_bert_dir: Path) -> None:
    tokenizer = load_tokenizer(tiny_bert_dir)
    dataset = Dataset.from_dict({"text": ["a", "the people of the united states " * 9], "label": [0, 1]})
    short, long = encode_rows(tokenizer, dataset, 16)
    assert short.keys() == {"input_ids", "attention_mask", "token_type_ids"}
    assert len(short["input_ids"]) == 3 and len(long["input_ids"]) == 16
    paired = encode_rows(tokenizer, Dataset.from_dict({"text": ["a"], "text_pair": ["b"]}), 16)
    assert paired[0]["token_type_ids"] == [0, 0, 0, 1, 1]


ROWS = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=12)


@given(ROWS, st.integers(1, 5), st.sampled_from(["file", "length"]), st.sampled_from(["left", "right"]))
def test_batches_hold_each_row_once_behind_its_mask(rows: list[list[int]], size: int, order: str, side: str) -> None:
    encoded = [{"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": [0] * len(ids)} for ids in rows]
    found = []
    for batch in batches(encoded, size, 0, order=order, side=side):  # type: ignore[arg-type]
        width = batch["input_ids"].shape[1]
        assert all(array.shape == batch["input_ids"].shape and array.dtype == np.int64 for array in batch.values())
        lengths = batch["attention_mask"].sum(axis=1)
        assert width == lengths.max()
        for ids, mask, length in zip(batch["input_ids"], batch["attention_mask"], lengths, strict=True):
            found.append(ids[mask == 1].tolist())
            assert not ids[mask == 0].any()
            assert mask[0 if side == "right" else width - 1] == 1 and length == mask.sum()
    assert found == [rows[index] for index in batch_order(encoded, order)]  # type: ignore[arg-type]
    if order == "length":
        assert [len(row) for row in found] == sorted(map(len, rows))


@settings(deadline=None)
@given(st.lists(st.text(min_size=0, max_size=40), min_size=1, max_size=4), st.integers(2, 12), st.data())
def test_windows_predict_each_token_once_and_count_each_byte_once(
    decoder: PreTrainedTokenizerFast, texts: list[str], context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context - 1))
    all_ids = [decoder(text, add_special_tokens=False)["input_ids"] for text in texts]
    if max(map(len, all_ids)) < 2:
        with pytest.raises(DataError, match="no document has two tokens"):
            windows(decoder, texts, context, stride)
        return
    found = windows(decoder, texts, context, stride)
    for number, (text, ids) in enumerate(zip(texts, all_ids, strict=True)):
        mine = [window for window in found if window.document == number]
        scored = [token for window in mine for token in window.ids[-window.n_scored :]]
        assert scored == (ids[1:] if len(ids) > 1 else [])
        for position, window in enumerate(mine):
            assert len(window.ids) <= context and window.n_scored < len(window.ids)
            assert position == 0 or len(window.ids) - window.n_scored >= context - stride
        if len(ids) > 1:
            first = decoder(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"][0][1]
            assert sum(window.n_bytes for window in mine) == len(text.encode()) - len(text[:first].encode())


def test_windows_on_a_drawing(decoder: PreTrainedTokenizerFast) -> None:
    """10 tokens, context 4, stride 2: [0 1 2 3] predicts 1 to 3, then two at a time with two before them."""
    text = TEXTS[0][:30]
    ids = decoder(text)["input_ids"][:10]
    cut = decoder.decode(ids)
    assert decoder(cut)["input_ids"] == ids and len(ids) == 10
    found = windows(decoder, [cut], 4, 2)
    assert [window.ids for window in found] == [ids[0:4], ids[2:6], ids[4:8], ids[6:10]]
    assert [window.n_scored for window in found] == [3, 2, 2, 2]


def test_a_stride_that_leaves_a_token_without_context(decoder: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r"evaluate\.stride: stride 4 must lie between 1 and context - 1 = 3"):
        windows(decoder, TEXTS, 4, 4)


def test_calibration_windows_are_drawn_by_the_seed(decoder: PreTrainedTokenizerFast) -> None:
    drawn = [draw_windows(decoder, TEXTS, context=8, n_windows=3, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(window) for window in drawn[0]] == [8, 8, 8]
    assert draw_windows(decoder, ["The"], context=8, n_windows=3, seed=0) == [decoder("The")["input_ids"]]
    with pytest.raises(DataError, match="no text to draw calibration windows from"):
        draw_windows(decoder, [""], context=8, n_windows=3, seed=0)
