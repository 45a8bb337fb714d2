"""Tiny checkpoints and contexts for the stages; each checkpoint is made once per session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stage_shelf import ERAS, Shelf

from compressor.schema.events import Event
from compressor.spec.sources import Data, DataSource, ModelSource


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here and in the children: sums depend on the number of threads in their last bit."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def era_data(era_files: dict[str, Path]) -> Data:
    sources = {split: DataSource(path=str(path)) for split, path in era_files.items()}
    sources["train"] = DataSource(path=str(era_files["train"]), rows=96)
    sources["validation"] = DataSource(path=str(era_files["validation"]), rows=48)
    return Data(**sources, max_tokens=32, calibration_rows=64)


@pytest.fixture(scope="session")
def sotu_data(sotu_text: dict[str, Path]) -> Data:
    sources = {split: DataSource(path=str(path)) for split, path in sotu_text.items()}
    sources["train"] = DataSource(path=str(sotu_text["train"]), rows=2)
    sources["validation"] = DataSource(path=str(sotu_text["validation"]), rows=1)
    return Data(**sources, max_tokens=32, calibration_rows=48)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory, tiny_bert_dir: Path, era_data: Data) -> Shelf:
    source = ModelSource(task="sequence-classification", path=str(tiny_bert_dir), labels=ERAS)
    return Shelf(tmp_path_factory.mktemp("bert"), "sequence-classification", era_data, source)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory, tiny_gpt2_dir: Path, sotu_data: Data) -> Shelf:
    source = ModelSource(task="causal-lm", path=str(tiny_gpt2_dir))
    return Shelf(tmp_path_factory.mktemp("gpt2"), "causal-lm", sotu_data, source)


@pytest.fixture
def events() -> list[Event]:
    """A list to give as `emit=events.append`."""
    return []
