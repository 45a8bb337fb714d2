"""AWQ and AutoRound by neural-compressor, on the torch side: a language model whose weights lie on a grid afterwards.

neural-compressor 3.10 writes no ONNX. Its rounded weights are taken out as plain linear maps, exported as any model is,
and found again on their grid, so that what it decided is what the ONNX file holds. An optional package, imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.errors import MissingPackageError, StageError, UnsupportedError
from compressor.training.rows import Batch

AUTOROUND_STEPS = 200


class ScaledLinear(nn.Module):
    """AWQ's layer: channels scaled before a linear map whose weights were rounded for that scale."""

    def __init__(self, scale: Tensor, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = nn.Buffer(scale)
        self.linear = linear

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.linear(hidden * self.scale)
        return output


def round_module(
    module: PreTrainedModel,
    batches: Sequence[Batch],
    *,
    method: Literal["awq", "autoround"],
    bits: int,
    block_size: int,
) -> PreTrainedModel:
    """Round a language model's layers in place of its own, `lm_head` left alone.

    Raises:
        MissingPackageError: neural-compressor, or auto-round, is not installed.
        UnsupportedError: a model that is no stack of linear layers (GPT-2's `Conv1D`).
        StageError: nothing was rounded.
    """
    try:
        from neural_compressor.torch import quantization as inc  # type: ignore[import-not-found,unused-ignore]

        if method == "autoround":
            import auto_round  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError as error:
        package = "auto-round" if "auto_round" in str(error) else "neural-compressor"
        raise MissingPackageError(package, extra="neural-compressor", needed_for=f"method: {method}") from error
    if not any(isinstance(child, nn.Linear) for name, child in module.named_modules() if name != "lm_head"):
        raise UnsupportedError(
            f"{type(module).__name__} has no nn.Linear for {method} to round", hint="use gptq, which works on the graph"
        )
    ids = [batch["input_ids"] for batch in batches]
    grid: dict[str, Any] = {"bits": bits, "group_size": block_size, "use_sym": True}
    if method == "awq":
        prepared = inc.prepare(module, inc.AWQConfig(**grid), example_inputs=ids[0])
    else:
        n_rows, width = sum(len(one) for one in ids), min(one.shape[1] for one in ids)
        config = inc.AutoRoundConfig(
            **grid, iters=AUTOROUND_STEPS, nsamples=n_rows, seqlen=width, batch_size=min(8, n_rows)
        )
        prepared = inc.prepare(module, config)
    with torch.set_grad_enabled(method == "autoround"):  # it learns the rounding by gradients, wherever we are called
        for one in ids:
            prepared(one)
        rounded = inc.convert(prepared)
    if _take_out(rounded) == 0:
        raise StageError(f"{method} rounded no layer of {type(module).__name__}", hint="use gptq")
    for parameter in rounded.parameters():  # transformers refuses `.float()` on what it takes for a quantised model
        parameter.data = parameter.data.float()
    result: PreTrainedModel = rounded.eval()
    return result


def _take_out(model: nn.Module) -> int:
    """Replace neural-compressor's layers by plain ones with the same weights; how many."""
    count = 0
    child: Any
    for name, child in list(model.named_children()):
        kind = type(child).__name__
        if kind == "MulLinear":
            setattr(model, name, ScaledLinear(child.input_scale.detach().float(), _plain(child.linear)))
            count += 1
        elif kind in ("INCWeightOnlyLinear", "QuantLinear"):
            setattr(model, name, _plain(child))
            count += 1
        else:
            count += _take_out(child)
    return count


@torch.no_grad()
def _plain(layer: Any) -> nn.Linear:
    """The linear map that a packed layer computes, read from what it does to the unit vectors."""
    width = int(layer.in_features if hasattr(layer, "in_features") else layer.infeatures)
    zero = layer(torch.zeros(1, width))[0].float()  # (out,), the bias
    has_bias = getattr(layer, "bias", None) is not None
    linear = nn.Linear(width, len(zero), bias=has_bias)
    linear.weight.copy_((layer(torch.eye(width)).float() - zero).T)
    if has_bias:
        linear.bias.copy_(zero)
    return linear
