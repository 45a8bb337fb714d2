"""Training a module as its quantised file will compute: every product rounds its weights, and its inputs, as it runs.

While the context is open, each linear map computes with fake-quantised numbers (`methods.fake_quantisation`). Only what
a map does is replaced: parameters, their names and what shares them stay as they are, so the optimiser, checkpoints,
resuming and several processes see the module that they always see, and a plain fp32 module is left at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Literal, assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from compressor.errors import StageError
from compressor.methods.fake_quantisation import fake_blocks, fake_signed_rows, fake_unsigned
from compressor.methods.surgery.slicing import Linear, weight_of
from compressor.training.objective import PROJECTIONS
from compressor.training.rows import Batch, model_inputs

Scheme = Literal["w8a8-dynamic", "w8a8-static", "w8", "w4"]
Limits = tuple[float, float]
"""Least and largest input of a product."""

BLOCK_SIZE = 32


@contextmanager
def fake_quantised(model: nn.Module, scheme: Scheme, limits: Mapping[str, Limits] | None = None) -> Iterator[None]:
    """The module with every product rounded as the scheme rounds it, and as it was afterwards.

    Learned projections of a distillation are left alone: they are no part of the model. Embedding tables too, also
    where the output layer shares theirs. Of `w8` and `w4` the inputs stay as they are.

    Args:
        model: any module; in training and in evaluation mode alike, so that validation sees what the file would say.
        scheme: of the file that is to be made of it.
        limits: for `w8a8-static`, the range of every product's input (`input_limits`); a product without one is left
            alone, since nothing reaches it.

    Raises:
        StageError: the module has no product.
    """
    products = _products(model)
    if scheme == "w8a8-static":
        assert limits is not None, "static ranges come from calibration"
        products = {name: product for name, product in products.items() if name in limits}
    for name, product in products.items():
        range_ = limits[name] if limits is not None else None
        product.forward = partial(_forward, product, scheme, range_)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for product in products.values():
            del product.forward  # what the class does shows again


@torch.no_grad()
def input_limits(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Limits]:
    """The range of what enters every product that is reached, over calibration batches without padding; by name.

    Raises:
        StageError: the module has no product.
    """
    found: dict[str, Limits] = {}
    handles = [
        product.register_forward_pre_hook(partial(_widen, found, name)) for name, product in _products(model).items()
    ]
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            model(**model_inputs(batch))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return found


def _products(model: nn.Module) -> dict[str, Linear]:
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not name.startswith(PROJECTIONS)
    }
    if not found:
        raise StageError(
            f"{type(model).__name__} has no linear map, so quantisation-aware training would change nothing",
            where="training.quantisation_aware",
            hint="leave it out",
        )
    return found


def _widen(found: dict[str, Limits], name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    low, high = found.get(name, (0.0, 0.0))
    found[name] = (min(low, inputs[0].min().item()), max(high, inputs[0].max().item()))


def _forward(product: Linear, scheme: Scheme, limits: Limits | None, inputs: Tensor) -> Tensor:
    weight = weight_of(product)
    match scheme:
        case "w8a8-dynamic":
            inputs, weight = fake_unsigned(inputs, *inputs.aminmax()), fake_signed_rows(weight)
        case "w8a8-static":
            assert limits is not None
            low, high = (inputs.new_tensor(limit, dtype=torch.float32) for limit in limits)
            inputs, weight = fake_unsigned(inputs, low, high), fake_signed_rows(weight)
        case "w8":
            weight = fake_blocks(weight, bits=8, block_size=BLOCK_SIZE)
        case "w4":
            weight = fake_blocks(weight, bits=4, block_size=BLOCK_SIZE)
        case _:
            assert_never(scheme)
    return functional.linear(inputs, weight, product.bias)
