"""Pruning layer by layer: what is removed is really gone, what is kept works, and bad input gets one clear error."""

from __future__ import annotations

import copy

import pytest
import torch
from test_surgery import mask_out
from tiny_architectures import CONFIGS, build, inputs, logits
from torch import Tensor
from transformers import PreTrainedModel

from compressor.errors import DataError, StageError, UnsupportedError, UserError
from compressor.methods.calibration import collect_moments, mask_gradients, trace_layers
from compressor.methods.pruning import kept_counts, prune_model
from compressor.methods.structure import Structure
from compressor.methods.surgery import adapter_for, apply_structure, layers_of, n_parameters, read_structure, rebuild

ALL = sorted(CONFIGS)
BATCHES = [inputs(seed=seed, batch=6) for seed in range(2, 8)]


def prune(
    model: PreTrainedModel, batches: list[dict[str, Tensor]] = BATCHES, **asked: object
) -> tuple[PreTrainedModel, Structure]:
    return prune_model(model, batches, **{"ffn_granule": 8, "tokens_per_column": 1, "block": 8, **asked})  # type: ignore[arg-type]


def distance(model: PreTrainedModel, dense: PreTrainedModel) -> float:
    return sum(float((logits(model, b) - logits(dense, b)).square().mean()) for b in BATCHES)


@pytest.mark.parametrize("name", ALL)
def test_pruning_keeps_what_it_says_and_ridge_repairs(name: str) -> None:
    dense = build(name)
    bare, structure = prune(copy.deepcopy(dense), heads=0.5, ffn=0.6, recovery="none")
    masked = mask_out(dense, structure)
    torch.testing.assert_close(logits(bare), logits(masked), rtol=1e-4, atol=1e-5)
    full = read_structure(dense).layers[0]
    for layer, now in zip(structure.layers, read_structure(bare).layers, strict=True):
        assert layer.reload() == now
        assert (now.n_kv_heads, now.ffn_width) == (round(full.n_kv_heads * 0.5), round(full.ffn_width * 0.6 / 8) * 8)
        assert now.n_heads == now.n_kv_heads * full.n_heads // full.n_kv_heads
    repaired, _ = prune(copy.deepcopy(dense), heads=0.5, ffn=0.6)
    assert distance(repaired, dense) < distance(bare, dense)
    assert n_parameters(repaired) == n_parameters(bare) < n_parameters(dense)
    assert torch.equal(
        logits(rebuild(type(dense)(repaired.config), structure, repaired.state_dict())), logits(repaired)
    )


@pytest.mark.parametrize(
    "importance", ["magnitude", "wanda", "fluctuation", "activation_mean", "block_obs", "taylor", "fisher"]
)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_every_importance_finds_units_that_do_nothing(name: str, importance: str) -> None:
    dense = build(name)
    adapter = adapter_for(dense)
    dead = {0: [1, 5, 30], 1: [2, 3, 4], 2: [0, 38, 39]}
    with torch.no_grad():
        for number, layer in enumerate(layers_of(dense)):
            layer.get_submodule(adapter.ffn_out).weight[:, dead[number]] = 0.0
    before = logits(dense)
    labelled = [{**b, "labels": b["input_ids"] if name == "llama" else b["input_ids"][:, 0] % 3} for b in BATCHES]
    pruned, structure = prune(dense, labelled, ffn=[37, 37, 37], importance=importance, recovery="none", block=1)
    if importance == "activation_mean":  # looks at the activations alone, not at what is done with them
        return
    torch.testing.assert_close(logits(pruned), before, rtol=1e-4, atol=1e-5)
    for number, layer in enumerate(structure.layers):
        assert set(range(40)) - set(layer.ffn_kept) == set(dead[number])


def test_recoveries_order_as_they_should() -> None:
    dense = build("bert")
    loss = {
        recovery: distance(prune(copy.deepcopy(dense), ffn=0.6, recovery=recovery)[0], dense)
        for recovery in ("none", "bias", "ridge")
    }
    assert loss["ridge"] < loss["bias"] < loss["none"]


def test_scales_multiply_whole_units() -> None:
    dense = build("bert")
    scaled, structure = prune(copy.deepcopy(dense), ffn=0.6, recovery="scales")
    plain = apply_structure(copy.deepcopy(dense), structure)
    first, second = (layers_of(m)[0].output.dense.weight for m in (scaled, plain))
    ratio = first / second
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "gemma3_text"])
def test_whole_sublayers_can_leave(name: str) -> None:
    dense = build(name)
    full = read_structure(dense).layers
    heads = [0, *(layer.n_heads for layer in full[1:])]
    ffn = [*(layer.ffn_width for layer in full[:-1]), 0]
    pruned, structure = prune(copy.deepcopy(dense), heads=heads, ffn=ffn)
    assert structure.layers[0].skip == {"attention"} and structure.layers[-1].skip == {"ffn"}
    assert torch.isfinite(logits(pruned)).all()
    again, second = prune(pruned, heads=0.5)
    assert read_structure(again).layers[0].n_heads == 0
    assert structure.then(second).layers[1].n_heads < full[1].n_heads


def test_a_skipped_sublayer_leaves_its_mean_in_the_bias() -> None:
    dense = build("gpt2")
    pruned, _ = prune(copy.deepcopy(dense), ffn=[40 * 0 + 96, 96, 0])
    silent, _ = prune(copy.deepcopy(dense), ffn=[96, 96, 0], recovery="none")
    assert distance(pruned, dense) < distance(silent, dense)


def test_padding_and_batching_do_not_change_the_calibration() -> None:
    model = build("bert")
    batch = inputs(batch=3)
    rows = [
        {key: value[i : i + 1, : int(batch["attention_mask"][i].sum())] for key, value in batch.items()}
        for i in range(3)
    ]
    for together, apart in zip(collect_moments(model, [batch]), collect_moments(model, rows), strict=True):
        for kind in ("attention", "ffn"):
            assert together[kind].n_tokens == apart[kind].n_tokens == 27
            torch.testing.assert_close(together[kind].gram, apart[kind].gram, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(together[kind].total, apart[kind].total, rtol=1e-4, atol=1e-4)


def test_moments_equal_the_activations_themselves() -> None:
    model, seen = build("llama"), []
    handle = layers_of(model)[1].mlp.down_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = inputs()
    logits(model, batch)
    handle.remove()
    x = seen[0][batch["attention_mask"].bool()].double()
    found = collect_moments(model, [batch])[1]["ffn"]
    torch.testing.assert_close(found.gram, x.T @ x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.total, x.sum(dim=0), rtol=1e-4, atol=1e-4)


def test_mask_gradients_equal_finite_differences() -> None:
    model = build("bert").double()
    batch = {**inputs(), "labels": torch.tensor([0, 1, 2])}
    gradient = mask_gradients(model, [batch])[2]["ffn"][0]
    assert all(parameter.grad is None for parameter in model.parameters())
    weight = layers_of(model)[2].output.dense.weight
    with torch.no_grad():
        old = weight[:, 7].clone()
        above, below = (
            model(**batch).loss.item()
            for factor in (1 + 1e-5, 1 - 1e-5)
            if weight[:, 7].copy_(old * factor) is not None
        )
        weight[:, 7] = old
    assert gradient[7].item() == pytest.approx((above - below) / 2e-5, rel=1e-4)


def test_nothing_to_remove_is_an_error() -> None:
    with pytest.raises(StageError, match="nothing would be removed"):
        prune(build("bert"), heads=1.0, ffn=1.0)
    with pytest.raises(StageError, match="nothing would be removed"):
        prune(build("bert"))
    with pytest.raises(StageError, match="or a smaller FFN granule on a small model"):
        prune(build("bert"), ffn=0.5, ffn_granule=64)


def test_too_little_text_says_how_much_is_needed() -> None:
    with pytest.raises(
        DataError, match=r"27 calibration tokens are too few to refit 24 columns: 192 are needed \(8 for"
    ):
        prune(build("bert"), [inputs()], ffn=0.6, tokens_per_column=8)


def test_only_padding_is_an_error() -> None:
    empty = inputs()
    empty["attention_mask"] = torch.zeros_like(empty["attention_mask"])
    with pytest.raises(DataError, match="the calibration data holds no real token, only padding"):
        trace_layers(build("distilbert"), [empty])
    with pytest.raises(DataError, match="not even a batch"):
        prune(build("bert"), [], ffn=0.5)


def test_counts_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match=r"a kept fraction must lie between 0 and 1, not 1\.5"):
        prune(build("bert"), ffn=1.5)
    with pytest.raises(UserError, match="2 counts of heads for 3 layers"):
        prune(build("bert"), heads=[1, 2])
    with pytest.raises(UserError, match="layer 1 has 40 FFN neurons and cannot keep 41"):
        prune(build("bert"), ffn=[40, 41, 40])
    with pytest.raises(UserError, match="layer 0 cannot keep 3 query heads: they leave in groups of 2"):
        prune(build("llama"), heads=[3, 6, 6])
    with pytest.raises(UserError, match="there is no importance 'luck'"):
        prune(build("bert"), ffn=0.5, importance="luck")


def test_bias_recovery_needs_a_bias() -> None:
    with pytest.raises(UnsupportedError, match="recovery by bias needs output projections with a bias"):
        prune(build("llama"), ffn=0.6, recovery="bias")


def test_gradients_need_labels() -> None:
    with pytest.raises(DataError, match=r"gradient importance \(taylor, fisher\) needs labels"):
        prune(build("bert"), ffn=0.6, importance="fisher")


def test_fractions_round_to_the_granule() -> None:
    structure = read_structure(build("bert"))
    assert kept_counts(structure, ffn=0.5, ffn_granule=16)[0] == {"ffn": 16}  # 20 lies nearest to 16
    assert kept_counts(structure, ffn=0.05, ffn_granule=16)[0] == {"ffn": 16}  # never by accident to nothing
    assert kept_counts(structure, ffn=0.0, heads=0.3)[0] == {"ffn": 0, "attention": 1}


def test_the_model_returns_to_its_mode() -> None:
    model = build("gpt2").train()
    had_cache = model.config.use_cache
    prune(model, ffn=0.6)
    assert model.training and model.config.use_cache == had_cache
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
