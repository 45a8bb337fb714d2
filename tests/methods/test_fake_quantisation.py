"""Fake quantisation: on the grid of the files, never further than half a step, with the gradient passed on."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor

from compressor.methods.fake_quantisation import fake_blocks, fake_signed_rows, fake_unsigned

SEEDS = st.integers(0, 10_000)


def numbers(*shape: int, seed: int, offset: float = 0.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + offset


def test_rows_are_rounded_as_worked_out_by_hand() -> None:
    weight = torch.tensor([[127.0, -3.4, 0.6], [0.0, 0.0, 0.0], [-1.27, 0.004, 0.006]])
    expected = torch.tensor([[127.0, -3.0, 1.0], [0.0, 0.0, 0.0], [-1.27, 0.0, 0.01]])
    torch.testing.assert_close(fake_signed_rows(weight), expected)


def test_a_range_is_cut_into_255_steps_with_zero_on_one_of_them() -> None:
    values = torch.tensor([-1.0, -0.004, 0.0, 0.3, 1.55, 9.0, -9.0])
    rounded = fake_unsigned(values, torch.tensor(-1.0), torch.tensor(1.55))  # steps of 0.01
    torch.testing.assert_close(rounded, torch.tensor([-1.0, 0.0, 0.0, 0.3, 1.55, 1.55, -1.0]))


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, scheme=st.sampled_from(["rows", "w8", "w4", "unsigned"]))
def test_what_lies_on_the_grid_stays_there(seed: int, scheme: str) -> None:
    value = numbers(6, 64, seed=seed)
    low, high = value.aminmax()
    fake = {
        "rows": fake_signed_rows,
        "w8": lambda each: fake_blocks(each, bits=8, block_size=32),
        "w4": lambda each: fake_blocks(each, bits=4, block_size=32),
        "unsigned": lambda each: fake_unsigned(each, low, high),
    }[scheme]
    once = fake(value)
    torch.testing.assert_close(fake(once), once, rtol=1e-6, atol=1e-6)
    assert not torch.equal(once, value)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_no_number_moves_further_than_half_a_step(seed: int) -> None:
    weight = numbers(5, 64, seed=seed)
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((fake_signed_rows(weight) - weight).abs() <= 0.5001 * step).all()

    values = numbers(40, seed=seed, offset=0.3)
    low, high = values.aminmax()
    assert ((fake_unsigned(values, low, high) - values).abs() <= 1.0001 * (high - low) / 255).all()  # 0 is moved too

    for bits in (8, 4):
        blocks = weight.view(5, 2, 32)
        step = blocks.abs().amax(dim=2, keepdim=True) / 2 ** (bits - 1)
        moved = (fake_blocks(weight, bits=bits, block_size=32).view(5, 2, 32) - blocks).abs()
        inside = blocks * -blocks.gather(2, blocks.abs().argmax(2, keepdim=True)).sign() <= (2 ** (bits - 1) - 1) * step
        assert (moved[inside] <= (0.5001 * step).expand_as(moved)[inside]).all()
        assert (moved <= 1.0001 * step).all()  # the grid has one step less on the side without the largest weight


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_the_gradient_passes_rounding_and_stops_at_clipping(seed: int) -> None:
    weight, upstream = numbers(4, 32, seed=seed).requires_grad_(), numbers(4, 32, seed=seed + 1)
    for fake in (fake_signed_rows, lambda each: fake_blocks(each, bits=4, block_size=32)):
        (gradient,) = torch.autograd.grad((fake(weight) * upstream).sum(), weight)
        assert torch.equal(gradient, upstream)
    low, high = torch.tensor(-0.7), torch.tensor(0.5)
    (gradient,) = torch.autograd.grad((fake_unsigned(weight, low, high) * upstream).sum(), weight)
    is_inside = (weight >= low) & (weight <= high)
    assert torch.equal(gradient, torch.where(is_inside, upstream, torch.zeros_like(upstream)))


@pytest.mark.parametrize("offset", [-3.0, 0.0, 3.0])
def test_activations_are_those_of_the_runtime(offset: float) -> None:
    """The operator that a dynamically quantised file begins every product with."""
    graph = helper.make_graph(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"]),
            helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"]),
        ],
        "activations",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 50])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 50])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    values = numbers(3, 50, seed=4, offset=offset)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(["y"], {"x": values.numpy()})
    np.testing.assert_allclose(fake_unsigned(values, *values.aminmax()), theirs, rtol=1e-5, atol=1e-6)


def test_numbers_that_are_none_stay_none() -> None:
    weight = numbers(2, 32, seed=0)
    weight[0, 3] = torch.nan
    assert fake_signed_rows(weight)[0].isnan().any() and fake_blocks(weight, bits=4, block_size=32)[0].isnan().any()
    assert fake_unsigned(weight, *weight.aminmax()).isnan().any()
