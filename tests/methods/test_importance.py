"""Scores and solves against hand-worked numbers and against the definitions, written the slow way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.errors import StageError
from compressor.methods import importance as imp
from compressor.methods import recovery


def moments(x: Tensor) -> imp.Moments:
    x = x.double()
    return imp.Moments(x.T @ x, x.sum(dim=0), len(x))


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = torch.tensor([[1.0, 0.0, 2.0, 2.0], [1.0, 2.0, -2.0, 2.0]])
W = torch.tensor([[3.0, 1.0, 0.0, 1.0], [4.0, 0.0, 2.0, 1.0]])
PAIRS = imp.equal_groups(2, 2)


def test_scores_by_hand() -> None:
    m, single = moments(X), imp.single_columns(4)
    torch.testing.assert_close(imp.magnitude(W, single), torch.tensor([5.0, 1.0, 2.0, 2**0.5]).double())
    torch.testing.assert_close(imp.magnitude(W, PAIRS), torch.tensor([26.0, 6.0]).double().sqrt())
    # column norms of X: sqrt 2, 2, sqrt 8, sqrt 8; mean |W| per column: 3.5, .5, 1, 1
    wanda = torch.tensor([3.5 * 2**0.5, 1.0, 8**0.5, 8**0.5]).double()
    torch.testing.assert_close(imp.wanda(W, m, single), wanda)
    torch.testing.assert_close(imp.wanda(W, m, PAIRS), wanda.view(2, 2).mean(dim=1))
    # variances 0, 1, 4, 0; squared column norms of W: 25, 1, 4, 2
    torch.testing.assert_close(imp.fluctuation(W, m, single), torch.tensor([0.0, 1.0, 16.0, 0.0]).double())
    torch.testing.assert_close(imp.fluctuation(W, m, PAIRS), torch.tensor([1.0, 16.0]).double())
    torch.testing.assert_close(imp.activation_mean(m, single), torch.tensor([1.0, 2**0.5, 2.0, 2.0]).double())


def test_gradient_scores_by_hand() -> None:
    gradients = torch.tensor([[1.0, -2.0], [-1.0, -1.0]])
    assert imp.taylor(gradients).tolist() == [0.0, 3.0]
    assert imp.fisher(gradients).tolist() == [2.0, 5.0]


def test_block_influence_by_hand() -> None:
    before = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    after = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]])
    assert imp.block_influence(before, after, torch.tensor([[1, 1, 0]])) == pytest.approx(0.5)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), width=st.sampled_from([1, 3]))
def test_obs_equals_the_definition(seed: int, width: int) -> None:
    """Each step removes the unit whose removal, with the best repair of the rest, costs least on damped inputs."""
    x, weight = random(seed, 40, 6) @ random(seed + 1, 6, 6), random(seed + 2, 4, 6)
    groups = imp.equal_groups(6 // width, width)
    m = moments(x)
    hessian = imp.damped(2 * m.gram / m.n_tokens, 1e-2)
    found = imp.obs_removal_order(weight, m, groups, block=1).tolist()
    left = list(range(len(groups)))
    for removed in found[:-1]:
        costs = {}
        for unit in left:
            keep = torch.cat([groups[other] for other in left if other != unit])
            repaired = torch.linalg.solve(hessian[keep][:, keep], hessian[keep] @ weight.T).T
            error = weight.clone()
            error[:, keep] -= repaired
            costs[unit] = float((error @ hessian * error).sum())
        assert costs[removed] == pytest.approx(min(costs.values()), rel=1e-6)
        left.remove(removed)


def test_obs_in_blocks_removes_every_unit_once() -> None:
    x, weight = random(0, 300, 100), random(1, 8, 100)
    order = imp.obs_removal_order(weight, moments(x), imp.single_columns(100), block=32)
    assert sorted(order.tolist()) == list(range(100))
    scores = imp.obs_scores(weight, moments(x), imp.single_columns(100), block=32)
    assert imp.keep_best(scores, 36) == tuple(sorted(order[-36:].tolist()))


def test_obs_sees_a_duplicate_that_magnitude_does_not() -> None:
    x = random(3, 200, 4)
    x[:, 1] = x[:, 0]  # unit 1 repeats unit 0
    weight = torch.tensor([[3.0, 3.0, 1.0, 1.0]])
    assert imp.obs_removal_order(weight, moments(x), imp.single_columns(4), block=1)[0] in (0, 1)
    assert imp.magnitude(weight, imp.single_columns(4)).argmin() in (2, 3)


def test_dead_activations_are_refused() -> None:
    with pytest.raises(StageError, match="the calibration activations are unusable: their mean square is 0"):
        imp.obs_removal_order(W, moments(torch.zeros(5, 4)), imp.single_columns(4))


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), with_bias=st.booleans())
def test_ridge_equals_the_formula(seed: int, with_bias: bool) -> None:
    x, y, weight = random(seed, 50, 5) + 1.0, random(seed + 1, 50, 3), random(seed + 2, 3, 5)
    bias = random(seed + 3, 3) if with_bias else None
    target = recovery.Target(x.T @ y, y.sum(dim=0))
    new, new_bias = recovery.ridge(moments(x), target, weight, bias, damping=0.05)
    centred, wanted = (x - x.mean(dim=0), y - y.mean(dim=0)) if with_bias else (x, y)
    gram = centred.T @ centred
    eye = 0.05 * gram.diagonal().mean() * torch.eye(5, dtype=torch.float64)
    old = weight.T
    expected = old + torch.linalg.inv(gram + eye) @ centred.T @ (wanted - centred @ old)
    torch.testing.assert_close(new, expected.T)
    if with_bias:
        torch.testing.assert_close(new_bias, y.mean(dim=0) - x.mean(dim=0) @ expected)
    else:
        assert new_bias is None


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), with_bias=st.booleans())
def test_ridge_with_everything_kept_changes_nothing(seed: int, with_bias: bool) -> None:
    x, weight = random(seed, 30, 6), random(seed + 1, 4, 6)
    bias = random(seed + 2, 4) if with_bias else None
    target = recovery.dense_target(moments(x), weight, bias)
    new, new_bias = recovery.ridge(moments(x), target, weight, bias)
    torch.testing.assert_close(new, weight)
    if bias is not None:
        torch.testing.assert_close(new_bias, bias)


def test_ridge_beats_leaving_the_weights_alone() -> None:
    x, weight, bias = random(0, 500, 8) @ random(1, 8, 8) + 0.5, random(2, 6, 8), random(3, 6)
    kept = torch.tensor([0, 2, 3, 5])
    y = x @ weight.T + bias
    full = recovery.dense_target(moments(x), weight, bias)
    torch.testing.assert_close(full.cross, x.T @ y)
    target = recovery.Target(full.cross[kept], full.total)
    new, new_bias = recovery.ridge(moments(x).select(kept), target, weight[:, kept], bias)
    removed = torch.tensor([1, 4, 6, 7])
    flap = recovery.mean_bias(x.mean(dim=0), removed, weight, bias)

    def error(w: Tensor, b: Tensor) -> float:
        return float((x[:, kept] @ w.T + b - y).square().mean())

    assert error(new, new_bias) < error(weight[:, kept], flap) < error(weight[:, kept], bias)


def test_ridge_without_inputs_leaves_the_mean_in_the_bias() -> None:
    y = random(0, 20, 3)
    empty = moments(torch.zeros(20, 0))
    new, bias = recovery.ridge(
        empty, recovery.Target(torch.zeros(0, 3).double(), y.sum(dim=0)), torch.zeros(3, 0), y[0]
    )
    assert new.shape == (3, 0)
    torch.testing.assert_close(bias, y.mean(dim=0))


def test_unit_scales_equal_least_squares() -> None:
    x, weight, bias = random(0, 80, 6), random(1, 5, 6), random(2, 5)
    groups = imp.equal_groups(3, 2)
    y = torch.stack([x[:, g] @ weight[:, g].T for g in groups], dim=-1) @ torch.tensor([0.5, 2.0, -1.0]).double() + bias
    scales = recovery.unit_scales(moments(x), recovery.Target(x.T @ y, y.sum(dim=0)), weight, groups, bias)
    torch.testing.assert_close(scales, torch.tensor([0.5, 2.0, -1.0]).double())
    wild = recovery.Target(x.T @ (40 * y), 40 * y.sum(dim=0))
    with pytest.raises(StageError, match=r"mask tuning asks to scale a unit by .*, beyond 10"):
        recovery.unit_scales(moments(x), wild, weight, groups, bias)
