"""Uniform shapes: the best of all pairs, checked against trying them by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_architectures import build

from compressor.errors import UserError
from compressor.methods.choosing import Group, Option, OptionScores
from compressor.methods.structure import Structure, full_layer
from compressor.methods.uniform import choose_uniform, stock_head_counts

SIZES = {"attention": (0, 2, 4), "ffn": (0, 8, 16)}


def scores_of(losses: list[float]) -> OptionScores:
    """Two layers of 4 heads and 16 neurons; losses in the order layer, kind, size."""
    groups, at = [], iter(losses)
    for layer in (0, 1):
        for kind, sizes in SIZES.items():
            groups.append(Group(layer, kind, tuple(Option(tuple(range(size)), size, next(at)) for size in sizes)))
    return OptionScores(Structure((0, 1), (full_layer(4, 4, 16),) * 2), tuple(groups))


def cost(layer: int, kind: str, size: int, precision: str = "fp32", /) -> float:
    return float(size * (10 if kind == "attention" else 3))


@given(st.lists(st.floats(0, 1), min_size=12, max_size=12), st.sampled_from([90.0, 130.0, 180.0]))
def test_it_is_the_best_of_all_pairs(losses: list[float], budget: float) -> None:
    found = choose_uniform(scores_of(losses), cost, budget, fits=lambda n_heads: n_heads > 0)
    tried = {}
    for heads, ffn in product((1, 2), (1, 2)):
        spent = 2 * (10 * SIZES["attention"][heads] + 3 * SIZES["ffn"][ffn])
        if spent <= budget:
            tried[heads, ffn] = losses[heads] + losses[3 + ffn] + losses[6 + heads] + losses[9 + ffn]
    if not tried:
        pytest.fail("every budget here can be met")
    assert found.predicted_loss == pytest.approx(min(tried.values()))
    assert len(set(found.n_heads)) == len(set(found.ffn_widths)) == 1 and found.predicted_cost <= budget


@given(st.lists(st.floats(0, 1), min_size=24, max_size=24), st.sampled_from([60.0, 100.0, 150.0]))
def test_layers_of_one_shape_take_their_own_precisions(losses: list[float], budget: float) -> None:
    """Two precisions of every size; the second costs half."""
    narrow = scores_of(losses[12:])
    groups = tuple(
        replace(group, options=(*group.options, *(replace(one, precision="int8") for one in other.options)))
        for group, other in zip(scores_of(losses[:12]).groups, narrow.groups, strict=True)
    )

    def halved(layer: int, kind: str, size: int, precision: str = "fp32", /) -> float:
        return cost(layer, kind, size) / (2 if precision == "int8" else 1)

    scores = OptionScores(narrow.source, groups)
    found = choose_uniform(scores, halved, budget, fits=lambda n_heads: n_heads > 0)
    tried = []
    for heads, ffn in product((1, 2), (1, 2)):
        sizes = (heads, ffn, heads, ffn)
        for chosen in product((0, 3), repeat=4):
            options = [group.options[size + at] for group, size, at in zip(groups, sizes, chosen, strict=True)]
            pairs = list(zip(groups, options, strict=True))
            if sum(halved(g.layer, g.kind, one.size, one.precision) for g, one in pairs) <= budget:
                tried.append(sum(one.loss for one in options))
    assert found.predicted_loss == pytest.approx(min(tried)) and found.predicted_cost <= budget
    assert len(set(found.n_heads)) == len(set(found.ffn_widths)) == 1


def test_a_budget_that_no_uniform_shape_meets_names_the_least() -> None:
    with pytest.raises(
        UserError, match="a budget of 50 cannot be met by layers of one shape: the least of them costs 88"
    ):
        choose_uniform(scores_of([0.0] * 12), cost, 50.0, fits=lambda n_heads: n_heads > 0)
    with pytest.raises(UserError, match="no shape that is the same in all layers was scored"):
        choose_uniform(scores_of([0.0] * 12), cost, 50.0, fits=lambda n_heads: False)


def test_a_stock_config_decides_which_head_counts_there_are() -> None:
    counts = range(1, 7)
    assert [n for n in counts if stock_head_counts(build("bert"))(n)] == [4]  # its head size is width / heads
    assert [n for n in counts if stock_head_counts(build("llama"))(n)] == [1, 2, 3, 4, 6]  # 24 % heads == 0
    assert [n for n in counts if stock_head_counts(build("qwen3"))(n)] == [1, 2, 3, 4, 5, 6]
