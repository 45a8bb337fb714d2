"""Fine-tuning and distillation as stages: students, teachers, what is on record, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from stage_shelf import CASES, TRAINING, Shelf, make_context, stage_config

from compressor.checkpoints.store import Checkpoint
from compressor.data.splits import StageData
from compressor.errors import DataError, UserError
from compressor.runtime.torch_models import load_module
from compressor.schema.events import Event, Note, Progress
from compressor.spec.sources import ModelSource, TokenizerSource
from compressor.stages.context import StageInputs
from compressor.stages.dispatch import run_here
from compressor.stages.source import make_source

SHORT = {**TRAINING, "max_steps": 3}


def distil(
    shelf: Shelf, tmp_path: Path, *, source: Checkpoint, teacher: Checkpoint, emit: Any = None, **settings: Any
) -> Checkpoint:
    config = stage_config("student", {"stage": "distill", "teacher": "t", "training": SHORT, **settings})
    ctx = make_context(shelf.task, shelf.data, tmp_path / "work", emit=emit or (lambda event: None))
    return run_here(config, StageInputs(source, teacher), tmp_path / "out", ctx)


def test_a_student_starts_with_its_teachers_layers(bert: Shelf, tmp_path: Path) -> None:
    teacher = bert.get("finetune")
    frozen = {**SHORT, "learning_rate": 1e-30, "weight_decay": 0}
    made = distil(bert, tmp_path, source=teacher, teacher=teacher, layers=[1, 3], training=frozen)
    ours, theirs = load_module(made).state_dict(), load_module(teacher).state_dict()
    assert load_module(made).config.num_hidden_layers == 2
    for name, tensor in ours.items():
        origin = name.replace("layer.1.", "layer.3.").replace("layer.0.", "layer.1.")
        torch.testing.assert_close(tensor, theirs[origin])
    assert made.content.structure is None
    assert made.record.realised["layers"] == [1, 3]
    type(load_module(made)).from_pretrained(made.path)  # a stock loader takes it


@pytest.mark.parametrize("layers", [[1, 4], [3, 1], [2, 2]])
def test_layers_that_cannot_be_taken_name_how_many_there_are(layers: list[int], bert: Shelf, tmp_path: Path) -> None:
    teacher = bert.get("finetune")
    with pytest.raises(UserError) as caught:
        distil(bert, tmp_path, source=teacher, teacher=teacher, layers=layers)
    assert f"layers {layers} cannot be taken from 'finetune', which has 4 layers" in str(caught.value)
    assert "stages.student.layers" in str(caught.value)


def test_a_layer_map_that_leaves_the_teacher(bert: Shelf, tmp_path: Path) -> None:
    teacher = bert.get("finetune")
    losses = {"hidden": {"layer_map": [1, 9]}}
    with pytest.raises(UserError, match="which has 4 layers"):
        distil(bert, tmp_path, source=teacher, teacher=teacher, layers=[1, 3], losses=losses)


def test_hidden_layers_are_spread_evenly_where_none_are_named(bert: Shelf, tmp_path: Path) -> None:
    made = bert.get("distill")
    assert made.record.realised["compared_layers"] == {"hidden": [[0, 1], [1, 3]]}


def test_a_narrow_student_learns_through_projections_that_do_not_stay(bert: Shelf, tmp_path: Path) -> None:
    teacher = bert.get("finetune")
    narrow = make_source(
        ModelSource(
            task="sequence-classification",
            config={"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                    "intermediate_size": 32, "max_position_embeddings": 64},
            tokenizer=TokenizerSource(path=str(teacher.path)),
            labels=teacher.content.labels,
        ),
        tmp_path / "narrow",
        make_context(bert.task, bert.data, tmp_path / "narrow-work"),
    )  # fmt: skip
    shutil.copy(teacher.path / "tokenizer.json", tmp_path / "t.json")
    losses = {"logits": None, "hidden": {"weight": 1.0}}
    made = distil(bert, tmp_path, source=narrow, teacher=teacher, losses=losses)
    assert made.record.realised["parameters"] == narrow.record.realised["parameters"]
    assert all("projection" not in name for name in load_module(made).state_dict())
    assert load_module(made).config.hidden_size == 16


def test_a_pruned_checkpoint_recovers_in_its_own_shape(bert: Shelf) -> None:
    pruned, recovered = bert.get("prune-heads"), bert.get("recover")
    assert recovered.content.structure == pruned.content.structure
    assert recovered.record.realised["parameters"] == pruned.record.realised["parameters"]
    shapes = [
        {name: tensor.shape for name, tensor in load_module(made).state_dict().items()} for made in (pruned, recovered)
    ]
    assert shapes[0] == shapes[1]


def test_stages_with_one_teacher_share_its_outputs(bert: Shelf, tmp_path: Path, events: list[Event]) -> None:
    teacher = bert.get("finetune")
    n_asked = []
    for number in range(2):
        config = stage_config("student", {"stage": "distill", "teacher": "t", "training": SHORT})
        ctx = make_context(
            bert.task, bert.data, tmp_path / f"work{number}", cache_dir=tmp_path / "cache", emit=events.append
        )
        run_here(config, StageInputs(teacher, teacher), tmp_path / f"out{number}", ctx)
        asked = [event for event in events if isinstance(event, Progress) and event.task == "teacher outputs"]
        n_asked.append(len(asked))
    assert n_asked[0] == n_asked[1] > 0


def test_the_cached_outputs_of_another_teacher_are_computed_anew_and_it_is_said(
    bert: Shelf, tmp_path: Path, events: list[Event]
) -> None:
    teacher, other = bert.get("finetune"), bert.make("finetune", tmp_path / "other", seed=8)
    for number, taught_by in enumerate((teacher, other)):
        config = stage_config("student", {"stage": "distill", "teacher": "t", "training": SHORT})
        ctx = make_context(
            bert.task, bert.data, tmp_path / f"work{number}", cache_dir=tmp_path / "cache", emit=events.append
        )
        run_here(config, StageInputs(teacher, taught_by), tmp_path / f"out{number}", ctx)
    said = "the cached teacher outputs belong to another teacher; they are computed anew"
    assert [event for event in events if isinstance(event, Note)] == [Note("student", said)]


def test_a_teacher_with_other_classes_names_both(bert: Shelf, tmp_path: Path, tiny_bert_dir: Path) -> None:
    student = bert.get("model")
    other = make_source(
        ModelSource(task=bert.task, path=str(tiny_bert_dir), labels=("a", "b", "c")),  # type: ignore[arg-type]
        tmp_path / "other",
        make_context(bert.task, bert.data, tmp_path / "other-work"),
    )
    with pytest.raises(UserError, match="has the classes a, b, c, the student 'model' has before 1865, 1865 to 1944"):
        distil(bert, tmp_path, source=student, teacher=other)


def test_a_teacher_with_another_tokenizer_is_refused(bert: Shelf, tmp_path: Path) -> None:
    teacher = make_source(
        ModelSource(
            task="sequence-classification",
            config={"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                    "intermediate_size": 32, "max_position_embeddings": 64},
            tokenizer=TokenizerSource(vocab_size=280),
            labels=bert.get("model").content.labels,
        ),
        tmp_path / "other",
        make_context(bert.task, bert.data, tmp_path / "other-work"),
    )  # fmt: skip
    with pytest.raises(UserError, match="have different tokenizers"):
        distil(bert, tmp_path, source=bert.get("model"), teacher=teacher)


def test_a_label_that_the_head_does_not_have_names_the_row_and_the_classes(bert: Shelf, tmp_path: Path) -> None:
    wrong = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 3]})
    data = StageData(train=wrong, validation=None, calibration=None, digests={"train": "x"})
    with pytest.raises(DataError) as caught:
        bert.make("finetune", tmp_path, data=data)
    assert "data.train: row 3 has label 3, but the head has 3 classes: 0 before 1865, 1 1865 to 1944" in str(
        caught.value
    )


@pytest.mark.parametrize(("case", "split"), [("finetune", "train"), ("prune-ffn", "calibration")])
def test_an_empty_split_is_refused(case: str, split: str, bert: Shelf, tmp_path: Path) -> None:
    assert bert.data.train is not None
    splits = {"train": bert.data.train, "validation": None, "calibration": bert.data.train}
    data = StageData(**{**splits, split: bert.data.train.select([])}, digests={"train": "x", "calibration": "y"})
    with pytest.raises(DataError, match=rf"data\.{split}: there are no rows"):
        bert.make(case, tmp_path, data=data)


def test_the_record_holds_the_curve_and_validation_before_and_after(bert: Shelf) -> None:
    record = bert.get("finetune").record
    validation = record.realised["validation"]
    assert validation["metric"] == "accuracy" and validation["rows"] == 48
    curve = record.realised["history"]
    points = [point for point in curve if "loss" in point]
    assert len(points) == record.realised["steps"] == 24
    assert validation["after"] == max(point["validation_accuracy"] for point in curve if "validation_accuracy" in point)
    assert set(record.data) == {"train", "validation"}
    assert CASES["finetune"]["training"]["epochs"] == record.config["training"]["epochs"]


def test_the_record_of_a_distillation_holds_the_parts_of_its_loss(bert: Shelf) -> None:
    points = [point for point in bert.get("distill").record.realised["history"] if "loss" in point]
    assert {"loss_labels", "loss_logits", "loss_hidden"} <= set(points[0])
    total = 0.1 * points[0]["loss_labels"] + points[0]["loss_logits"] + points[0]["loss_hidden"]
    assert points[0]["loss"] == pytest.approx(total, rel=1e-4)


def test_a_language_models_windows_are_full(gpt2: Shelf) -> None:
    record = gpt2.get("finetune").record
    assert record.realised["validation"]["metric"] == "token_perplexity"
    assert record.realised["validation"]["after"] < record.realised["validation"]["before"]


def test_bf16_trains_and_leaves_fp32_weights(bert: Shelf, tmp_path: Path) -> None:
    config = stage_config("teacher", {"stage": "finetune", "training": {**SHORT, "precision": "bf16"}})
    ctx = make_context(bert.task, bert.data, tmp_path / "work")
    made = run_here(config, StageInputs(bert.get("model")), tmp_path / "out", ctx)
    assert made.content.variants[0].facts["dtypes"] == ["float32"]
    assert made.digest != bert.get("model").digest


def test_a_training_that_made_things_worse_is_said(gpt2: Shelf, tmp_path: Path, events: list[Event]) -> None:
    trained = gpt2.get("finetune")
    config = stage_config(
        "worse", {"stage": "finetune", "training": {**SHORT, "learning_rate": 0.1, "warmup_ratio": 0}}
    )
    ctx = make_context(gpt2.task, gpt2.data, tmp_path / "work", emit=events.append)
    made = run_here(config, StageInputs(trained), tmp_path / "out", ctx)
    before, after = (made.record.realised["validation"][when] for when in ("before", "after"))
    assert before == pytest.approx(trained.record.realised["validation"]["after"], rel=1e-5)
    assert after > before
    (said,) = (event.text for event in events if isinstance(event, Note))
    assert said.startswith(
        f"validation token_perplexity was {before:.4f} before training and is {after:.4f} after it: "
    )
