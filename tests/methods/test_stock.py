"""What plain `from_pretrained` can open, what it must refuse, and what zeros can do about it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from test_surgery import uneven, uniform
from tiny_architectures import CONFIGS, DECODERS, build, inputs, logits
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from compressor.errors import CheckpointError
from compressor.methods.structure import LayerStructure, Structure
from compressor.methods.surgery import (
    adapter_for,
    apply_structure,
    copy_layers,
    drop_layers,
    layers_of,
    read_structure,
    spaced_layers,
    stock_fit,
    zero_pad_to_stock,
)

ALL = sorted(CONFIGS)
HEAD_DIM_READERS = [name for name in ALL if adapter_for(build(name)).reads_head_dim]


def reload(name: str, folder: Path) -> PreTrainedModel:
    kind = AutoModelForCausalLM if name in DECODERS else AutoModelForSequenceClassification
    model: PreTrainedModel = kind.from_pretrained(folder)
    return model


def narrower(model: PreTrainedModel, n_ffn: int = 24) -> Structure:
    layers = read_structure(model).layers
    return Structure(
        tuple(range(len(layers))),
        tuple(LayerStructure(x.heads_kept, x.kv_heads_kept, x.ffn_kept[:n_ffn]) for x in layers),
    )


@pytest.mark.parametrize("name", ALL)
def test_uniform_ffn_and_depth_load_with_stock_transformers(name: str, tmp_path: Path) -> None:
    model = apply_structure(build(name), narrower(build(name)))
    drop_layers(model, (0, len(layers_of(model)) - 1))
    fit = stock_fit(model)
    assert fit.uniform and fit.reason is None and fit.per_layer_config is None
    assert fit.config[adapter_for(model).ffn_key] == 24 and fit.config[adapter_for(model).depth_key] == 2
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(reload(name, tmp_path)), logits(model))


@pytest.mark.parametrize("name", HEAD_DIM_READERS)
def test_uniform_heads_load_with_stock_transformers_where_head_dim_is_a_config_value(name: str, tmp_path: Path) -> None:
    model = apply_structure(build(name), uniform(build(name)))  # 4 of 6 heads: 24 % 4 == 0
    assert stock_fit(model).uniform
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(reload(name, tmp_path)), logits(model))


@pytest.mark.parametrize("name", [name for name in ALL if name not in HEAD_DIM_READERS])
def test_uniform_heads_are_not_stock_where_the_head_size_is_derived(name: str) -> None:
    model = apply_structure(build(name), uniform(build(name)))
    fit = stock_fit(model)
    assert not fit.uniform
    assert fit.reason == "heads are removed, and this architecture's config derives the head size from the head count"
    assert fit.per_layer_config is not None
    assert fit.per_layer_config["0"] == {adapter_for(model).heads_key: 3}


@pytest.mark.parametrize("name", ALL)
def test_a_stock_loader_refuses_per_layer_shapes_loudly(name: str, tmp_path: Path) -> None:
    model = apply_structure(build(name), uneven(build(name)))
    fit = stock_fit(model)
    assert not fit.uniform and fit.per_layer_config is not None
    assert fit.reason == "a sublayer is removed from some layers, which a stock config cannot say"
    assert fit.per_layer_config["1"]["skip"] == ["attention"] and fit.per_layer_config["2"]["skip"] == ["mlp"]
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "per_layer_config": fit.per_layer_config}))
    with pytest.raises((RuntimeError, ValueError, ZeroDivisionError)):
        reload(name, tmp_path)


@pytest.mark.parametrize("name", ALL)
def test_zero_padding_gives_equal_logits_in_stock_transformers(name: str, tmp_path: Path) -> None:
    for structure in (uneven(build(name)), uniform(build(name))):
        model = apply_structure(build(name), structure)
        padded = zero_pad_to_stock(model)
        assert stock_fit(padded).uniform
        padded.save_pretrained(tmp_path)
        torch.testing.assert_close(logits(reload(name, tmp_path)), logits(model), rtol=1e-4, atol=1e-5)


def test_heads_that_do_not_divide_the_hidden_size_are_named() -> None:
    model = build("llama")
    layers = tuple(LayerStructure((0, 2, 4), (0, 1, 2), x.ffn_kept) for x in read_structure(model).layers)
    assert stock_fit(apply_structure(model, Structure((0, 1, 2), layers))).uniform  # 3 divides 24
    config = LlamaConfig(
        vocab_size=61, hidden_size=20, num_hidden_layers=3, num_attention_heads=5, head_dim=8, intermediate_size=40
    )
    three = tuple(LayerStructure((0, 1, 2), (0, 1, 2), x.ffn_kept) for x in layers)
    fit = stock_fit(apply_structure(LlamaForCausalLM(config), Structure((0, 1, 2), three)))  # 3 does not divide 20
    assert fit.reason == "the head count does not divide the hidden size, which this architecture's config demands"


def test_spaced_layers_are_distilberts() -> None:
    assert spaced_layers(12, 6) == (0, 2, 4, 7, 9, 11)
    assert spaced_layers(6, 3) == (0, 3, 5) and spaced_layers(6, 1) == (0,) and spaced_layers(4, 4) == (0, 1, 2, 3)
    with pytest.raises(CheckpointError, match="a student of 7 layers cannot take its layers from a teacher of 6"):
        spaced_layers(6, 7)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_copied_layers_equal_dropping_the_others(name: str) -> None:
    teacher = build(name)
    shallow = copy.deepcopy(teacher)
    drop_layers(shallow, (0, 2))
    student = type(teacher)(copy.deepcopy(shallow.config)).eval()
    assert copy_layers(student, teacher, (0, 2)) == ()
    assert torch.equal(logits(student), logits(shallow))


def test_copying_leaves_a_new_head_and_names_it() -> None:
    teacher = build("bert")
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers, config.num_labels = 2, 5
    student = type(teacher)(config)
    assert copy_layers(student, teacher, (0, 1)) == ("classifier.weight", "classifier.bias")
    assert student.eval()(**inputs()).logits.shape == (3, 5)


def test_copying_refuses_what_does_not_fit() -> None:
    teacher = build("bert")
    student = apply_structure(build("bert"), narrower(build("bert")))
    with pytest.raises(CheckpointError, match=r"the teacher has no layers \[3\]"):
        copy_layers(student, teacher, (0, 1, 3))
    with pytest.raises(CheckpointError, match="2 layers are mapped onto a student of 3"):
        copy_layers(student, teacher, (0, 1))
    with pytest.raises(CheckpointError, match=r"teacher layer 0 does not fit student layer 0: \['intermediate"):
        copy_layers(student, teacher, (0, 1, 2))
