"""Augmentation in a stage: the teacher answers the new rows, and what cannot be augmented is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from stage_shelf import TRAINING, Shelf, make_context, stage_config
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from compressor.checkpoints.store import Checkpoint
from compressor.errors import CheckpointError, UserError
from compressor.schema.events import Event, Progress
from compressor.spec.sources import ModelSource
from compressor.stages.context import StageInputs
from compressor.stages.dispatch import run_here
from compressor.stages.rows import train_rows
from compressor.stages.source import make_source


@pytest.fixture(scope="module")
def filler(bert: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random masked language model over the shelf's tokens."""
    folder = tmp_path_factory.mktemp("filler")
    teacher = bert.get("finetune")
    tokenizer = AutoTokenizer.from_pretrained(teacher.path)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(teacher.path / name, folder / name)
    return folder


def distil(shelf: Shelf, folder: Path, augment: dict[str, Any], *, emit: Any = None, **training: Any) -> Checkpoint:
    teacher = shelf.get("finetune")
    settings = {**TRAINING, "epochs": 2, "rows": 16, **training, "augment": augment}
    config = stage_config(
        "student", {"stage": "distill", "teacher": "finetune", "preset": "logits", "training": settings}
    )
    ctx = make_context(shelf.task, shelf.data, folder / "work", emit=emit or (lambda event: None))
    return run_here(config, StageInputs(teacher, teacher), folder / "out", ctx)


def test_a_second_epoch_sees_other_words_that_the_teacher_was_asked_about(
    bert: Shelf, filler: Path, tmp_path: Path, events: list[Event]
) -> None:
    made = distil(bert, tmp_path / "a", {"model": str(filler), "variants": 5}, emit=events.append)
    realised = made.record.realised
    # as many variants as there are epochs
    assert (realised["train_rows"], realised["variants"], realised["steps"]) == (16, 2, 4)
    assert len(realised["augmented_by"]) == 64
    asked = [event for event in events if isinstance(event, Progress) and event.task == "teacher outputs"]
    assert asked[-1].total == 32
    plain = distil(bert, tmp_path / "b", {"model": str(filler), "variants": 5, "probability": 0.001})
    ours, theirs = ([p["loss"] for p in one.record.realised["history"] if "loss" in p] for one in (made, plain))
    assert ours[:2] == theirs[:2] and ours[2:] != theirs[2:]


def test_what_cannot_be_augmented_is_refused(
    bert: Shelf, gpt2: Shelf, filler: Path, tiny_bert_dir: Path, tmp_path: Path
) -> None:
    augment = {"model": str(filler)}
    with pytest.raises(UserError, match="adds rows for further epochs, and there is one epoch"):
        distil(bert, tmp_path / "a", augment, epochs=1)
    with pytest.raises(UserError, match="replaces words, which would change the labels of causal-lm"):
        distil(gpt2, tmp_path / "b", augment)
    with pytest.raises(CheckpointError, match=r"there is no model with config\.json and safetensors in nowhere"):
        distil(bert, tmp_path / "c", {"model": "nowhere"})
    with pytest.raises(CheckpointError, match="lacks weights of a masked language model, such as cls"):
        distil(bert, tmp_path / "d", {"model": str(bert.get("finetune").path)})


def test_a_masked_language_model_hides_other_tokens_in_each_epoch(
    bert: Shelf, filler: Path, tmp_path: Path, events: list[Event]
) -> None:
    source = make_source(
        ModelSource(task="masked-lm", path=str(filler)),
        tmp_path / "source",
        make_context("masked-lm", bert.data, tmp_path / "source-work"),
    )
    training = {**TRAINING, "epochs": 3, "rows": 16, "variants": 2}
    config = stage_config(
        "student", {"stage": "distill", "teacher": "model", "preset": "distilbert", "training": training}
    )
    ctx = make_context("masked-lm", bert.data, tmp_path / "work", emit=events.append)
    made = run_here(config, StageInputs(source, source), tmp_path / "out", ctx)
    n_rows = made.record.realised["train_rows"]
    asked = [event for event in events if isinstance(event, Progress) and event.task == "teacher outputs"]
    assert made.record.realised["variants"] == 2 and asked[-1].total == 2 * n_rows
    rows = [train_rows(source, ctx, 16, variant=variant)[0]["input_ids"] for variant in range(2)]
    assert rows[0] != rows[1] and len(rows[0]) == len(rows[1])
    # the student is its teacher, so at first it agrees with what was cached of the very tokens that are hidden
    first = next(point for point in made.record.realised["history"] if "loss" in point)
    assert first["loss_hidden"] < 0.01
