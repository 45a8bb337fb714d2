"""Every preset as a stage, on the students that pipelines bring; what two shapes make impossible is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_shelf import TRAINING, Shelf, make_context, stage_config

from compressor.checkpoints.store import Checkpoint
from compressor.errors import UnsupportedError, UserError
from compressor.runtime.torch_models import load_module
from compressor.schema.events import Event, Note
from compressor.spec.distillation import PRESETS
from compressor.spec.sources import ModelSource, TokenizerSource
from compressor.stages.context import StageInputs
from compressor.stages.dispatch import run_here
from compressor.stages.source import make_source

SHORT = {**TRAINING, "max_steps": 3}
BERT = {
    "model_type": "bert", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32,
    "max_position_embeddings": 64,
}  # fmt: skip
"""Wider than the shelf's teacher."""
FOR_DECODERS = ("logits", "distilbert", "tinybert", "minilm", "minilmv2", "reverse_kl", "jsd", "skew")


def distil(shelf: Shelf, folder: Path, *, source: Checkpoint, emit: Any = None, **settings: Any) -> Checkpoint:
    training = settings.pop("training", SHORT)
    config = stage_config("student", {"stage": "distill", "teacher": "finetune", "training": training, **settings})
    ctx = make_context(
        shelf.task, shelf.data, folder / "work", emit=emit or (lambda event: None), cache_dir=shelf.root / "cache"
    )
    return run_here(config, StageInputs(source, shelf.get("finetune")), folder / "out", ctx)


def from_config(shelf: Shelf, folder: Path, **changes: Any) -> Checkpoint:
    teacher = shelf.get("finetune")
    source = ModelSource(
        task=shelf.task, config={**BERT, **changes}, tokenizer=TokenizerSource(path=str(teacher.path)),  # type: ignore[arg-type]
        labels=teacher.content.labels,
    )  # fmt: skip
    return make_source(source, folder / "source", make_context(shelf.task, shelf.data, folder / "source-work"))


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "embedding"])
def test_every_preset_trains_a_student_of_its_teachers_layers(preset: str, bert: Shelf, tmp_path: Path) -> None:
    teacher = bert.get("finetune")
    made = distil(bert, tmp_path, source=teacher, preset=preset, layers=[1, 3])
    assert made.digest != teacher.digest
    first = next(point for point in made.record.realised["history"] if "loss" in point)
    losses = made.record.config["losses"]
    weights = {name: losses[name]["weight"] for name in PRESETS[preset] if name != "labels" and losses[name]}  # type: ignore[index]
    weights |= {"labels": losses["labels"]} if losses["labels"] else {}
    assert {name.removeprefix("loss_") for name in first if name.startswith("loss_")} == set(weights)
    total = sum(weight * first[f"loss_{name}"] for name, weight in weights.items())
    assert first["loss"] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("preset", FOR_DECODERS)
def test_presets_for_decoders(preset: str, gpt2: Shelf, tmp_path: Path) -> None:
    made = distil(gpt2, tmp_path, source=gpt2.get("finetune"), preset=preset, layers=[0, 3])
    assert made.record.realised["steps"] == 3


def test_a_pruned_student_learns_relations_whatever_its_heads(bert: Shelf, tmp_path: Path) -> None:
    pruned = bert.get("prune-heads")
    made = distil(bert, tmp_path, source=pruned, preset="minilmv2", losses={"relations": {"at": "every"}})
    assert made.content.structure == pruned.content.structure
    assert len(made.record.realised["relation_heads"]) == 4
    with pytest.raises(UserError, match=r"compares heads one by one, but student layer 0 has 2 of them"):
        distil(bert, tmp_path / "no", source=pruned, preset="tinybert")


def test_losses_are_overridden_key_by_key_and_taken_out_by_null() -> None:
    config: Any = stage_config(
        "s", {"stage": "distill", "teacher": "t", "preset": "minilmv2",
              "losses": {"labels": 0.5, "logits": None, "relations": {"heads": 12}}},
    )  # fmt: skip
    assert config.losses.logits is None and config.losses.labels == 0.5
    assert (config.losses.relations.heads, config.losses.relations.of) == (12, ("query", "key", "value"))


def test_a_stage_that_leaves_the_head_alone_keeps_its_last_state_and_says_so(
    bert: Shelf, tmp_path: Path, events: list[Event]
) -> None:
    made = distil(
        bert, tmp_path, source=bert.get("finetune"), preset="tinybert", layers=[1, 3], emit=events.append,
        training={**SHORT, "evaluate_every_steps": 1},
    )  # fmt: skip
    assert made.record.realised["validation"]["best_step"] == 3
    assert any(isinstance(event, Note) and "its last state is kept" in event.text for event in events)


def test_tinybert_in_two_steps(bert: Shelf, tmp_path: Path) -> None:
    layers = distil(bert, tmp_path / "1", source=bert.get("finetune"), preset="tinybert", layers=[1, 3])
    made = distil(bert, tmp_path / "2", source=layers, preset="tinybert_prediction")
    assert made.record.inputs["source"] == layers.digest


def test_a_wider_student_is_refused_by_the_losses_that_cannot_compare_it(bert: Shelf, tmp_path: Path) -> None:
    wide = from_config(bert, tmp_path)
    with pytest.raises(UserError, match=r"losses\.pkd compares states of one width, but the student's are 48 wide"):
        distil(bert, tmp_path / "a", source=wide, preset="pkd")
    many = from_config(bert, tmp_path / "heads", num_attention_heads=8)
    with pytest.raises(UserError, match="student layer 0 has 8 of them and teacher layer 1 has 4"):
        distil(bert, tmp_path / "b", source=many, preset="tinybert")
    made = distil(bert, tmp_path / "c", source=wide, preset="minilmv2", losses={"hidden": {"weight": 1.0}})
    assert load_module(made).config.hidden_size == 48


def test_the_pipelines_own_words_for_what_cannot_be(bert: Shelf, gpt2: Shelf, tmp_path: Path) -> None:
    teacher = bert.get("finetune")
    with pytest.raises(UserError, match=r"losses.relations.heads is 5, which does not divide both"):
        distil(bert, tmp_path / "a", source=teacher, preset="minilmv2", losses={"relations": {"heads": 5}})
    with pytest.raises(UserError, match=r"losses.attention.layer_map \[1, 7\] leaves the teacher, which has 4 layers"):
        losses = {"attention": {"layer_map": [1, 7]}}
        distil(bert, tmp_path / "b", source=teacher, preset="tinybert", layers=[1, 3], losses=losses)
    with pytest.raises(UnsupportedError, match=r"losses\.pkd compares the first token, which in a decoder has"):
        distil(gpt2, tmp_path / "c", source=gpt2.get("finetune"), preset="pkd")
    with pytest.raises(UnsupportedError, match=r"losses\.output would compare the raw logits of all tokens"):
        distil(gpt2, tmp_path / "d", source=gpt2.get("finetune"), preset="embedding")
    with pytest.raises(ValueError, match=r"`losses\.relations\.layer_map` has 2 layers, and 1 of the stud"):
        stage_config("s", {"stage": "distill", "teacher": "t", "preset": "minilmv2", "layers": [1, 3],
                           "losses": {"relations": {"layer_map": [1, 3]}}})  # fmt: skip


def test_a_tokenizer_that_only_pads_otherwise_is_the_same(bert: Shelf, tmp_path: Path) -> None:
    import json

    teacher = bert.get("finetune")
    copy = tmp_path / "copy"
    shutil.copytree(teacher.path, copy)
    values = json.loads((copy / "tokenizer.json").read_text())
    values["truncation"] = {"max_length": 9, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (copy / "tokenizer.json").write_text(json.dumps(values))
    (copy / "compressor.json").unlink()
    source = ModelSource(task=bert.task, path=str(copy), labels=teacher.content.labels)  # type: ignore[arg-type]
    student = make_source(source, tmp_path / "student", make_context(bert.task, bert.data, tmp_path / "student-work"))
    assert distil(bert, tmp_path / "made", source=student, preset="logits").record.realised["steps"] == 3


@pytest.mark.parametrize("preset", ["tinybert", "minilmv2"])
def test_checkpointed_gradients_reach_what_is_read_inside(preset: str, bert: Shelf, tmp_path: Path) -> None:
    made = [
        distil(
            bert, tmp_path / str(number), source=from_config(bert, tmp_path / f"s{number}", hidden_dropout_prob=0.0,
                                                             attention_probs_dropout_prob=0.0, hidden_size=24),
            preset=preset, training={**SHORT, "gradient_checkpointing": bool(number)},
        )
        for number in range(2)
    ]  # fmt: skip
    ours, theirs = (load_module(one).state_dict() for one in made)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-4, msg=name)
