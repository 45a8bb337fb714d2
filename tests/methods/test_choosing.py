"""Choosing structures: scores are what they say, budgets hold, and a free sublayer is given up first."""

from __future__ import annotations

import copy
from itertools import product

import numpy as np
import pytest
import torch
from tiny_architectures import build, inputs, logits
from transformers import BertModel, PreTrainedModel

from compressor.errors import DataError, UserError
from compressor.methods.choosing import (
    Group,
    Option,
    OptionScores,
    choose,
    choose_structure,
    dense_cost,
    in_order,
    macs_cost,
    parameter_cost,
    score_options,
)
from compressor.methods.losses import logit_kl
from compressor.methods.pruning import prune_model
from compressor.methods.structure import Structure, full_layer
from compressor.methods.surgery import apply_structure, layers_of, n_parameters, read_structure
from compressor.methods.trying import Trial, fake_int8

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


def test_int8_options_stand_beside_fp32_and_change_what_is_chosen() -> None:
    model = build("gpt2")
    before, weights = logits(model), copy.deepcopy(model.state_dict())
    result = scored(model, precisions=("fp32", "int8"))
    assert torch.equal(logits(model), before)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    for group in result.groups:
        fp32, int8 = ([o for o in group.options if o.precision == name] for name in ("fp32", "int8"))
        assert [o.kept for o in fp32] == [o.kept for o in int8]
        assert fp32[-1].loss == 0.0 < int8[-1].loss < fp32[0].loss

    def cost(layer: int, kind: str, size: int, precision: str = "fp32", /) -> float:
        return size * (1.0 if precision == "fp32" else 0.3)

    choice = choose(result, cost, 0.4 * dense_cost(result.source, cost))
    assert "int8" in {precision for layer in choice.precisions for precision in layer.values()}
    only = choose(scored(model), cost, 0.4 * dense_cost(result.source, cost))
    assert choice.predicted_loss < only.predicted_loss
    assert choice.predicted_cost <= 0.4 * choice.dense_cost


def test_rounded_weights_are_a_step_away_at_most() -> None:
    weight = torch.randn(5, 40)
    weight[2] = 0.0
    rounded = fake_int8(weight)
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((rounded - weight).abs() <= step / 2 + 1e-7).all())
    assert torch.equal(fake_int8(rounded), rounded) and torch.equal(rounded[2], weight[2])


def test_the_true_loss_of_a_choice_is_the_loss_of_all_its_options_at_once() -> None:
    dense = build("bert")
    trial = Trial(
        dense, BATCHES, score_batches=JUDGED, recovery="none", importance="magnitude", levels=(0.5, 1), ffn_granule=8
    )
    halves = [(place.best(place.counts[0]), "fp32") for place in trial.places]
    full = [(place.best(place.counts[-1]), "fp32") for place in trial.places]
    assert trial.loss_of_all(full) == pytest.approx(0.0, abs=1e-9)  # type: ignore[arg-type]
    kept = {(place.layer, place.kind): units for place, (units, _) in zip(trial.places, halves, strict=True)}
    layers = tuple(
        type(layer)(kept[number, "attention"], kept[number, "attention"], kept[number, "ffn"])
        for number, layer in enumerate(trial.source.layers)
    )
    pruned = apply_structure(copy.deepcopy(dense), Structure(trial.source.layers_kept, layers))
    expected = logit_kl(logits(pruned, JUDGED[0]), logits(dense, JUDGED[0]))
    assert trial.loss_of_all(halves) == pytest.approx(expected.item(), rel=1e-3)  # type: ignore[arg-type]


def test_further_limits_are_kept_where_the_budget_alone_would_not() -> None:
    result = scored(build("bert"))
    count = parameter_cost(build("bert"))

    def heads_only(layer: int, kind: str, size: int, precision: str = "fp32", /) -> float:
        return float(size) if kind == "attention" else 0.0

    budget = 0.7 * dense_cost(result.source, count)
    free = choose(result, count, budget)
    most = sum(free.n_heads) - 2
    limited = choose(result, count, budget, limits=[(heads_only, most)])
    assert sum(limited.n_heads) <= most < sum(free.n_heads)
    assert limited.predicted_cost <= budget and limited.predicted_loss >= free.predicted_loss
    with pytest.raises(UserError, match=r"no choice was found that costs at most .* and keeps the limits -1"):
        choose(result, count, budget, limits=[(heads_only, -1.0)])


def test_options_in_order_lose_less_the_dearer_they_are_and_the_best_choice_stays() -> None:
    """Swaps go one option up or down, which must mean more or less of the first cost."""
    rng = np.random.default_rng(0)
    groups = []
    for layer, kind in product((0, 1), ("attention", "ffn")):
        options = [Option(tuple(range(size)), size, float(rng.uniform()), precision)
                   for precision in ("fp32", "int8") for size in (0, 2, 4)]  # fmt: skip
        groups.append(Group(layer, kind, tuple(options)))
    scores = OptionScores(Structure((0, 1), (full_layer(4, 4, 4),) * 2), tuple(groups))

    def cost(layer: int, kind: str, size: int, precision: str = "fp32", /) -> float:
        return size * (1.0 if precision == "int8" else 1.7) + (0.3 if kind == "ffn" else 0.0)

    ordered = in_order(scores, [cost])
    for group, whole in zip(ordered.groups, scores.groups, strict=True):
        spent = [cost(group.layer, group.kind, one.size, one.precision) for one in group.options]
        losses = [one.loss for one in group.options]
        assert spent == sorted(set(spent)) and losses == sorted(set(losses), reverse=True)
        assert set(group.options) <= set(whole.options) and min(losses) == min(one.loss for one in whole.options)
    for budget in (6.0, 12.0, 20.0, 30.0):
        assert choose(ordered, cost, budget).predicted_loss == choose(scores, cost, budget).predicted_loss
    # what is beaten in one cost alone stays where a second cost is counted too
    both = in_order(scores, [cost, lambda layer, kind, size, precision="fp32", /: -cost(layer, kind, size, precision)])
    assert sum(len(group.options) for group in both.groups) > sum(len(group.options) for group in ordered.groups)
