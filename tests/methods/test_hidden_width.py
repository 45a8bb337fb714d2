"""Hidden width: channels leave the whole model, and it answers as if its norms had never seen them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from test_stock import reload
from test_surgery import uneven
from tiny_architectures import CONFIGS, DECODERS, build, logits
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from compressor.errors import CheckpointError, UnsupportedError
from compressor.methods.structure import LayerStructure, Structure
from compressor.methods.surgery import (
    adapter_for,
    apply_structure,
    hidden_width,
    layers_of,
    read_structure,
    rebuild,
    stock_fit,
    zero_pad_to_stock,
)

ALL = sorted(CONFIGS)
KEPT = (0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18, 19, 20, 21, 22, 23)  # 18 of 24: three heads of the BERT-likes


def narrowed(model: PreTrainedModel, kept: tuple[int, ...] = KEPT) -> Structure:
    whole = read_structure(model)
    return Structure(whole.layers_kept, whole.layers, kept)


class OverKept(nn.Module):
    """A norm over some channels only; the others come out as zero."""

    def __init__(self, norm: nn.Module, kept: tuple[int, ...]) -> None:
        super().__init__()
        self.inner, self.kept = copy.deepcopy(norm), torch.tensor(kept)
        for name, parameter in list(self.inner.named_parameters()):
            setattr(self.inner, name, nn.Parameter(parameter[self.kept]))
        if isinstance(self.inner, nn.LayerNorm):
            self.inner.normalized_shape = (len(kept),)

    def forward(self, states: Tensor) -> Tensor:
        out = torch.zeros_like(states)
        out[..., self.kept] = self.inner(states[..., self.kept])
        return out


def masked(model: PreTrainedModel, kept: tuple[int, ...] = KEPT) -> PreTrainedModel:
    """The dense model whose residual stream carries nothing in the other channels."""
    model = copy.deepcopy(model)
    width = hidden_width(model)
    for path, module in list(model.named_modules()):
        own = list(module.named_parameters(recurse=False))
        is_norm = "norm" in type(module).__name__.lower() and own and own[0][1].shape == (width,)
        if is_norm:
            model.set_submodule(path, OverKept(module, kept))
    return model


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_narrowing_equals_norms_that_see_fewer_channels(name: str) -> None:
    dense = build(name)
    reference = masked(dense)
    gone = [channel for channel in range(24) if channel not in KEPT]
    in_layers = set(layers_of(reference).modules())
    for module in reference.modules():  # poolers and heads are as wide as the stream, and narrowed with it
        if isinstance(module, nn.Linear) and module.out_features == 24 and module not in in_layers:
            module.weight[gone] = 0.0
            if module.bias is not None:
                module.bias[gone] = 0.0
    sliced = apply_structure(copy.deepcopy(dense), narrowed(dense))
    assert hidden_width(sliced) == 18
    torch.testing.assert_close(logits(sliced), logits(reference), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(sliced), logits(dense), atol=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_a_narrower_model_loads_again_with_identical_logits(name: str, tmp_path: Path) -> None:
    dense = build(name)
    for structure in (narrowed(dense), Structure(*uneven_parts(dense), KEPT)):
        pruned = apply_structure(copy.deepcopy(dense), structure)
        saved = Structure.from_json(json.loads(json.dumps(structure.to_json())))
        assert saved == structure
        kind = AutoModelForCausalLM if name in DECODERS else AutoModelForSequenceClassification
        with init_empty_weights():
            empty = kind.from_config(copy.deepcopy(pruned.config))
        assert torch.equal(logits(rebuild(empty, saved, pruned.state_dict())), logits(pruned))
        fit = stock_fit(pruned)
        if fit.uniform:
            pruned.save_pretrained(tmp_path)
            assert torch.equal(logits(reload(name, tmp_path)), logits(pruned))
        elif hidden_width(pruned) != pruned.config.hidden_size:
            assert fit.per_layer_config is not None and fit.per_layer_config["0"]["hidden_size"] == 18
            with pytest.raises(UnsupportedError, match="a hidden width of 18 cannot be padded to the config's 24"):
                zero_pad_to_stock(pruned)


def uneven_parts(model: PreTrainedModel) -> tuple[tuple[int, ...], tuple[LayerStructure, ...]]:
    structure = uneven(model)
    return structure.layers_kept, structure.layers


@pytest.mark.parametrize("name", ALL)
def test_width_and_heads_together_are_a_stock_model(name: str, tmp_path: Path) -> None:
    """12 of 24 channels with half the heads: what a smaller model of the family looks like."""
    dense = build(name)
    layers = []
    for layer in read_structure(dense).layers:
        n_kv = layer.n_kv_heads // 2 if adapter_for(dense).keys_values == () else 1
        per_group = layer.n_heads // layer.n_kv_heads
        layers.append(LayerStructure(tuple(range(n_kv * per_group)), tuple(range(n_kv)), tuple(range(16))))
    structure = Structure(read_structure(dense).layers_kept, tuple(layers), tuple(range(0, 24, 2)))
    pruned = apply_structure(dense, structure)
    assert stock_fit(pruned).uniform and pruned.config.hidden_size == 12
    pruned.save_pretrained(tmp_path)
    assert torch.equal(logits(reload(name, tmp_path)), logits(pruned))
    again = apply_structure(pruned, narrowed(pruned, (0, 2, 4, 6, 8, 10)))
    assert hidden_width(again) == 6 and torch.isfinite(logits(again)).all()


def test_gemmas_embedding_factor_stays_as_it_was() -> None:
    dense = build("gemma3_text")
    ids = torch.tensor([[5, 9]])
    before = dense.get_input_embeddings()(ids)
    pruned = apply_structure(dense, narrowed(dense))
    torch.testing.assert_close(pruned.get_input_embeddings()(ids), before[..., list(KEPT)], rtol=1e-5, atol=1e-5)
    assert pruned.get_input_embeddings().embed_scale == pytest.approx(18**0.5)  # what a loader takes from the width
    assert pruned.get_output_embeddings().weight is pruned.get_input_embeddings().weight


def test_channels_that_are_not_there_are_refused() -> None:
    model = build("bert")
    with pytest.raises(CheckpointError, match="hidden channels that do not exist or stand out of order; there are 24"):
        apply_structure(model, narrowed(model, (0, 24)))
    with pytest.raises(CheckpointError, match="at least one hidden channel"):
        apply_structure(model, narrowed(model, ()))


def test_widths_compose_when_a_model_is_narrowed_twice() -> None:
    dense = build("llama")
    first = narrowed(dense)
    once = apply_structure(copy.deepcopy(dense), first)
    later = narrowed(once, tuple(range(0, 18, 3)))
    both = first.then(later)
    assert both.hidden_kept == tuple(KEPT[i] for i in range(0, 18, 3))
    twice, direct = apply_structure(once, later), apply_structure(dense, both)
    torch.testing.assert_close(logits(twice), logits(direct))
    assert len(layers_of(twice)) == 3
