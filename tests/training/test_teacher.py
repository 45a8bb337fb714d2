"""The teacher's outputs: cached ones equal live ones for any batch, and a cache of something else is not used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from compressor.schema.events import Event, Note, Progress
from compressor.training.rows import Row, collate
from compressor.training.teacher import Teacher, ask_teacher

Rows = Callable[[str, int], list[Row]]
KEY = {"teacher": "aa", "train": "bb"}


def ask(model: PreTrainedModel, rows: list[Row], folder: Path, **changes: Any) -> Teacher:
    arguments: dict[str, Any] = {
        "key": KEY,
        "folder": folder,
        "hidden_layers": (1, 3),
        "is_per_token": False,
        "limit_bytes": 10**9,
        "n_drawn": 10**6,
        "pad_id": 0,
        "stage": "student",
        "emit": lambda event: None,
    }
    return ask_teacher(model, rows, **(arguments | changes))


def test_cached_and_live_outputs_agree_for_shuffled_rows(tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path) -> None:
    rows = era("train", 40)
    cached = ask(tiny_bert, rows, tmp_path / "a")
    live = ask(tiny_bert, rows, tmp_path / "b", limit_bytes=1)
    assert type(cached) is not type(live)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1)).tolist()
    for start in range(0, 40, 7):
        batch = collate([rows[number] for number in order[start : start + 7]], pad_id=0)
        ours, theirs = cached(batch), live(batch)
        torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=1e-5)
        assert sorted(ours.hidden) == [1, 3]
        for layer in (1, 3):
            torch.testing.assert_close(ours.hidden[layer], theirs.hidden[layer], atol=2e-3, rtol=2e-3)  # fp16 on disk


def test_a_language_models_logits_are_cached_per_token(
    tiny_gpt2: PreTrainedModel, sotu_rows: Rows, tmp_path: Path
) -> None:
    rows = [*sotu_rows("train", 9), {"input_ids": [3, 4, 5], "labels": [3, 4, 5], "index": 9}]
    cached = ask(tiny_gpt2, rows, tmp_path, hidden_layers=(), is_per_token=True)
    live = ask(tiny_gpt2, rows, tmp_path / "none", hidden_layers=(), is_per_token=True, limit_bytes=1)
    batch = collate([rows[9], rows[2], rows[5]], pad_id=0)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(cached(batch).logits[real], live(batch).logits[real], atol=2e-3, rtol=2e-3)


def test_outputs_are_computed_once(tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path) -> None:
    events: list[Event] = []
    rows = era("train", 40)
    ask(tiny_bert, rows, tmp_path, emit=events.append)
    assert events[-1] == Progress("student", "teacher outputs", 40, 40)
    events.clear()
    ask(tiny_bert, rows, tmp_path, emit=events.append)
    assert events == []


def test_a_further_layer_is_added_to_the_cache(tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path) -> None:
    rows = era("train", 8)
    ask(tiny_bert, rows, tmp_path, hidden_layers=())
    before = (tmp_path / "logits.npy").stat().st_mtime_ns
    teacher = ask(tiny_bert, rows, tmp_path, hidden_layers=(2,))
    assert (tmp_path / "logits.npy").stat().st_mtime_ns == before
    assert sorted(teacher(collate(rows, pad_id=0)).hidden) == [2]


@pytest.mark.parametrize("changed", ["teacher", "train"])
def test_a_cache_of_another_digest_is_recomputed_and_said(
    changed: str, tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path
) -> None:
    rows = era("train", 8)
    ask(tiny_bert, rows, tmp_path)
    with torch.no_grad():
        tiny_bert.classifier.bias += 1.0
    events: list[Event] = []
    teacher = ask(tiny_bert, rows, tmp_path, key=KEY | {changed: "cc"}, emit=events.append)
    assert Note("student", f"the cached teacher outputs belong to another {changed}; they are computed anew") in events
    batch = collate(rows, pad_id=0)
    live = ask(tiny_bert, rows, tmp_path / "none", limit_bytes=1)
    torch.testing.assert_close(teacher(batch).logits, live(batch).logits, atol=1e-5, rtol=1e-5)


def test_above_the_limit_the_teacher_runs_live_and_it_is_said(
    tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path
) -> None:
    events: list[Event] = []
    ask(tiny_bert, era("train", 8), tmp_path, limit_bytes=10, emit=events.append)
    assert isinstance(events[0], Note) and "the teacher runs live in every step" in events[0].text
    assert not list(tmp_path.glob("*.npy"))


def test_a_classifiers_logits_are_cached_whatever_the_limit(
    tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path
) -> None:
    ask(tiny_bert, era("train", 8), tmp_path, hidden_layers=(), limit_bytes=10)
    assert (tmp_path / "logits.npy").is_file()


def test_a_teacher_that_is_asked_about_some_rows_only_is_asked_live(
    tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path
) -> None:
    ask(tiny_bert, era("train", 8), tmp_path, n_drawn=7)
    assert not list(tmp_path.glob("*.npy"))
