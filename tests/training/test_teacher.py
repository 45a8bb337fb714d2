"""The teacher's outputs: cached ones equal live ones for any batch, and a cache of something else is not used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from compressor.schema.events import Event, Note, Progress
from compressor.training.inside import Place
from compressor.training.rows import Row, collate
from compressor.training.teacher import AUTO_TOP_K, Teacher, TopK, ask_teacher

Rows = Callable[[str, int], list[Row]]
PLACES = (Place("hidden", 1), Place("query", 3), Place("value", 3), Place("embeddings"))
PLACES = (Place("hidden", 1), Place("query", 3), Place("value", 3), Place("embeddings"))
KEY = {"teacher": "aa", "train": "bb"}


def ask(model: PreTrainedModel, rows: list[Row], folder: Path, **changes: Any) -> Teacher:
    arguments: dict[str, Any] = {
        "key": KEY,
        "folder": folder,
        "kind": "class",
        "places": PLACES,
        "top_k": TopK(None, 1.0),
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
        torch.testing.assert_close(ours.answer, theirs.answer, atol=1e-5, rtol=1e-5)
        assert set(ours.inside) == set(theirs.inside) == set(PLACES)
        for place in PLACES:
            torch.testing.assert_close(ours.inside[place], theirs.inside[place], atol=2e-3, rtol=2e-3)  # fp16 on disk


def test_a_language_models_logits_are_cached_per_token(
    tiny_gpt2: PreTrainedModel, sotu_rows: Rows, tmp_path: Path
) -> None:
    rows = [*sotu_rows("train", 9), {"input_ids": [3, 4, 5], "labels": [3, 4, 5], "index": 9}]
    cached = ask(tiny_gpt2, rows, tmp_path, kind="next_token", places=())
    live = ask(tiny_gpt2, rows, tmp_path / "none", kind="next_token", places=(), limit_bytes=1)
    batch = collate([rows[9], rows[2], rows[5]], pad_id=0)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(cached(batch).answer[real], live(batch).answer[real], atol=2e-3, rtol=2e-3)


def test_the_largest_logits_and_the_mass_of_the_others_are_the_teachers_own(
    tiny_gpt2: PreTrainedModel, sotu_rows: Rows, tmp_path: Path
) -> None:
    rows = sotu_rows("train", 6)
    asked = {"kind": "next_token", "places": (), "top_k": TopK(5, 2.0)}
    cached = ask(tiny_gpt2, rows, tmp_path, **asked)
    live = ask(tiny_gpt2, rows, tmp_path / "none", limit_bytes=1, **asked)
    batch = collate([rows[4], rows[1]], pad_id=0)
    with torch.no_grad():
        full = torch.softmax(tiny_gpt2(batch["input_ids"]).logits / 2.0, -1)
    for said in (cached(batch), live(batch)):
        assert said.classes is not None and said.classes.shape == (2, 16, 5)
        probabilities = torch.softmax(said.answer, -1)
        torch.testing.assert_close(probabilities[..., :5], full.gather(-1, said.classes), atol=2e-3, rtol=2e-3)
        rest = 1 - full.gather(-1, said.classes).sum(-1)
        torch.testing.assert_close(probabilities[..., 5], rest, atol=2e-3, rtol=2e-3)
    assert {path.name for path in tmp_path.glob("*.npy")} == {"answer_top5_t2.npy", "classes_top5_t2.npy"}


def test_too_many_logits_are_cached_in_part_and_it_is_said(
    tiny_gpt2: PreTrainedModel, sotu_rows: Rows, tmp_path: Path
) -> None:
    events: list[Event] = []
    rows = sotu_rows("train", 6)
    teacher = ask(tiny_gpt2, rows, tmp_path, kind="next_token", places=(), limit_bytes=50_000, emit=events.append)
    classes = teacher(collate(rows, pad_id=0)).classes
    assert classes is not None and classes.shape[-1] == AUTO_TOP_K
    assert isinstance(events[0], Note)
    assert f"the {AUTO_TOP_K} largest of each token are cached, and the mass of the others" in events[0].text


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
    ask(tiny_bert, rows, tmp_path, places=())
    before = (tmp_path / "answer.npy").stat().st_mtime_ns
    teacher = ask(tiny_bert, rows, tmp_path, places=(Place("hidden", 2),))
    assert (tmp_path / "answer.npy").stat().st_mtime_ns == before
    assert set(teacher(collate(rows, pad_id=0)).inside) == {Place("hidden", 2)}


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
    torch.testing.assert_close(teacher(batch).answer, live(batch).answer, atol=1e-5, rtol=1e-5)


def test_above_the_limit_the_teacher_runs_live_and_it_is_said(
    tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path
) -> None:
    events: list[Event] = []
    ask(tiny_bert, era("train", 8), tmp_path, limit_bytes=10, emit=events.append)
    assert isinstance(events[0], Note) and "the teacher runs in every step" in events[0].text
    assert not list(tmp_path.glob("*.npy"))


def test_a_classifiers_logits_are_cached_whatever_the_limit(
    tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path
) -> None:
    ask(tiny_bert, era("train", 8), tmp_path, places=(), limit_bytes=10)
    assert (tmp_path / "answer.npy").is_file()


def test_a_teacher_that_is_asked_about_some_rows_only_is_asked_live(
    tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path
) -> None:
    events: list[Event] = []
    ask(tiny_bert, era("train", 8), tmp_path, n_drawn=7, emit=events.append)
    assert not list(tmp_path.glob("*.npy"))
    text = "7 of 8 rows will be seen, which is no reason to cache all that the teacher says"
    assert events == [Note("student", f"{text}: the teacher runs in every step")]
