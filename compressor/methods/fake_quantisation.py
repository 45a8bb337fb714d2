"""Numbers rounded as a scheme will round them, with a gradient: fake quantisation for training.

Forward, a number becomes the grid point that the finished file would hold; backward, rounding passes the gradient on
unchanged (the straight-through estimator: Bengio et al., arXiv 1308.3432; for quantised networks Jacob et al.,
arXiv 1712.05877). So the weights that are trained stay fp32, and learn to lie where rounding does least harm.

Weights are (outputs, inputs), as torch stores them. The grids are those of `graphs.quantise` with its defaults.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.methods.rounding import round_to_nearest

SIGNED_STEPS, UNSIGNED_STEPS = 127, 255


def fake_signed_rows(weight: Tensor) -> Tensor:
    """INT8 weights: -127 to 127 times one scale for each output, set by its largest weight.

    Args:
        weight: (N, K).
    """
    scale = _not_zero(weight.detach().float().abs().amax(dim=1, keepdim=True) / SIGNED_STEPS)  # (N, 1)
    return _straight_through(weight, (weight.detach().float() / scale).round() * scale)


def fake_blocks(weight: Tensor, *, bits: int, block_size: int) -> Tensor:
    """Weights of `MatMulNBits`: one scale for every `block_size` inputs of an output.

    Args:
        weight: (N, K).
        bits: of a weight.
        block_size: inputs that share a scale.
    """
    rounded = round_to_nearest(weight.detach().T, bits=bits, block_size=block_size).weights()
    return _straight_through(weight, rounded.T)


def fake_unsigned(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """UINT8 activations: 256 steps that span the range and 0, with 0 on one of them.

    What lies outside the range is clipped and gets no gradient.

    Args:
        values: any shape.
        low, high: ends of the range, no gradient; those of `values` where the file finds them while it runs
            (`DynamicQuantizeLinear`), and fixed ones where calibration did.
    """
    low, high = low.detach().float().clamp(max=0.0), high.detach().float().clamp(min=0.0)
    scale = _not_zero((high - low) / UNSIGNED_STEPS)
    zero_point = (-low / scale).round()
    clipped = values.clamp(low.to(values.dtype), high.to(values.dtype))
    codes = ((values.detach().float() / scale).round() + zero_point).clamp(0, UNSIGNED_STEPS)
    return _straight_through(clipped, (codes - zero_point) * scale)


def _straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`, with the gradient of `values`."""
    passed: Tensor = _Replace.apply(values, rounded.to(values.dtype))  # type: ignore[no-untyped-call]
    return passed


class _Replace(torch.autograd.Function):
    """Another value, the same gradient. A sum `values + (rounded - values)` would miss the grid by its last bit."""

    @staticmethod
    def forward(ctx: object, values: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _not_zero(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.ones_like(scale), scale)
