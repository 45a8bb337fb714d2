"""Weights rounded to a grid of few bits, one scale for each block of inputs: to the nearest, or by GPTQ.

The grid is that of ONNX Runtime's `MatMulNBits` without zero points: w = scale * (code - 2**(bits - 1)), and the number
of the largest magnitude in a block lies on the grid's lower end. Weights are (inputs, outputs), as ONNX stores them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DAMPING = 0.01
"""Added to the diagonal of the Gram matrix, as a share of its mean (GPTQ, section 4)."""
SHRINKING = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Shares of the largest weight of a block that its scale may be made for; what lies beyond is clipped."""


@dataclass(frozen=True)
class BlockGrid:
    """A weight matrix in few bits.

    Attributes:
        codes: (K, N) uint8, from 0 to 2**bits - 1.
        scales: (ceil(K / block_size), N) fp32.
        bits: of a code.
        block_size: inputs that share a scale.
    """

    codes: Tensor
    scales: Tensor
    bits: int
    block_size: int

    def weights(self) -> Tensor:
        """What the codes stand for: (K, N) fp32."""
        scales = self.scales.repeat_interleave(self.block_size, dim=0)[: len(self.codes)]
        values: Tensor = (self.codes.float() - 2 ** (self.bits - 1)) * scales
        return values


def round_to_nearest(weight: Tensor, *, bits: int, block_size: int) -> BlockGrid:
    """Every weight to the nearest code of its block, (K, N) -> a grid."""
    scales = torch.stack([_block_scale(block, bits) for block in torch.split(weight.float(), block_size)])
    wide = scales.repeat_interleave(block_size, dim=0)[: len(weight)]
    return BlockGrid(_codes(weight.float(), wide, bits), scales, bits, block_size)


@torch.no_grad()
def gptq(weight: Tensor, gram: Tensor, *, bits: int, block_size: int) -> BlockGrid:
    """Round inputs one after the other, and let those that are left make up for the error of each.

    GPTQ (Frantar et al., arXiv 2210.17323): with H the Gram matrix of the inputs, the error of row k, divided by
    U[k, k], goes into the later rows with U[k, k+1:], U the upper Cholesky factor of H^-1. A block's scale is chosen
    when its turn comes, for the least error weighted by the inputs' second moments.

    Args:
        weight: (K, N).
        gram: sum of x x^T over calibration tokens, (K, K).
        bits: of a code.
        block_size: inputs that share a scale.
    """
    left, hessian = weight.double().clone(), gram.double().clone()
    diagonal = hessian.diagonal()
    dead = diagonal <= 0  # inputs that were always zero teach nothing, and lose nothing
    diagonal[dead] = 1.0
    diagonal += DAMPING * diagonal.mean()
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)  # (K, K)
    importance = gram.double().diagonal().clamp_min(0)
    codes, scales = torch.empty(weight.shape, dtype=torch.uint8), []
    for start in range(0, len(weight), block_size):
        end = min(start + block_size, len(weight))
        scale = _least_error_scale(left[start:end].float(), importance[start:end].float(), bits)
        scales.append(scale)
        errors = torch.empty(end - start, weight.shape[1], dtype=torch.float64)
        for k in range(start, end):
            codes[k] = _codes(left[k].float(), scale, bits)
            rounded = (codes[k].double() - 2 ** (bits - 1)) * scale.double()
            errors[k - start] = (left[k] - rounded) / factor[k, k]
            left[k + 1 : end] -= factor[k, k + 1 : end, None] * errors[k - start]
        left[end:] -= factor[start:end, end:].T @ errors
    return BlockGrid(codes, torch.stack(scales), bits, block_size)


def output_error(weight: Tensor, rounded: Tensor, gram: Tensor) -> float:
    """Squared error of the outputs over the calibration tokens, relative to the outputs' own square."""
    difference = (weight - rounded).double()
    wide = weight.double()
    return float((difference * (gram.double() @ difference)).sum() / (wide * (gram.double() @ wide)).sum())


def _block_scale(block: Tensor, bits: int) -> Tensor:
    """(n, N) -> (N,): the weight of the largest magnitude goes to the code 0."""
    largest = block.gather(0, block.abs().argmax(dim=0, keepdim=True))[0]
    return _not_zero(-largest / 2 ** (bits - 1))


def _least_error_scale(block: Tensor, importance: Tensor, bits: int) -> Tensor:
    full = _block_scale(block, bits)
    best, least = full, torch.full_like(full, torch.inf)
    for share in SHRINKING:
        scale = full * share
        rounded = (_codes(block, scale, bits).float() - 2 ** (bits - 1)) * scale
        error = (importance[:, None] * (rounded - block).square()).sum(dim=0)  # (N,)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def _codes(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    codes: Tensor = (weight / scale + 2 ** (bits - 1)).round().clamp(0, 2**bits - 1).to(torch.uint8)
    return codes


def _not_zero(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def find_grid(weight: Tensor, *, bits: int, block_size: int) -> BlockGrid | None:
    """The grid that rounded weights lie on already, (K, N), so that storing them loses nothing; None where none is.

    Whoever rounded them made the largest weight of a block some whole number of steps; the coarsest step that all
    weights of the block are multiples of is taken.
    """
    codes, scales = [], []
    half = 2 ** (bits - 1)
    for block in torch.split(weight.float(), block_size):
        largest = block.abs().amax(dim=0)  # (N,)
        best = torch.zeros_like(largest)
        for steps in range(1, half + 1):
            scale = _not_zero(largest / steps)
            for signed in (scale, -scale):
                whole = block / signed
                fits = (whole - whole.round()).abs().amax(dim=0) <= 1e-3 * steps
                fits &= (whole.round() >= -half).all(dim=0) & (whole.round() <= half - 1).all(dim=0)
                best = torch.where((best == 0) & fits, signed, best)
        if bool((best == 0).any()):
            return None
        scales.append(best)
        codes.append(_codes(block, best, bits))
    return BlockGrid(torch.cat(codes), torch.stack(scales), bits, block_size)
