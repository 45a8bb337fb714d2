"""Tiny rows and modules for the training piece."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from compressor.training.rows import Row, joined_blocks, labelled_rows, language_model_rows

PAD_ID = 0


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def era(tiny_bert_dir: Path, era_files: dict[str, Path]) -> Callable[[str, int], list[Row]]:
    """`era("train", 64)`: the first rows of a split of the era task, as training rows."""
    import json

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir)

    def rows(split: str, n_rows: int) -> list[Row]:
        lines = era_files[split].read_text(encoding="utf-8").splitlines()[:n_rows]
        values = [json.loads(line) for line in lines]
        encoded = [dict(tokenizer(value["text"], truncation=True, max_length=24)) for value in values]
        return labelled_rows(encoded, [value["label"] for value in values])

    return rows


@pytest.fixture(scope="session")
def sotu_rows(tiny_gpt2_dir: Path, sotu_text: dict[str, Path]) -> Callable[[str, int], list[Row]]:
    """`sotu_rows("train", 8)`: the first windows of 16 tokens of a split, as training rows."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2_dir)

    def rows(split: str, n_rows: int) -> list[Row]:
        text = sotu_text[split].read_text(encoding="utf-8")[: 200 * n_rows]
        ids = tokenizer(text)["input_ids"]
        return language_model_rows(joined_blocks([ids], 16, separator=None)[:n_rows])

    return rows


@pytest.fixture
def tiny_bert(tiny_bert_dir: Path) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir)


@pytest.fixture
def tiny_gpt2(tiny_gpt2_dir: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_gpt2_dir)
