"""Tiny checkpoints and their reports, made once for all tests of this room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_judgements import (
    Judgement,
    always_first,
    decoder_pipeline,
    encoder_pipeline,
    judge_three,
    seal_with_graphs,
    three_candidates,
)

from compressor.checkpoints.store import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch in this process on one thread: threads of a tiny model only wait for each other on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def bert(tiny_bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The tiny classifier."""
    folder = tmp_path_factory.mktemp("bert") / "checkpoint"
    return seal_with_graphs(tiny_bert_dir, folder, task="sequence-classification", labels=("a", "b", "c"))


@pytest.fixture(scope="session")
def llama(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The tiny language model."""
    folder = tmp_path_factory.mktemp("llama") / "checkpoint"
    return seal_with_graphs(tiny_llama_dir, folder, task="causal-lm", labels=None)


@pytest.fixture(scope="session")
def encoder_judgement(
    bert: Checkpoint, era_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Judgement:
    """The tiny classifier, judged once."""
    pipeline = encoder_pipeline(
        era_files,
        goals=[
            {"metric": "accuracy", "max_drop_points": 100.0},
            {"metric": "cpu_s_per_token", "max_ratio": 50.0},
            {"metric": "size_bytes", "max_ratio": 0.001},
        ],
    )
    run_dir = tmp_path_factory.mktemp("encoder-run")
    return judge_three(pipeline, three_candidates(bert), run_dir, metrics={"share_of_first": always_first})


@pytest.fixture(scope="session")
def decoder_judgement(
    llama: Checkpoint, sotu_text: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Judgement:
    """The tiny language model, judged once."""
    run_dir = tmp_path_factory.mktemp("decoder-run")
    return judge_three(decoder_pipeline(sotu_text), three_candidates(llama), run_dir)


@pytest.fixture(scope="package")
def tiny_encoder() -> PreTrainedModel:
    """Two layers of BERT with random weights."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(
        BertConfig(vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    ).eval()
