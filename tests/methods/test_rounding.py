"""Rounding to a grid: to the nearest, by GPTQ, and finding a grid again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.methods.rounding import find_grid, gptq, output_error, round_to_nearest


def correlated_inputs(n_tokens: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(n_tokens, width, generator=generator) @ mixing


def test_a_block_is_rounded_as_worked_out_by_hand() -> None:
    weight = torch.tensor([[-8.0], [3.4], [0.6], [7.9]])
    grid = round_to_nearest(weight, bits=4, block_size=4)
    assert grid.scales.tolist() == [[1.0]]
    assert grid.codes.flatten().tolist() == [0, 11, 9, 15]
    assert grid.weights().flatten().tolist() == [-8.0, 3.0, 1.0, 7.0]


def test_zeros_stay_zeros() -> None:
    grid = round_to_nearest(torch.zeros(8, 3), bits=4, block_size=4)
    assert not grid.weights().any() and grid.scales.min() > 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.sampled_from([4, 8]), width=st.sampled_from([32, 48, 64]))
def test_gptq_changes_the_outputs_less_than_rounding_to_the_nearest(seed: int, bits: int, width: int) -> None:
    inputs = correlated_inputs(400, width, seed)
    weight = torch.randn(width, 8, generator=torch.Generator().manual_seed(seed + 1))
    gram = inputs.T @ inputs
    nearest = output_error(weight, round_to_nearest(weight, bits=bits, block_size=32).weights(), gram)
    solved = gptq(weight, gram, bits=bits, block_size=32)
    assert output_error(weight, solved.weights(), gram) < nearest
    assert int(solved.codes.max()) < 2**bits


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    inputs = correlated_inputs(100, 32, 3)
    inputs[:, 4] = 0.0
    grid = gptq(torch.randn(32, 5), inputs.T @ inputs, bits=4, block_size=32)
    assert torch.isfinite(grid.weights()).all()


def test_uncorrelated_inputs_of_one_size_leave_nothing_to_make_up_for() -> None:
    weight = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    grid = gptq(weight, torch.eye(32), bits=8, block_size=32)
    codes = (weight / grid.scales + 128).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(grid.codes, codes)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.sampled_from([4, 8]))
def test_weights_on_a_grid_are_found_again_without_loss(seed: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    half = 2 ** (bits - 1)
    codes = torch.randint(-half, half, (64, 7), generator=generator).float()
    scales = torch.rand(2, 7, generator=generator).repeat_interleave(32, dim=0) + 0.01
    grid = find_grid(codes * scales, bits=bits, block_size=32)
    assert grid is not None
    torch.testing.assert_close(grid.weights(), codes * scales, rtol=1e-4, atol=1e-6)


def test_weights_on_no_grid_are_not_forced_onto_one() -> None:
    assert find_grid(torch.randn(32, 4, generator=torch.Generator().manual_seed(1)), bits=4, block_size=32) is None


@pytest.mark.parametrize("bits", [4, 8])
def test_all_zero_blocks_have_a_grid(bits: int) -> None:
    grid = find_grid(torch.zeros(32, 2), bits=bits, block_size=32)
    assert grid is not None and not grid.weights().any()
