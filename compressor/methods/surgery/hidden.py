"""Hidden width: channels leave the residual stream, and with them rows and columns everywhere in the model.

Inside the layers the adapter says which side of a projection faces the residual stream. Around them (embeddings, norms,
poolers, heads) no table is needed: a tensor's dimension belongs to the hidden width if it grows with the config's
`hidden_size`, which two models without weights tell.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.errors import UnsupportedError
from compressor.methods.surgery.adapters import Adapter, adapter_for, layers_of
from compressor.methods.surgery.slicing import ConstantOutput, linear_at, n_outputs


def hidden_width(model: PreTrainedModel) -> int:
    """Channels of the residual stream as the modules have them; a pruned model's config may not be able to say it."""
    adapter, layer = adapter_for(model), layers_of(model)[0]
    output = layer.get_submodule(adapter.attention_out)
    return output.width if isinstance(output, ConstantOutput) else n_outputs(linear_at(layer, adapter.attention_out))


@torch.no_grad()
def resize_hidden(model: PreTrainedModel, kept: Sequence[int], adapter: Adapter) -> None:
    """Keep these channels, in place. Heads and FFN widths stay; the norms then average over fewer channels.

    Gemma multiplies its embeddings by the square root of the hidden width. The old factor is kept: the difference goes
    into the table, and out of the final norm again where the output layer shares the table.

    Raises:
        UnsupportedError: a tensor of the hidden width that cannot be told from others.
    """
    before = hidden_width(model)
    if len(kept) == before:
        return
    inside = _projections(model, adapter)
    sliced_dims = _hidden_dims(model)
    index = torch.tensor(list(kept), dtype=torch.long)
    new: dict[int, nn.Parameter] = {}  # by identity, so that tied tensors stay tied
    for path, module in list(model.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            full_name = f"{path}.{name}" if path else name
            if id(parameter) not in new:
                dims = inside.get(full_name, sliced_dims.get(full_name, ()))
                new[id(parameter)] = _sliced(parameter, dims, index, before, full_name)
            setattr(module, name, new[id(parameter)])
        _state_sizes(module, len(kept), before)
    if adapter.scales_embeddings:
        _keep_embedding_scale(model, adapter, before, len(kept))


def _projections(model: PreTrainedModel, adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """Which dimension of each projection inside the layers is the hidden one, by the parameter's full name."""
    found: dict[str, tuple[int, ...]] = {}
    names = {id(module): name for name, module in model.named_modules()}
    for layer in layers_of(model):
        for path in adapter.residual_readers:
            if not _is_there(layer, path):
                continue
            linear = linear_at(layer, path)
            prefix = names[id(linear)]
            found[f"{prefix}.weight"] = (1,) if isinstance(linear, nn.Linear) else (0,)
            found[f"{prefix}.bias"] = ()
        for path in (adapter.attention_out, adapter.ffn_out):
            module = layer.get_submodule(path)
            prefix = names[id(module)]
            if not isinstance(module, ConstantOutput):
                found[f"{prefix}.weight"] = (0,) if isinstance(module, nn.Linear) else (1,)
            found[f"{prefix}.bias"] = (0,)
    return found


def _hidden_dims(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Dimensions that grow with the config's hidden width, by parameter name."""
    shapes = []
    for factor in (1, 2):
        config = copy.deepcopy(model.config)
        config.hidden_size = factor * config.hidden_size
        with init_empty_weights():
            shapes.append({name: value.shape for name, value in type(model)(config).named_parameters()})
    narrow, wide = shapes
    return {
        name: tuple(dim for dim, (a, b) in enumerate(zip(shape, wide[name], strict=True)) if a != b)
        for name, shape in narrow.items()
    }


def _is_there(layer: nn.Module, path: str) -> bool:
    try:
        layer.get_submodule(path)
    except AttributeError:
        return False  # the sublayer was removed
    return True


def _sliced(parameter: nn.Parameter, dims: tuple[int, ...], index: Tensor, before: int, name: str) -> nn.Parameter:
    value: Tensor = parameter
    for dim in dims:
        if value.shape[dim] != before:
            raise UnsupportedError(
                f"{name} has {value.shape[dim]} entries where the hidden width is {before}: it cannot be narrowed",
                hint="leave `hidden` as it is for this architecture",
            )
        value = value.index_select(dim, index.to(value.device))
    return parameter if value is parameter else nn.Parameter(value.contiguous(), parameter.requires_grad)


def _state_sizes(module: nn.Module, after: int, before: int) -> None:
    """Bring up to date what a module says of its own shape."""
    if isinstance(module, ConstantOutput):
        module.width = after
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif hasattr(module, "weight") and isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif type(module).__name__ == "Conv1D":
        module.nx, module.nf = module.weight.shape  # type: ignore[assignment,misc]
    if getattr(module, "hidden_size", None) == before:
        module.hidden_size = after  # type: ignore[assignment]


def _keep_embedding_scale(model: PreTrainedModel, adapter: Adapter, before: int, after: int) -> None:
    """Move sqrt(before / after) from Gemma's factor, which a loader takes from the new width, into the weights."""
    embeddings: Any = model.get_input_embeddings()  # of a class that Gemma alone has
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    ratio = (before / after) ** 0.5
    embeddings.weight.mul_(ratio)
    embeddings.scalar_embed_scale = after**0.5
    embeddings.embed_scale.fill_(after**0.5)
    if isinstance(head, nn.Linear) and head.weight is embeddings.weight:
        norm = model.base_model.get_submodule(adapter.final_norm)
        norm.weight.add_(1.0).div_(ratio).sub_(1.0)  # type: ignore[operator]  # Gemma's norms multiply by 1 + w
