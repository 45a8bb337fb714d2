"""Slicing single modules: rows and columns of linear maps, and the modules that stand in for a removed sublayer.

Works on the meta device too (shapes without numbers), which is how a loader resizes a stock model before the weights
arrive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.pytorch_utils import Conv1D

from compressor.errors import UnsupportedError

Linear: TypeAlias = nn.Linear | Conv1D


def linear_at(layer: nn.Module, path: str) -> Linear:
    """The linear map at a path.

    Raises:
        UnsupportedError: something else stands there, such as an already quantised map.
    """
    module = layer.get_submodule(path)
    if not isinstance(module, nn.Linear | Conv1D):
        raise UnsupportedError(
            f"{path} is a {type(module).__name__}, which cannot be sliced",
            hint="prune the full-precision checkpoint and quantise afterwards",
        )
    return module


def weight_of(linear: Linear) -> Tensor:
    """The weight as (outputs, inputs). GPT-2's Conv1D stores it transposed."""
    return linear.weight.T if isinstance(linear, Conv1D) else linear.weight


def set_weight(linear: Linear, weight: Tensor) -> None:
    """Replace the weight, given as (outputs, inputs), and the sizes that the module states."""
    stored = weight.T if isinstance(linear, Conv1D) else weight
    linear.weight = nn.Parameter(stored.contiguous(), requires_grad=linear.weight.requires_grad)
    if isinstance(linear, Conv1D):
        linear.nx, linear.nf = linear.weight.shape
    else:
        linear.out_features, linear.in_features = linear.weight.shape


def n_inputs(linear: Linear) -> int:
    """Input features, whichever way round the weight is stored."""
    return int(weight_of(linear).shape[1])


def n_outputs(linear: Linear) -> int:
    """Output features, whichever way round the weight is stored."""
    return int(weight_of(linear).shape[0])


@torch.no_grad()
def keep_outputs(linear: Linear, kept: Tensor) -> None:
    """Keep these outputs (rows of the weight, entries of the bias)."""
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[kept.to(linear.bias.device)], requires_grad=linear.bias.requires_grad)
    set_weight(linear, weight_of(linear)[kept.to(linear.weight.device)])


@torch.no_grad()
def keep_inputs(linear: Linear, kept: Tensor) -> None:
    """Keep these inputs (columns of the weight)."""
    set_weight(linear, weight_of(linear)[:, kept.to(linear.weight.device)])


def spread(kept: Sequence[int], unit_width: int, n_units: int = 0, n_blocks: int = 1) -> Tensor:
    """Row numbers of whole units, in each of several equal blocks.

    Args:
        kept: units, such as heads.
        unit_width: rows per unit, such as the head size.
        n_units: units per block; needed with more than one block.
        n_blocks: fused projections: 3 for query-key-value.
    """
    units = torch.tensor(tuple(kept), dtype=torch.long, device="cpu")
    rows = (units[:, None] * unit_width + torch.arange(unit_width, device="cpu")).flatten()  # (n_kept * unit_width,)
    starts = torch.arange(n_blocks, device="cpu") * n_units * unit_width
    return (starts[:, None] + rows).flatten()


class ConstantOutput(nn.Module):
    """What is left of an output projection without inputs: its bias, or zero.

    The vector has the shape (hidden,) and is broadcast by the residual addition that follows; an exporter then sees
    a constant and nothing else.
    """

    def __init__(self, width: int, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.width = width
        self.bias = bias

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states.new_zeros(self.width) if self.bias is None else self.bias


class SkippedAttention(nn.Module):
    """Stands in for a removed attention sublayer.

    A decoder's cache still gets one zero per token here: transformers reads the length of the past from the first
    layer's entry, and a layer that never writes would put every later token at position 0.
    """

    def __init__(self, layer_idx: int | None, output_name: str | None, output: ConstantOutput | None) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.output_name = output_name
        if output_name is not None:
            self.add_module(output_name, output)

    def forward(
        self,
        hidden_states: Tensor,
        *args: object,
        past_key_values: Cache | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, None]:
        if past_key_values is not None and self.layer_idx is not None:
            clock = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)  # (B, 1, T, 1)
            past_key_values.update(clock, clock, self.layer_idx)
        if self.output_name is None:
            return hidden_states, None
        output: Tensor = self.get_submodule(self.output_name)(hidden_states)
        return output, None


class SkippedFfn(nn.Module):
    """Stands in for a removed feed-forward sublayer."""

    def __init__(self, output_name: str | None, output: ConstantOutput | None) -> None:
        super().__init__()
        self.output_name = output_name
        if output_name is not None:
            self.add_module(output_name, output)

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.output_name is None:
            return hidden_states
        output: Tensor = self.get_submodule(self.output_name)(hidden_states)
        return output
