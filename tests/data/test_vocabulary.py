"""Trimmed tokenizers: equal tokens on covered text, and nothing unknown elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from compressor.data.tokenize import load_tokenizer
from compressor.data.vocabulary import check_same_tokens, needed_tokens, write_trimmed
from compressor.errors import DataError, StageError, UnsupportedError

CORPUS = [
    "We hold these truths to be self-evident, that all men are created equal.",
    "the the that than then there these those; creature creation created creates",
    "Zölle, naïveté, 12.5% and 12 of 500!",
] * 20
COVERED = ["these truths are self-evident", "created in 12 creations."]


def trained(kind: str) -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    if kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=220, special_tokens=special, show_progress=False)
    elif kind == "BPE":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=special, unk_token="[UNK]", show_progress=False
        )
    tokenizer.train_from_iterator(CORPUS, trainer=trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return tokenizer


@pytest.fixture(scope="module", params=["WordPiece", "BPE", "Unigram"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained(request.param),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(folder)
    return folder


def test_covered_text_keeps_its_tokens_and_other_text_stays_readable(whole: Path, tmp_path: Path) -> None:
    before = load_tokenizer(whole)
    kept = needed_tokens(before, COVERED)
    assert len(kept) < len(before)
    after = write_trimmed(whole, kept, tmp_path)
    assert len(after) == len(kept)
    assert check_same_tokens(before, after, kept, COVERED) > len(COVERED)
    for text in COVERED:
        assert after.convert_ids_to_tokens(after(text)["input_ids"]) == before.convert_ids_to_tokens(
            before(text)["input_ids"]
        )
    other = "there, all men; Zölle"
    assert after.unk_token_id not in after(other)["input_ids"] and len(after(other)["input_ids"]) >= len(
        before(other)["input_ids"]
    )
    assert after.decode(after(other)["input_ids"], skip_special_tokens=True) == before.decode(
        before(other)["input_ids"], skip_special_tokens=True
    )
    assert [after.pad_token, after.cls_token] == ["[PAD]", "[CLS]"]
    assert kept[after.cls_token_id] == before.cls_token_id


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(" ".join(CORPUS[:3]).split()), min_size=1, max_size=12))
def test_any_covered_words_keep_their_tokens(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> None:
    """BPE, where a merge that is missing would show."""
    folder = tmp_path_factory.mktemp("bpe")
    PreTrainedTokenizerFast(tokenizer_object=trained("BPE"), pad_token="[PAD]").save_pretrained(folder)  # type: ignore[no-untyped-call]
    before, text = load_tokenizer(folder), " ".join(words)
    kept = needed_tokens(before, [text])
    after = write_trimmed(folder, kept, folder / "trimmed")
    assert check_same_tokens(before, after, kept, [text]) >= len(words)
    merges = json.loads((folder / "trimmed" / "tokenizer.json").read_text())["model"]["merges"]
    assert len(merges) <= len(kept) - 256


def test_tokens_that_differ_are_found_out(whole: Path, tmp_path: Path) -> None:
    before = load_tokenizer(whole)
    kept = needed_tokens(before, COVERED)
    after = write_trimmed(whole, kept, tmp_path)
    with pytest.raises(StageError, match="reads a covered text as other tokens: 'that all men there' gives"):
        check_same_tokens(before, after, kept, [*COVERED, "that all men there"])


def test_text_without_tokens_and_unknown_kinds_are_refused(whole: Path) -> None:
    tokenizer = load_tokenizer(whole)
    with pytest.raises(DataError, match="the texts to cover have no tokens"):
        needed_tokens(tokenizer, [""])
    odd = Tokenizer(models.BPE(vocab={"a": 0, "b</w>": 1}, merges=[], end_of_word_suffix="</w>"))
    marked = PreTrainedTokenizerFast(tokenizer_object=odd, pad_token="a")  # type: ignore[no-untyped-call]
    with pytest.raises(UnsupportedError, match="marks the inside or the end of words cannot be trimmed"):
        needed_tokens(marked, ["ab"])
