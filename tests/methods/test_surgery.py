"""The laws of surgery, one per architecture: slicing equals masking, reloading changes nothing, counts add up."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from accelerate import init_empty_weights
from tiny_architectures import CONFIGS, DECODERS, build, inputs, logits
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel, T5Config, T5Model

from compressor.errors import CheckpointError, StageError, UnsupportedError
from compressor.methods.structure import LayerStructure, Structure
from compressor.methods.surgery import (
    adapter_for,
    apply_structure,
    drop_layers,
    head_dim_of,
    kv_cache_shapes,
    layers_of,
    n_parameters,
    read_structure,
    rebuild,
    require_change,
)
from compressor.methods.surgery.slicing import linear_at, set_weight, spread, weight_of

ALL = sorted(CONFIGS)


def uneven(model: PreTrainedModel) -> Structure:
    """A different shape in every layer: some heads, no attention, no FFN."""
    layers = []
    for number, layer in enumerate(read_structure(model).layers):
        group = layer.n_heads // layer.n_kv_heads
        kv = () if number == 1 else tuple(range(number % 2, layer.n_kv_heads, 2))
        heads = tuple(k * group + i for k in kv for i in range(group))
        ffn = () if number == 2 else tuple(range(number, layer.ffn_width, 2 + number))
        layers.append(LayerStructure(heads, kv, ffn))
    return Structure(tuple(range(len(layers))), tuple(layers))


def uniform(model: PreTrainedModel) -> Structure:
    layers = []
    for layer in read_structure(model).layers:
        group = layer.n_heads // layer.n_kv_heads
        kv = tuple(range(layer.n_kv_heads))[1:]
        layers.append(LayerStructure(tuple(k * group + i for k in kv for i in range(group)), kv, tuple(range(7, 23))))
    return Structure(tuple(range(len(layers))), tuple(layers))


@torch.no_grad()
def mask_out(model: PreTrainedModel, structure: Structure) -> PreTrainedModel:
    """The dense model with the output weights of all removed units set to zero."""
    model = copy.deepcopy(model)
    adapter = adapter_for(model)
    for layer, kept in zip(layers_of(model), structure.layers, strict=True):
        head_dim = head_dim_of(layer, adapter)
        for path, columns in (
            (adapter.attention_out, spread(kept.heads_kept, head_dim)),
            (adapter.ffn_out, spread(kept.ffn_kept, 1)),
        ):
            linear = linear_at(layer, path)
            weight = torch.zeros_like(weight_of(linear))
            weight[:, columns] = weight_of(linear)[:, columns]
            set_weight(linear, weight)
    return model


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ALL)
def test_slicing_equals_masking(name: str, attention: str) -> None:
    dense = build(name, attention)
    for structure in (uneven(dense), uniform(dense)):
        sliced = apply_structure(copy.deepcopy(dense), structure)
        torch.testing.assert_close(logits(sliced), logits(mask_out(dense, structure)), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(logits(sliced), logits(dense), atol=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_parameters_drop_by_the_computed_number(name: str) -> None:
    dense = build(name)
    structure = uneven(dense)
    adapter = adapter_for(dense)
    removed = 0
    for layer, kept in zip(layers_of(dense), structure.layers, strict=True):
        head_dim = head_dim_of(layer, adapter)
        shares = {}
        for projection in adapter.queries:
            shares[projection.path] = 1 - kept.n_heads / read_structure(dense).layers[0].n_heads
        for projection in adapter.keys_values:
            shares[projection.path] = 1 - kept.n_kv_heads / read_structure(dense).layers[0].n_kv_heads
        for projection in adapter.ffn_in:
            shares[projection.path] = 1 - kept.ffn_width / read_structure(dense).layers[0].ffn_width
        for path, share in shares.items():
            linear = linear_at(layer, path)
            removed += share * (linear.weight.numel() + (0 if linear.bias is None else linear.bias.numel()))
            if share == 1 and head_dim_of(layer, adapter) and path in {p.path for p in adapter.queries}:
                for norm in ("q_norm", "k_norm"):  # a skipped attention takes its per-head norms along
                    attention = layer.get_submodule(adapter.attention)
                    removed += getattr(attention, norm).weight.numel() if hasattr(attention, norm) else 0
        removed += (read_structure(dense).layers[0].n_heads - kept.n_heads) * head_dim * hidden(dense)
        removed += (read_structure(dense).layers[0].ffn_width - kept.ffn_width) * hidden(dense)
    before = n_parameters(dense)
    assert before - n_parameters(apply_structure(dense, structure)) == round(removed)


def hidden(model: PreTrainedModel) -> int:
    return int(model.config.hidden_size)


@pytest.mark.parametrize("name", ALL)
def test_rebuilding_on_meta_gives_identical_logits(name: str) -> None:
    dense = build(name)
    for structure in (uneven(dense), uniform(dense)):
        pruned = apply_structure(copy.deepcopy(dense), structure)
        saved = Structure.from_json(json.loads(json.dumps(structure.to_json())))
        assert saved == structure
        kind = AutoModelForCausalLM if name in DECODERS else AutoModelForSequenceClassification
        with init_empty_weights():
            empty = kind.from_config(copy.deepcopy(pruned.config))
        loaded = rebuild(empty, saved, pruned.state_dict())
        assert torch.equal(logits(loaded), logits(pruned))


@pytest.mark.parametrize("name", DECODERS)
def test_cached_decoding_equals_one_pass(name: str) -> None:
    model = build(name)
    structure = uneven(model)
    first_gone = LayerStructure((), (), structure.layers[0].ffn_kept)
    apply_structure(model, Structure(structure.layers_kept, (first_gone, *structure.layers[1:])))
    ids = inputs(batch=2)["input_ids"].clamp(min=4)
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        step = model(input_ids=ids[:, :6], use_cache=True)
        past, parts = step.past_key_values, [step.logits]
        for at in range(6, ids.shape[1]):
            step = model(input_ids=ids[:, at : at + 1], past_key_values=past, use_cache=True)
            past = step.past_key_values
            parts.append(step.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)
    shapes = [(layer.keys.shape[1], layer.keys.shape[3]) for layer in past.layers]
    assert shapes == kv_cache_shapes(model)
    assert shapes[0] == shapes[1] == (1, 1)


@pytest.mark.parametrize("name", ALL)
def test_dropping_layers_slices_the_per_layer_lists(name: str) -> None:
    dense = build(name)
    depth = len(layers_of(dense))
    kept = (0, depth - 1)
    shallow = copy.deepcopy(dense)
    structure = drop_layers(shallow, kept)
    assert structure.layers_kept == kept
    for key in adapter_for(dense).per_layer_keys:
        assert getattr(shallow.config, key) == [getattr(dense.config, key)[number] for number in kept]
    silent = copy.deepcopy(dense)
    for number in range(1, depth - 1):
        layers_of(silent)[number].forward = lambda hidden_states, *args, **kwargs: hidden_states
    torch.testing.assert_close(logits(shallow), logits(silent))
    assert len(layers_of(dense)) == depth, "the source must not change"
    kind = AutoModelForCausalLM if name in DECODERS else AutoModelForSequenceClassification
    fresh = kind.from_config(type(shallow.config).from_dict(shallow.config.to_dict())).eval()
    fresh.load_state_dict(shallow.state_dict())
    assert torch.equal(logits(fresh), logits(shallow))


def test_modernbert_layer_0_must_stay() -> None:
    with pytest.raises(UnsupportedError, match="layer 0 of a 'modernbert' model must stay"):
        drop_layers(build("modernbert"), (1, 2))


def test_grouped_query_heads_may_leave_in_equal_numbers() -> None:
    dense = build("llama")
    full = read_structure(dense).layers[0]
    thinner = LayerStructure((1, 4), (0, 2), full.ffn_kept)  # one of two query heads of the first and last group
    structure = Structure((0, 1, 2), (thinner, full, full))
    sliced = apply_structure(copy.deepcopy(dense), structure)
    torch.testing.assert_close(logits(sliced), logits(mask_out(dense, structure)), rtol=1e-4, atol=1e-5)
    unequal = Structure((0, 1, 2), (LayerStructure((0, 1, 4), (0, 2), full.ffn_kept), full, full))
    with pytest.raises(CheckpointError, match="equally many query heads"):
        apply_structure(dense, unequal)
    orphan = Structure((0, 1, 2), (LayerStructure((0, 1, 2), (0,), full.ffn_kept), full, full))
    with pytest.raises(CheckpointError, match="query head 2 is kept but its key/value head is not"):
        apply_structure(dense, orphan)


def test_an_unknown_architecture_names_the_known_ones() -> None:
    model = T5Model(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=10))
    with pytest.raises(UnsupportedError) as caught:
        read_structure(model)
    assert "models of type 't5' cannot be pruned" in str(caught.value)
    assert all(name in str(caught.value) for name in ("bert", "gpt2", "llama", "modernbert", "gemma3_text"))


def test_a_structure_that_does_not_fit_is_refused() -> None:
    model = build("bert")
    full = read_structure(model).layers[0]
    alien = LayerStructure(full.heads_kept, full.kv_heads_kept, (0, 40))
    with pytest.raises(CheckpointError, match=r"layer 0: the structure keeps FFN neurons .* there are 40"):
        apply_structure(model, Structure((0, 1, 2), (alien, full, full)))
    with pytest.raises(CheckpointError, match=r"layers \[1, 3\] cannot be kept of a model with layers 0 to 2"):
        drop_layers(model, (1, 3))


def test_removing_nothing_is_an_error() -> None:
    model = build("bert")
    with pytest.raises(StageError, match="the pruning removed nothing"):
        require_change(read_structure(model), read_structure(model))
    with pytest.raises(StageError, match="removed nothing"):
        drop_layers(model, (0, 1, 2))


def test_weights_that_do_not_fit_are_refused() -> None:
    pruned = apply_structure(build("bert"), uneven(build("bert")))
    weights = pruned.state_dict()
    weights.pop("bert.encoder.layer.0.output.dense.weight")
    with init_empty_weights():
        empty = AutoModelForSequenceClassification.from_config(pruned.config)
    with pytest.raises(CheckpointError, match="1 missing"):
        rebuild(empty, read_structure(pruned), weights)


def test_pruning_twice_composes() -> None:
    dense = build("bert")
    first = uniform(dense)
    once = apply_structure(copy.deepcopy(dense), first)
    full = read_structure(once).layers[0]
    later = Structure((0, 2), (LayerStructure((0, 2), (0, 2), (1, 3)), full))
    twice = apply_structure(once, later)
    direct = apply_structure(dense, first.then(later))
    assert first.then(later).layers[0].ffn_kept == (8, 10)
    assert first.then(later).layers[0].heads_kept == (1, 3)
    assert torch.equal(logits(twice), logits(direct))


def test_the_config_object_is_not_shared() -> None:
    one = build("gemma3_text")
    other = type(one)(one.config).eval()
    drop_layers(one, (0, 1))
    assert len(other.config.layer_types) == 4
    assert logits(other).shape == (27, 61)
