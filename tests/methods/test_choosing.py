"""Choosing structures: scores are what they say, budgets hold, and a free sublayer is given up first."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_architectures import build, inputs, logits
from transformers import BertModel, PreTrainedModel

from compressor.errors import DataError, UserError
from compressor.methods.choosing import (
    OptionScores,
    choose,
    choose_structure,
    dense_cost,
    macs_cost,
    parameter_cost,
    score_options,
)
from compressor.methods.losses import logit_kl
from compressor.methods.pruning import prune_model
from compressor.methods.structure import Structure
from compressor.methods.surgery import apply_structure, layers_of, n_parameters, read_structure

BATCHES = [inputs(seed=seed, batch=6) for seed in range(2, 6)]
JUDGED = [inputs(seed=20, batch=4)]


def scored(model: PreTrainedModel, **asked: object) -> OptionScores:
    asked = {"levels": (0, 0.5, 1), "ffn_granule": 8, "score_batches": JUDGED, **asked}
    return score_options(model, BATCHES, **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "modernbert", "gemma3_text", "distilbert"])
def test_scoring_leaves_the_model_as_it_was(name: str) -> None:
    model = build(name)
    before, weights = logits(model), copy.deepcopy(model.state_dict())
    result = scored(model)
    assert torch.equal(logits(model), before)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert len(result.groups) == 2 * len(layers_of(model))
    for group in result.groups:
        losses = [option.loss for option in group.options]
        assert losses == sorted(losses, reverse=True) and losses[-1] == 0.0 < losses[0]


def test_a_score_is_the_kl_of_the_model_with_that_sublayer_replaced() -> None:
    dense = build("bert")
    result = scored(dense, recovery="none", levels=(0.5, 1))
    group = next(g for g in result.groups if (g.layer, g.kind) == (1, "ffn"))
    full = read_structure(dense)
    layers = list(full.layers)
    layers[1] = type(layers[1])(layers[1].heads_kept, layers[1].kv_heads_kept, group.options[0].kept)
    replaced = apply_structure(copy.deepcopy(dense), Structure(full.layers_kept, tuple(layers)))
    expected = logit_kl(logits(replaced, JUDGED[0]), logits(dense, JUDGED[0]))
    assert group.options[0].loss == pytest.approx(expected.item(), rel=1e-3)


def test_a_sublayer_that_does_nothing_is_given_up_first() -> None:
    model = build("gpt2")
    with torch.no_grad():
        layers_of(model)[1].mlp.c_proj.weight.zero_()
    choice = choose_structure(model, BATCHES, budget_ratio=0.8, score_batches=JUDGED, levels=(0, 0.5, 1), ffn_granule=8)
    assert choice.ffn_widths[1] == 0
    assert choice.structure.layers[1].skip == {"ffn"}
    assert choice.predicted_cost <= 0.8 * choice.dense_cost


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "modernbert"])
def test_the_parameter_cost_is_the_parameters(name: str) -> None:
    model = build(name)
    cost, full = parameter_cost(model), read_structure(model)
    removed = dense_cost(full, cost)
    before = sum(p.numel() for p in layers_of(model).parameters() if p.ndim == 2)
    assert removed == before
    choice = choose(scored(model), cost, 0.6 * removed)
    pruned, structure = prune_model(model, BATCHES, heads=choice.n_heads, ffn=choice.ffn_widths, tokens_per_column=1)
    assert sum(p.numel() for p in layers_of(pruned).parameters() if p.ndim == 2) == choice.predicted_cost
    assert structure.reload() == choice.structure.reload()
    assert n_parameters(pruned) < 0.9 * removed + n_parameters(model)


def test_macs_add_the_products_of_attention() -> None:
    model = build("llama")
    heads, kv, size, hidden = 6, 3, 8, 24
    assert macs_cost(model, 100)(0, "attention", 6) == (2 * heads + 2 * kv) * size * hidden + 2 * heads * size * 100
    assert macs_cost(model, 100)(0, "ffn", 40) == 3 * 24 * 40
    assert macs_cost(model)(0, "attention", 0) == 0.0


def test_budgets_that_cannot_be_met_name_the_least() -> None:
    result = scored(build("bert"), levels=(0.5, 1))
    cost = parameter_cost(build("bert"))
    full = dense_cost(result.source, cost, fixed_cost=1000.0)
    with pytest.raises(UserError, match=r"cannot be met: the least that any choice costs is \d+ \(0\.\d+ of dense\)"):
        choose(result, cost, 0.1 * full, fixed_cost=1000.0)
    for bad in (0.0, -0.5, 1.0, 60.0):
        with pytest.raises(UserError, match=f"a budget ratio must lie between 0 and 1, not {bad}"):
            choose_structure(build("bert"), BATCHES, budget_ratio=bad)
    with pytest.raises(UserError, match="a budget must be positive, not -1"):
        choose(result, cost, -1.0)


def test_embedders_are_scored_by_cosine() -> None:
    model = BertModel(build("bert").config).eval()
    result = scored(model, score="cosine")
    assert all(0 <= option.loss < 2 for group in result.groups for option in group.options)
    with pytest.raises(DataError, match="the kl score needs logits, which this model lacks"):
        scored(model)
    with pytest.raises(DataError, match="the cosine score needs a model without a task head"):
        scored(build("bert"), score="cosine")


def test_one_logit_has_no_kl() -> None:
    config = copy.deepcopy(build("bert").config)
    config.num_labels = 1
    model = type(build("bert"))(config).eval()
    with pytest.raises(DataError, match="the kl score of a single logit is always 0"):
        scored(model)
    assert max(option.loss for group in scored(model, score="mse").groups for option in group.options) > 0


def test_progress_counts_every_option() -> None:
    seen: list[tuple[int, int]] = []
    scored(build("bert"), on_progress=lambda done, of: seen.append((done, of)))
    assert seen == [(number, 18) for number in range(1, 19)]
