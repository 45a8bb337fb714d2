"""What a stock Hugging Face config can say of a pruned model, and how to pad a model until it can say all of it.

A stock config has one FFN width and one head count for all layers, and derives the head size from the head count in
BERT and GPT-2. Whatever fits is already in `model.config` after `apply_structure`; the rest goes into a
`per_layer_config` in Hugging Face's own schema (transformers 5.23, integrations/heterogeneity), which makes stock
loaders that read it stop loudly rather than build wrong shapes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.errors import UnsupportedError
from compressor.methods.structure import ATTENTION, FFN, KINDS, LayerStructure, full_layer
from compressor.methods.surgery.adapters import Adapter, adapter_for, layers_of
from compressor.methods.surgery.apply import head_dim_of, read_layer, read_structure
from compressor.methods.surgery.hidden import hidden_width
from compressor.methods.surgery.slicing import Linear, linear_at, spread, weight_of

_SCHEMA_NAMES = {ATTENTION: "attention", FFN: "mlp"}


@dataclass(frozen=True)
class StockFit:
    """Whether plain `from_pretrained` can load a model as it is now.

    Attributes:
        uniform: it can.
        reason: why not; None when it can.
        config: the config values that describe the model as far as a stock config goes (set in `model.config`).
        per_layer_config: what the config cannot say, per layer, as {"3": {"intermediate_size": 512}}; None when
            uniform. It belongs into config.json, which our loader strips again: with it, transformers refuses to read
            the per-layer names from the config.
    """

    uniform: bool
    reason: str | None
    config: dict[str, Any]
    per_layer_config: dict[str, dict[str, Any]] | None


def stock_fit(model: PreTrainedModel) -> StockFit:
    """Compare the model's real shapes, layer by layer, with those that its config would build.

    Raises:
        UnsupportedError: an architecture without an adapter.
    """
    adapter, config = adapter_for(model), model.config
    built, hidden = _config_layer(model, adapter), hidden_width(model)
    overrides: dict[str, dict[str, Any]] = {}
    for number, layer in enumerate(read_structure(model).layers):
        override = _override(layer, built, adapter)
        if hidden != config.hidden_size:
            override["hidden_size"] = hidden
        if override:
            overrides[str(number)] = override
    keys = [adapter.depth_key, adapter.ffn_key, *adapter.per_layer_keys]
    if adapter.reads_head_dim:
        keys += ["num_attention_heads", "num_key_value_heads", "head_dim"]
    values = {key: getattr(config, key) for key in keys if getattr(config, key, None) is not None}
    if not overrides:
        return StockFit(True, None, values, None)
    return StockFit(False, _reason(overrides, adapter, len(layers_of(model))), values, overrides)


@torch.no_grad()
def zero_pad_to_stock(model: PreTrainedModel) -> PreTrainedModel:
    """A stock model with equal logits: removed heads and neurons come back as zeros.

    For stock loaders that must open a non-uniform model; it costs what a uniform model of these widths costs. FFN
    widths are padded to the widest layer, heads to the config's count.

    Returns:
        A new model of the same class, for `save_pretrained`.

    Raises:
        UnsupportedError: an architecture without an adapter, or a hidden width that the config cannot say.
    """
    adapter, structure = adapter_for(model), read_structure(model)
    config = copy.deepcopy(model.config)
    if hidden_width(model) != config.hidden_size:
        raise UnsupportedError(
            f"a hidden width of {hidden_width(model)} cannot be padded to the config's {config.hidden_size}: norms "
            "average over all channels, so zeros would change the answers",
            hint="prune the heads to hidden width / head size too, open it with compressor.load, or export to ONNX",
        )
    width = max(layer.ffn_width for layer in structure.layers)
    if width:
        setattr(config, adapter.ffn_key, width)
    stock: PreTrainedModel = type(model)(config)
    nn.Module.to(stock, dtype=model.dtype)
    copied = model.state_dict()
    for layer in layers_of(stock):
        for linear in _projections(layer, adapter).values():
            linear.weight.zero_()
            if linear.bias is not None:
                linear.bias.zero_()
    for name, value in stock.state_dict().items():
        if name in copied and copied[name].shape == value.shape:
            value.copy_(copied[name])
    for padded, pruned, now in zip(layers_of(stock), layers_of(model), structure.layers, strict=True):
        _place_layer(padded, pruned, now, adapter)
    stock.eval()  # type: ignore[no-untyped-call]
    return stock


def _place_layer(padded: nn.Module, pruned: nn.Module, now: LayerStructure, adapter: Adapter) -> None:
    """Write one pruned layer's projections into zeroed stock ones."""
    whole = read_layer(padded, adapter)
    head_dim = head_dim_of(padded, adapter)
    if now.n_heads:
        per_group, stock_per_group = now.n_heads // now.n_kv_heads, whole.n_heads // whole.n_kv_heads
        heads = [kv * stock_per_group + i for kv in range(now.n_kv_heads) for i in range(per_group)]
        for projection in adapter.queries:
            rows = spread(heads, head_dim, whole.n_heads, projection.n_blocks)
            _place(padded, pruned, projection.path, rows=rows)
        for projection in adapter.keys_values:
            _place(padded, pruned, projection.path, rows=spread(range(now.n_kv_heads), head_dim))
        _place(padded, pruned, adapter.attention_out, columns=spread(heads, head_dim))
    if now.ffn_width:
        neurons = range(now.ffn_width)
        for projection in adapter.ffn_in:
            rows = spread(neurons, 1, whole.ffn_width, projection.n_blocks)
            _place(padded, pruned, projection.path, rows=rows)
        _place(padded, pruned, adapter.ffn_out, columns=spread(neurons, 1))


def _place(
    padded: nn.Module, pruned: nn.Module, path: str, rows: Tensor | None = None, columns: Tensor | None = None
) -> None:
    target, source = linear_at(padded, path), linear_at(pruned, path)
    if rows is not None:
        weight_of(target)[rows] = weight_of(source)
        if target.bias is not None:
            target.bias[rows] = source.bias
    else:
        weight_of(target)[:, columns] = weight_of(source)
        if target.bias is not None:
            target.bias.copy_(source.bias)


def _projections(layer: nn.Module, adapter: Adapter) -> dict[str, Linear]:
    return {path: linear_at(layer, path) for kind in KINDS for path in adapter.paths(kind)}


def _config_layer(model: PreTrainedModel, adapter: Adapter) -> LayerStructure:
    """The layer that the model's config would build."""
    config = model.config
    n_heads = int(getattr(config, adapter.heads_key))
    n_kv_heads = int(getattr(config, "num_key_value_heads", None) or n_heads) if adapter.keys_values else n_heads
    width = getattr(config, adapter.ffn_key)
    return full_layer(n_heads, n_kv_heads, int(width) if width is not None else 4 * int(config.hidden_size))


def _override(layer: LayerStructure, built: LayerStructure, adapter: Adapter) -> dict[str, Any]:
    override: dict[str, Any] = {}
    # One name for the heads: Llama's own validation reads the head count, for a tokenizer too, so there the key/value
    # heads, which leave with their groups, are named in its place.
    if adapter.keys_values and layer.n_kv_heads != built.n_kv_heads:
        override["num_key_value_heads"] = layer.n_kv_heads
    elif layer.n_heads != built.n_heads:
        override[adapter.heads_key] = layer.n_heads
    if layer.ffn_width != built.ffn_width:
        override[adapter.ffn_key] = layer.ffn_width
    if layer.skip:
        override["skip"] = sorted(_SCHEMA_NAMES[kind] for kind in layer.skip)
    return override


def _reason(overrides: dict[str, dict[str, Any]], adapter: Adapter, n_layers: int) -> str:
    named = {name for override in overrides.values() for name in override}
    if "hidden_size" in named:
        return "the hidden width is no longer heads x head size, which is all that this architecture's config can say"
    if "skip" in named:
        return "a sublayer is removed from some layers, which a stock config cannot say"
    if adapter.ffn_key in named:
        return "FFN widths differ between layers"
    alike = len(overrides) == n_layers and len({str(override) for override in overrides.values()}) == 1
    if alike and not adapter.reads_head_dim:
        return "heads are removed, and this architecture's config derives the head size from the head count"
    if alike:
        return "the head count does not divide the hidden size, which this architecture's config demands"
    return "head counts differ between layers"
