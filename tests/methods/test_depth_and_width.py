"""Which layers, sublayers and channels leave: those that do least, and the whole is put together from the steps."""

from __future__ import annotations

import copy

import pytest
import torch
from test_pruning import BATCHES
from tiny_architectures import CONFIGS, build, logits
from transformers import AutoModel, PreTrainedModel

from compressor.errors import DataError, StageError, UserError
from compressor.methods.depth import layer_influences, layers_to_keep, sublayers_to_keep
from compressor.methods.fractions import Fractions, prune_to_fractions
from compressor.methods.structure import Structure
from compressor.methods.surgery import adapter_for, apply_structure, hidden_width, layers_of, read_structure, rebuild
from compressor.methods.surgery.slicing import linear_at
from compressor.methods.width import channel_scores, prune_hidden

FAMILIES = ["bert", "gpt2", "llama", "modernbert", "gemma3_text"]


@torch.no_grad()
def silence(model: torch.nn.Module, number: int, kinds: tuple[str, ...] = ("attention_out", "ffn_out")) -> None:
    """Make a layer (or one sublayer of it) put nothing into the residual stream."""
    for kind in kinds:
        linear = linear_at(layers_of(model)[number], getattr(adapter_for(model), kind))  # type: ignore[arg-type]
        linear.weight.zero_()
        if linear.bias is not None:
            linear.bias.zero_()


@pytest.mark.parametrize("by", ["kl", "block_influence"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "modernbert"])
def test_a_layer_that_does_nothing_leaves_first(name: str, by: str) -> None:
    model = build(name)
    silence(model, 1)
    depth = len(layers_of(model))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kept = layers_to_keep(model, BATCHES, depth - 1, by)  # type: ignore[arg-type]
    assert kept == tuple(number for number in range(depth) if number != 1)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    if by == "block_influence":
        influences = layer_influences(model, BATCHES)
        assert influences[1] == pytest.approx(0.0, abs=1e-6) and min(influences[0], *influences[2:]) > 1e-3


@pytest.mark.parametrize("by", ["kl", "block_influence"])
def test_modernberts_first_layer_is_never_chosen_to_leave(by: str) -> None:
    model = build("modernbert")
    silence(model, 0)
    assert 0 in layers_to_keep(model, BATCHES, 2, by)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="1 to 4"):
        layers_to_keep(model, BATCHES, 0, by)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["attention", "ffn"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_sublayer_that_does_nothing_leaves_first(name: str, kind: str) -> None:
    model = build(name)
    silence(model, 2, (f"{kind}_out",))
    depth = len(layers_of(model))
    kept = sublayers_to_keep(model, BATCHES, kind, depth - 1)
    assert kept == tuple(number for number in range(depth) if number != 2)


def test_greedy_removal_asks_again_after_each() -> None:
    """Two equal halves of one sublayer: either may leave, but not both."""
    model = build("llama")
    told: list[tuple[int, int]] = []
    assert len(layers_to_keep(model, BATCHES, 1, "kl", lambda done, of: told.append((done, of)))) == 1
    assert told == [(1, 2), (2, 2)]


def test_an_embedder_without_a_head_is_judged_by_its_pooled_states() -> None:
    model = AutoModel.from_config(CONFIGS["bert"]()).eval()
    silence(model, 1)
    with torch.no_grad():
        for norm in (layers_of(model)[1].attention.output.LayerNorm, layers_of(model)[1].output.LayerNorm):
            norm.weight.fill_(1.0)
            norm.bias.zero_()
    assert layers_to_keep(model, BATCHES, 2) == (0, 2)


def test_keeping_all_or_none_is_an_error() -> None:
    model = build("bert")
    with pytest.raises(StageError, match="nothing would be removed: all 3 layers are kept"):
        layers_to_keep(model, BATCHES, 3)
    with pytest.raises(UserError, match="0 of 3 ffn sublayers cannot be kept"):
        sublayers_to_keep(model, BATCHES, "ffn", 0)
    empty = [{**BATCHES[0], "attention_mask": torch.zeros_like(BATCHES[0]["attention_mask"])}]
    with pytest.raises(DataError, match="only padding"):
        layers_to_keep(model, empty, 2)
    with pytest.raises(DataError, match="no real token"):
        channel_scores(model, empty)
    with pytest.raises(UserError, match="24 of 24 hidden channels cannot be kept"):
        prune_hidden(model, BATCHES, 24)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_channels_that_carry_nothing_leave_first(name: str) -> None:
    model = build(name)
    silent = [3, 10, 17, 20]
    for module in model.modules():
        if "norm" in type(module).__name__.lower() and module.weight.shape == (24,):
            module.weight[silent] = -1.0 if name == "gemma3_text" else 0.0
            if getattr(module, "bias", None) is not None:
                module.bias[silent] = 0.0
    structure = prune_hidden(model, BATCHES, 20)
    assert structure.hidden_kept is not None
    assert set(range(24)) - set(structure.hidden_kept) == set(silent)
    assert hidden_width(model) == 20


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text"])
@torch.no_grad()
def test_norms_over_fewer_channels_keep_their_scale(name: str) -> None:
    """Seen behind the first layer's norm, which reads the same embeddings before and after."""
    dense = build(name)
    dense.get_input_embeddings().weight[:, ::2] *= 6  # as in trained models, some channels are far larger than others
    corrected = copy.deepcopy(dense)
    structure = prune_hidden(corrected, BATCHES, 12)
    bare = apply_structure(copy.deepcopy(dense), structure)
    kept = list(structure.hidden_kept or ())

    def scale(model: PreTrainedModel) -> float:
        seen: list[torch.Tensor] = []
        norm = layers_of(model)[0].get_submodule("ln_1" if name == "gpt2" else "input_layernorm")
        handle = norm.register_forward_hook(lambda module, args, output: seen.append(output))
        for batch in BATCHES:
            logits(model, batch)
        handle.remove()
        flat = torch.cat([one.flatten(0, 1) for one in seen])
        if flat.shape[1] == 24:
            flat = flat[:, kept]
        return float((flat - flat.mean(dim=0)).square().mean().sqrt())

    wanted = scale(dense)
    assert abs(scale(corrected) / wanted - 1) < 0.5 * abs(scale(bare) / wanted - 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_all_steps_together_and_again_on_the_result(name: str) -> None:
    model = build(name)
    steps: list[str] = []
    keep = Fractions(layers=0.75, attention_sublayers=0.7, hidden=0.75, heads=0.5, ffn=0.5)
    pruned, structure = prune_to_fractions(
        model, BATCHES, keep, recovery="none", granule=2, on_progress=lambda what, done, of: steps.append(what)
    )
    assert {"choose layers", "choose attention sublayers", "prune"} <= set(steps)
    now = read_structure(pruned)
    assert now.layers == structure.reload().layers and hidden_width(pruned) == 18
    assert sum(layer.n_heads == 0 for layer in now.layers) == 1
    fresh = type(model)(copy.deepcopy(pruned.config))
    assert torch.equal(logits(rebuild(fresh, structure, pruned.state_dict())), logits(pruned))
    again, second = prune_to_fractions(pruned, BATCHES, Fractions(ffn=0.5, hidden=0.5), recovery="none", granule=2)
    both = structure.then(second)
    assert both.hidden_kept is not None and len(both.hidden_kept) == 8 == hidden_width(again)
    assert Structure.from_json(both.to_json()) == both
    fresh = type(model)(copy.deepcopy(again.config))
    assert torch.equal(logits(rebuild(fresh, both, again.state_dict())), logits(again))


def test_fractions_that_round_to_everything_are_an_error() -> None:
    with pytest.raises(StageError, match="rounded to whole units, all that is there is kept"):
        prune_to_fractions(build("bert"), BATCHES, Fractions(ffn=0.99, hidden=0.99, layers=0.95), granule=8)
