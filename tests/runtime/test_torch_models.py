"""Folders <-> live modules: stock and pruned shapes, and every way in which a folder can be wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from compressor.checkpoints.store import Checkpoint
from compressor.errors import CheckpointError, UnsupportedError
from compressor.methods.structure import LayerStructure, Structure, full_layer
from compressor.methods.surgery import apply_structure, n_parameters, read_structure
from compressor.runtime.torch_models import WEIGHTS, count_parameters, load_module, save_module
from compressor.spec.tasks import TASKS

IDS = torch.arange(12).reshape(2, 6)


def logits(module: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        found = module(input_ids=IDS).logits
    assert isinstance(found, torch.Tensor)
    return found


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Checkpoint)
    return found


@pytest.mark.parametrize("folder", ["tiny_bert_dir", "tiny_gpt2_dir", "tiny_llama_dir"])
def test_what_is_saved_is_what_loads(folder: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source = request.getfixturevalue(folder)
    module = load_module(source)
    save_module(module, tmp_path)
    assert torch.equal(logits(load_module(tmp_path)), logits(module))
    assert count_parameters(tmp_path / WEIGHTS) == n_parameters(module)
    assert not module.training


@pytest.mark.parametrize("checkpoint", ["pruned_bert", "pruned_gpt2", "pruned_llama"], indirect=True)
def test_a_pruned_model_loads_by_its_structure(checkpoint: Checkpoint) -> None:
    module = load_module(checkpoint)
    again = load_module(checkpoint.path)
    assert torch.equal(logits(module), logits(again))
    assert checkpoint.content.structure is not None
    kept = Structure.from_json(checkpoint.content.structure)
    assert read_structure(module) == kept.reload()
    assert count_parameters(checkpoint.path / WEIGHTS) == n_parameters(module)


@pytest.mark.parametrize("checkpoint", ["pruned_bert", "pruned_gpt2", "pruned_llama"], indirect=True)
def test_a_stock_loader_stops_and_names_what_varies(checkpoint: Checkpoint) -> None:
    auto = getattr(transformers, TASKS[checkpoint.content.task].auto_class)  # type: ignore[index]
    with pytest.raises(RuntimeError, match="is a per-layer attribute and may vary across layers"):
        auto.from_pretrained(checkpoint.path)
    AutoTokenizer.from_pretrained(checkpoint.path)  # which reads the config, has nothing to stop for


def test_a_head_count_that_bert_cannot_say_stops_a_stock_loader_too(tiny_bert_dir: Path, tmp_path: Path) -> None:
    layer = LayerStructure((0, 2), (0, 2), tuple(range(64)))
    structure = Structure((0, 1, 2, 3), (layer,) * 4)
    save_module(apply_structure(load_module(tiny_bert_dir), structure), tmp_path, structure=structure.to_json())
    with pytest.raises(RuntimeError, match="'num_attention_heads' is a per-layer attribute"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("folder", ["tiny_bert_dir", "tiny_gpt2_dir", "tiny_llama_dir"])
def test_a_uniform_width_loads_with_a_stock_loader(folder: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    module = load_module(request.getfixturevalue(folder))
    before = read_structure(module).layers[0]
    layer = full_layer(before.n_heads, before.n_kv_heads, 40)
    structure = Structure((1, 3), (layer, layer))
    save_module(apply_structure(module, structure), tmp_path, structure=structure.to_json())
    assert "per_layer_config" not in json.loads((tmp_path / "config.json").read_text())
    auto = AutoModelForSequenceClassification if folder == "tiny_bert_dir" else AutoModelForCausalLM
    assert torch.equal(logits(auto.from_pretrained(tmp_path)), logits(module))


def test_saving_never_edits_a_file_that_another_checkpoint_shares(tiny_bert_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    module = load_module(tiny_bert_dir)
    save_module(module, tmp_path / "a")
    os.link(tmp_path / "a" / WEIGHTS, tmp_path / "b" / WEIGHTS)
    before = (tmp_path / "a" / WEIGHTS).read_bytes()
    with torch.no_grad():
        module.get_parameter("classifier.bias").add_(1.0)
    save_module(module, tmp_path / "b")
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == before != (tmp_path / "b" / WEIGHTS).read_bytes()
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["config.json", WEIGHTS]


@pytest.fixture
def spoiled(tiny_bert_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bert_dir, tmp_path / "spoiled"))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_module(folder)
    return str(caught.value)


def test_no_config(spoiled: Path) -> None:
    (spoiled / "config.json").unlink()
    assert refusal(spoiled) == f"{spoiled}: no config.json here: not a model folder\n  -> check the path"


def test_a_config_that_is_not_json(spoiled: Path) -> None:
    (spoiled / "config.json").write_text("{,")
    assert refusal(spoiled).startswith(f"{spoiled}: config.json is not JSON: ")


def test_no_weights_but_a_pickle(spoiled: Path) -> None:
    (spoiled / WEIGHTS).rename(spoiled / "pytorch_model.bin")
    assert "the weights cannot be read: " in refusal(spoiled) and "pickles are never loaded" in refusal(spoiled)


def test_weights_that_were_cut(spoiled: Path) -> None:
    data = (spoiled / WEIGHTS).read_bytes()
    (spoiled / WEIGHTS).write_bytes(data[: len(data) // 2])
    assert "the weights cannot be read: " in refusal(spoiled)
    (spoiled / WEIGHTS).write_bytes(b"12")
    with pytest.raises(CheckpointError, match="not a safetensors file: "):
        count_parameters(spoiled / WEIGHTS)


def test_weights_of_another_width(spoiled: Path) -> None:
    config = json.loads((spoiled / "config.json").read_text())
    (spoiled / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    text = refusal(spoiled)
    assert "the weights do not fit the config: bert.encoder.layer.0.intermediate.dense.bias is (64,) where" in text
    assert text.endswith(
        "the config wants (48,)\n  -> fetch the folder again; a pruned model needs its compressor.json"
    )


def test_a_head_that_is_missing_is_never_drawn_at_random(tiny_bert_dir: Path, tmp_path: Path) -> None:
    load_module(tiny_bert_dir).base_model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_module(tmp_path, task=TASKS["sequence-classification"])
    assert str(caught.value) == (
        f"{tmp_path}: the weights lack 2 tensors: classifier.bias, classifier.weight\n"
        "  -> fine-tune the model for this task first, or fetch the folder again"
    )
    with pytest.raises(UnsupportedError, match="the architecture BertModel serves none of: sequence-"):
        load_module(tmp_path)


def test_an_unknown_architecture(spoiled: Path) -> None:
    (spoiled / "config.json").write_text('{"model_type": "martian"}')
    with pytest.raises(UnsupportedError, match=r"config\.json: transformers knows no model type 'martian'"):
        load_module(spoiled)


def test_an_architecture_that_does_not_do_the_task(tmp_path: Path) -> None:
    AutoConfig.for_model("vit").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="no causal-lm model: Unrecognized configuration class"):
        load_module(tmp_path, task=TASKS["causal-lm"])
