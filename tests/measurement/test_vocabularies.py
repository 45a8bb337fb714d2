"""Trimmed vocabularies beside whole ones: each reads text by its own tokenizer, and costs are of the same sequences."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compressor.checkpoints.vocabulary import KEPT_TOKENS, KeptTokens
from compressor.data.tokenize import load_tokenizer
from compressor.data.vocabulary import needed_tokens, write_trimmed
from compressor.measurement import vocabularies as module
from compressor.measurement.arrays import load_batches, save_batches
from compressor.measurement.folders import measure
from compressor.measurement.inputs import PreparedWorkload
from compressor.measurement.vocabularies import Vocabulary, in_own_ids, vocabularies_of
from compressor.methods.vocabulary import trim_embeddings
from compressor.runtime.torch_models import load_module, save_module
from compressor.spec.evaluation import Workload

TEXT = "Our thoughts next revert to the death of the late President. " * 3


def trimmed(source: Path, folder: Path, text: str) -> Path:
    """A plain folder with the tokens of one text."""
    tokenizer = load_tokenizer(source)
    kept = needed_tokens(tokenizer, [text])
    write_trimmed(source, kept, folder)
    save_module(trim_embeddings(load_module(source), kept), folder)
    of = "0" * 64
    (folder / KEPT_TOKENS).write_text(json.dumps(KeptTokens(of, kept).to_json()))
    return folder


@pytest.mark.slow
def test_a_language_model_is_compared_by_bytes(tiny_gpt2_dir: Path, tmp_path: Path) -> None:
    """On covered text the trimmed model gives the whole one's probabilities among fewer tokens."""
    small = trimmed(tiny_gpt2_dir, tmp_path / "small", TEXT)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        json.dumps({"text": TEXT}) + "\n" + json.dumps({"text": "A wholly other, unseen sentence: xylophones!"})
    )
    report = measure(
        [tiny_gpt2_dir, small],
        data=str(rows),
        workloads=[{"id": "w", "batch": 1, "input_tokens": 8, "output_tokens": 8}],
        evaluate={"context": 16, "stride": 8},
        target={"threads": 1},
        profile="smoke",
    )
    assert not report.failures
    whole, kept = report.candidates
    quality = {one.id: {row.metric: row for row in one.quality} for one in (whole, kept)}
    assert "byte_perplexity" in quality[kept.id] and quality[kept.id]["byte_perplexity"].paired is None
    assert np.isfinite(quality[kept.id]["byte_perplexity"].value)
    assert len(kept.measurements) == len(whole.measurements) > 0


@pytest.fixture
def specs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Two candidates that know all, and one that knows three tokens."""
    known = {"whole": None, "small": KeptTokens("x", (0, 3, 4)), "smaller": KeptTokens("x", (0, 4))}
    monkeypatch.setattr(module, "kept_tokens_of", known.get)
    return [SimpleNamespace(id=name, checkpoint=name) for name in ("whole", "small", "smaller")]


def workload(folder: Path, ids: list[list[int]]) -> PreparedWorkload:
    batch = {"input_ids": np.array(ids), "attention_mask": np.ones_like(np.array(ids))}
    save_batches(folder / "w.npz", [batch])
    return PreparedWorkload(Workload(id="w", input_tokens=3), "forward", folder / "w.npz", 1, 3, 0.0, None, ())


def test_costs_are_of_the_same_sequences_in_everybodys_own_numbers(specs: list[Any], tmp_path: Path) -> None:
    found = vocabularies_of(specs)
    assert [one.kept for one in found] == [None, (0, 3, 4), (0, 4)]
    given = in_own_ids(workload(tmp_path, [[4, 3, 1], [0, 4, 3]]), found, found[0], tmp_path)
    assert set(given.own_paths) == {"small", "smaller"}
    assert load_batches(given.own_paths["small"])[0]["input_ids"].tolist() == [[2, 1, 0], [0, 2, 1]]
    assert load_batches(given.own_paths["smaller"])[0]["input_ids"].tolist() == [[1, 0, 0], [0, 1, 0]]
    back = in_own_ids(workload(tmp_path, [[2, 1, 0]]), found, found[1], tmp_path)
    assert load_batches(back.own_paths["whole"])[0]["input_ids"].tolist() == [[4, 3, 0]]


def test_one_vocabulary_needs_nothing_of_its_own(specs: list[Any], tmp_path: Path) -> None:
    alone = vocabularies_of(specs[:1])
    assert in_own_ids(workload(tmp_path, [[1]]), alone, alone[0], tmp_path).own_paths == {}
    assert isinstance(alone[0], Vocabulary) and alone[0].checkpoint == "whole"
