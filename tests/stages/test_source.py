"""Making the first checkpoint: heads, class names, tokenizers, and what cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from stage_shelf import ERAS, Shelf, make_context

from compressor.checkpoints.store import Checkpoint
from compressor.data.splits import StageData
from compressor.errors import CheckpointError, DataError, UnsupportedError, UserError
from compressor.runtime.torch_models import load_module
from compressor.schema.events import Event, Note
from compressor.spec.sources import ModelSource, TokenizerSource
from compressor.stages.source import make_source, source_identity

BERT = {
    "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


def source(shelf: Shelf, tmp_path: Path, **changes: Any) -> Checkpoint:
    task = changes.pop("task", "sequence-classification")
    context = {name: changes.pop(name) for name in ("seed", "emit", "max_tokens", "data") if name in changes}
    ctx = make_context(task, context.pop("data", shelf.data), tmp_path / "work", **context)
    return make_source(ModelSource(task=task, **changes), tmp_path / "out", ctx)


@pytest.fixture
def headless(tiny_bert_dir: Path, tmp_path: Path) -> Path:
    """The tiny BERT without its classifier."""
    folder = tmp_path / "headless"
    shutil.copytree(tiny_bert_dir, folder)
    weights = {
        name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "classifier" not in name
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["BertModel"]
    del config["id2label"], config["label2id"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_head_that_is_there_is_kept(bert: Shelf, tiny_bert_dir: Path, tmp_path: Path) -> None:
    made = source(bert, tmp_path, path=str(tiny_bert_dir), labels=ERAS)
    ours, theirs = load_file(made.path / "model.safetensors"), load_file(tiny_bert_dir / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert made.record.realised["new_weights"] == []
    assert made.content.labels == ERAS
    assert load_module(made).config.id2label == dict(enumerate(ERAS))


def test_a_model_of_the_hub_is_recorded_with_the_commit_that_its_revision_meant(
    bert: Shelf, tiny_bert_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []

    def resolve(*name: object) -> tuple[Path, str]:
        asked.append(name)
        return tiny_bert_dir, "c0ffee"

    monkeypatch.setattr("compressor.stages.source.resolve", resolve)
    made = source(bert, tmp_path, hub="org/model", revision="main", labels=ERAS)
    assert made.record.realised["origin"] == {"commit": "c0ffee"}
    assert set(asked) == {("org/model", "main")}


def test_a_missing_head_is_drawn_from_the_seed_and_recorded(
    bert: Shelf, headless: Path, tmp_path: Path, events: list[Event]
) -> None:
    labels = ("no", "yes")
    first = source(bert, tmp_path / "a", path=str(headless), labels=labels, emit=events.append)
    again = source(bert, tmp_path / "b", path=str(headless), labels=labels)
    other = source(bert, tmp_path / "c", path=str(headless), labels=labels, seed=8)
    assert first.record.realised["new_weights"] == ["classifier.bias", "classifier.weight"]
    assert events == [Note("model", "new weights drawn from seed 7: classifier.bias, classifier.weight")]
    assert load_module(first).config.num_labels == 2
    assert first.digest == again.digest != other.digest


def test_a_missing_head_needs_class_names(bert: Shelf, headless: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="no classification head yet, and the pipeline does not name its classes"
    ) as caught:
        source(bert, tmp_path, path=str(headless))
    assert "model.labels: [negative, positive]" in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "said"),
    [(("a", "b"), "2 classes (0 a, 1 b)"), ((ERAS[1], ERAS[0], ERAS[2]), f"3 classes (0 {ERAS[1]}, 1 {ERAS[0]}")],
)
def test_class_names_that_contradict_the_head_name_both(
    labels: tuple[str, ...], said: str, bert: Shelf, tmp_path: Path
) -> None:
    named = bert.get("model").path
    with pytest.raises(UserError) as caught:
        source(bert, tmp_path, path=str(named), labels=labels)
    assert f"model.labels names {said}" in str(caught.value)
    assert f"but the head of this model has 3 classes (0 {ERAS[0]}, 1 {ERAS[1]}, 2 {ERAS[2]})" in str(caught.value)


def test_without_class_names_the_heads_own_hold(bert: Shelf, tmp_path: Path) -> None:
    assert source(bert, tmp_path, path=str(bert.get("model").path)).content.labels == ERAS


def test_a_pruned_checkpoint_of_ours_can_be_a_source(bert: Shelf, tmp_path: Path) -> None:
    pruned = bert.get("prune-heads")
    made = source(bert, tmp_path, path=str(pruned.path))
    assert made.content.structure == pruned.content.structure
    assert made.record.realised["origin"] == {"digest": pruned.digest}
    assert made.content.files["model.safetensors"].sha256 == pruned.content.files["model.safetensors"].sha256


def test_random_weights_from_a_config_and_a_trained_tokenizer(bert: Shelf, tmp_path: Path, events: list[Event]) -> None:
    settings = {"config": BERT, "tokenizer": TokenizerSource(vocab_size=300), "labels": ERAS}
    first = source(bert, tmp_path / "a", **settings, emit=events.append)
    again = source(bert, tmp_path / "b", **settings)
    module = load_module(first)
    assert module.config.vocab_size == 300 and module.config.num_labels == 3
    assert first.digest == again.digest
    assert set(first.record.data) == {"train"}
    assert events == [Note("model", "new weights drawn from seed 7: all")]


def test_a_decoder_from_a_config(gpt2: Shelf, tmp_path: Path) -> None:
    made = source(gpt2, tmp_path, task="causal-lm", config=GPT2, tokenizer=TokenizerSource(vocab_size=300))
    module = load_module(made)
    assert module.config.vocab_size == 300
    assert made.content.labels is None and made.content.architecture == "GPT2LMHeadModel"


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        (
            {"config": {**BERT, "vocab_size": 999}, "tokenizer": {"vocab_size": 300}, "labels": ERAS},
            UserError,
            "model.config.vocab_size: vocab_size is 999, but the tokenizer has 300 tokens",
        ),
        (
            {"config": {"model_type": "perceptron"}, "tokenizer": {"vocab_size": 300}, "labels": ERAS},
            UnsupportedError,
            "transformers has no architecture 'perceptron'",
        ),
        (
            {"config": {"model_type": "vit"}, "tokenizer": {"vocab_size": 300}, "labels": ERAS},
            UnsupportedError,
            "models of type 'vit' cannot be used for sequence-classification",
        ),
        (
            {"config": BERT, "tokenizer": {"vocab_size": 300}, "labels": ERAS, "max_tokens": 65},
            UserError,
            "data.max_tokens is 65, but the model reads 64 tokens at most",
        ),
        (
            {"config": BERT, "tokenizer": {"vocab_size": 300}, "labels": ERAS, "data": StageData(None, None, None, {})},
            DataError,
            "a tokenizer is trained on the training split, and there is none",
        ),
        ({"path": "no/such/folder"}, CheckpointError, "no/such/folder: no such model folder"),
        (
            {"path": "no/such/folder", "how_to_get": "make fetch"},
            CheckpointError,
            "no/such/folder: no such model folder\n  -> make fetch",
        ),
    ],
)
def test_what_cannot_be_used_is_said(
    changes: dict[str, Any], error: type[Exception], said: str, bert: Shelf, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        source(bert, tmp_path, **changes)
    assert said in str(caught.value)


def test_an_unknown_architecture_in_a_folder(bert: Shelf, tiny_bert_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(tiny_bert_dir, folder)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "mystery"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="model type 'mystery'"):
        source(bert, tmp_path, path=str(folder))


def test_a_folder_without_weights(bert: Shelf, tiny_bert_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    shutil.copytree(tiny_bert_dir, folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no safetensors weights here"):
        source(bert, tmp_path, path=str(folder), labels=ERAS)


def test_weights_that_are_cut_short(bert: Shelf, tiny_bert_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(tiny_bert_dir, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(
        CheckpointError, match=r"cut: the weights cannot be read: .*\n  -> a safetensors file here is cut"
    ):
        source(bert, tmp_path, path=str(folder))


def test_an_encoder_with_a_decoder_is_refused(bert: Shelf, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"^model.config: models of type 't5' have an encoder and a decoder"):
        source(bert, tmp_path, config={"model_type": "t5"}, tokenizer=TokenizerSource(vocab_size=200), labels=ERAS)


def test_a_folder_whose_body_is_incomplete(bert: Shelf, tiny_bert_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    shutil.copytree(tiny_bert_dir, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weights of the model are missing, such as bert\.encoder\.layer\.1"):
        source(bert, tmp_path, path=str(folder), labels=ERAS)


def test_the_identity_of_a_source_follows_its_files(tiny_bert_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert_dir, folder)
    model = ModelSource(task="sequence-classification", path=str(folder))
    before = source_identity(model)
    assert source_identity(model) == before
    config = json.loads((folder / "config.json").read_text()) | {"hidden_dropout_prob": 0.2}
    (folder / "config.json").write_text(json.dumps(config))
    assert source_identity(model) != before
