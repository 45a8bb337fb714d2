"""Resize a stock Hugging Face model to a structure: the one place where heads, neurons and layers leave a model.

Pruning, loading and the tests all call `apply_structure`. transformers 5 has no `prune_heads` of its own any more.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.errors import CheckpointError, StageError, UnsupportedError
from compressor.methods.structure import LayerStructure, Structure, full_layer
from compressor.methods.surgery.adapters import Adapter, adapter_for, layers_of
from compressor.methods.surgery.hidden import hidden_width, resize_hidden
from compressor.methods.surgery.slicing import (
    ConstantOutput,
    SkippedAttention,
    SkippedFfn,
    keep_inputs,
    keep_outputs,
    linear_at,
    n_inputs,
    n_outputs,
    spread,
)


def read_structure(model: PreTrainedModel) -> Structure:
    """The structure that keeps everything the model has now, read from its modules rather than from its config."""
    adapter = adapter_for(model)
    layers = tuple(read_layer(layer, adapter) for layer in layers_of(model))
    return Structure(tuple(range(len(layers))), layers)


def apply_structure(model: PreTrainedModel, structure: Structure) -> PreTrainedModel:
    """Resize a model in place to what a structure keeps; the same model is returned.

    The config follows as far as a stock config can: depth and per-layer lists always, FFN width and (where the head
    size is a config value) head counts when all layers agree, the hidden width when the heads fit it. Works on the meta
    device.

    Raises:
        UnsupportedError: an architecture without an adapter, or a layer that must stay.
        CheckpointError: the structure does not fit this model.
    """
    adapter = adapter_for(model)
    _check(model, structure, adapter)
    layers = layers_of(model)
    _own_config(model)
    for number, wanted in zip(structure.layers_kept, structure.layers, strict=True):
        resize_layer(layers[number], wanted, adapter)
    _keep_layers(model, structure.layers_kept, adapter)
    if structure.hidden_kept is not None:
        resize_hidden(model, structure.hidden_kept, adapter)
    _update_config(model, adapter)
    return model


def require_change(before: Structure, after: Structure) -> None:
    """Refuse a pruning step that removed nothing.

    Raises:
        StageError: both structures keep the same.
    """
    width = after.hidden_kept and len(after.hidden_kept)
    same_width = after.hidden_kept is None or (before.hidden_kept is not None and len(before.hidden_kept) == width)
    if same_width and before.reload().layers == after.reload().layers:
        raise StageError(
            "the pruning removed nothing: every head, neuron and layer of the source is kept",
            hint="ask for a smaller budget or kept fraction",
        )


def drop_layers(model: PreTrainedModel, layers_kept: Sequence[int]) -> Structure:
    """Keep only these layers, whole, in place; gives the structure.

    Raises:
        UnsupportedError: an architecture without an adapter, or a layer that must stay.
        CheckpointError: a layer that the model does not have.
        StageError: all layers are kept.
    """
    before = read_structure(model)
    bad = [number for number in layers_kept if not 0 <= number < len(before.layers)]
    if bad or list(layers_kept) != sorted(set(layers_kept)) or not layers_kept:
        raise CheckpointError(
            f"layers {list(layers_kept)} cannot be kept of a model with layers 0 to {len(before.layers) - 1}",
            hint="name increasing layer numbers, counted from 0",
        )
    after = Structure(tuple(layers_kept), tuple(before.layers[number] for number in layers_kept))
    require_change(before, after)
    apply_structure(model, after)
    return after


def rebuild(model: PreTrainedModel, structure: Structure, state_dict: Mapping[str, Tensor]) -> PreTrainedModel:
    """Turn a freshly built stock model into the pruned one whose weights are given.

    Build the model from the pruned checkpoint's own config, best under `accelerate.init_empty_weights()`: parameters
    stay on the meta device until they are assigned here, buffers (RoPE frequencies) are real.

    Raises:
        CheckpointError: weights that do not fit the structure, with the first keys that are missing or unexpected.
    """
    apply_structure(model, structure.reload())
    try:
        found = model.load_state_dict(state_dict, strict=False, assign=True)
    except RuntimeError as error:  # torch reports shapes that differ this way
        raise CheckpointError(f"the weights do not fit the structure: {error}") from error
    model.tie_weights()
    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if empty or found.unexpected_keys:
        raise CheckpointError(
            f"the weights do not fit the structure: {len(empty)} missing {empty[:3]}, "
            f"{len(found.unexpected_keys)} unexpected {found.unexpected_keys[:3]}"
        )
    model.eval()  # type: ignore[no-untyped-call]
    return model


def n_parameters(model: nn.Module) -> int:
    """Parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def kv_cache_shapes(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Key/value heads and head size of each layer's cache entry, for exporters.

    Pruned models may differ by layer; a removed attention sublayer has (1, 1), see `SkippedAttention`.
    """
    adapter = adapter_for(model)
    shapes = []
    for layer in layers_of(model):
        described = read_layer(layer, adapter)
        shapes.append((described.n_kv_heads, head_dim_of(layer, adapter)) if described.n_heads else (1, 1))
    return shapes


def head_dim_of(layer: nn.Module, adapter: Adapter) -> int:
    """Width of one head in this layer."""
    return int(getattr(layer.get_submodule(adapter.attention), adapter.head_dim))


def read_layer(layer: nn.Module, adapter: Adapter) -> LayerStructure:
    """What one layer has now, read from the shapes of its modules."""
    n_heads = n_kv_heads = ffn_width = 0
    if not isinstance(layer.get_submodule(adapter.attention), SkippedAttention):
        head_dim = head_dim_of(layer, adapter)
        first = adapter.queries[0]
        n_heads = n_kv_heads = n_outputs(linear_at(layer, first.path)) // first.n_blocks // head_dim
        if adapter.keys_values:
            n_kv_heads = n_outputs(linear_at(layer, adapter.keys_values[0].path)) // head_dim
    if not isinstance(layer.get_submodule(adapter.ffn), SkippedFfn):
        ffn_width = n_inputs(linear_at(layer, adapter.ffn_out))
    return full_layer(n_heads, n_kv_heads, ffn_width)


def resize_layer(layer: nn.Module, wanted: LayerStructure, adapter: Adapter) -> None:
    """Slice one layer in place to what is wanted of it; sublayers that keep everything are not touched."""
    present = read_layer(layer, adapter)
    if wanted.n_heads != present.n_heads:
        _resize_attention(layer, wanted, present, adapter)
    if wanted.ffn_width != present.ffn_width:
        _resize_ffn(layer, wanted, present, adapter)


def _resize_attention(layer: nn.Module, wanted: LayerStructure, present: LayerStructure, adapter: Adapter) -> None:
    if not wanted.heads_kept:
        _skip_attention(layer, adapter)
        return
    attention = layer.get_submodule(adapter.attention)
    head_dim = head_dim_of(layer, adapter)
    for projection in adapter.queries:
        rows = spread(wanted.heads_kept, head_dim, present.n_heads, projection.n_blocks)
        keep_outputs(linear_at(layer, projection.path), rows)
    for projection in adapter.keys_values:
        keep_outputs(linear_at(layer, projection.path), spread(wanted.kv_heads_kept, head_dim))
    keep_inputs(linear_at(layer, adapter.attention_out), spread(wanted.heads_kept, head_dim))
    for name in adapter.head_count_attributes:
        setattr(attention, name, wanted.n_heads)
    for name in adapter.head_width_attributes:
        setattr(attention, name, wanted.n_heads * head_dim)
    if adapter.groups_attribute is not None:
        setattr(attention, adapter.groups_attribute, wanted.n_heads // wanted.n_kv_heads)


def _resize_ffn(layer: nn.Module, wanted: LayerStructure, present: LayerStructure, adapter: Adapter) -> None:
    if not wanted.ffn_kept:
        _skip_ffn(layer, adapter)
        return
    for projection in adapter.ffn_in:
        rows = spread(wanted.ffn_kept, 1, present.ffn_width, projection.n_blocks)
        keep_outputs(linear_at(layer, projection.path), rows)
    keep_inputs(linear_at(layer, adapter.ffn_out), spread(wanted.ffn_kept, 1))


def _skip_attention(layer: nn.Module, adapter: Adapter) -> None:
    output = _constant(layer, adapter.attention_out)
    inside = adapter.attention_out.removeprefix(adapter.attention + ".")
    layer_idx = getattr(layer.get_submodule(adapter.attention), "layer_idx", None)
    if inside == adapter.attention_out:  # BERT: the output projection is a module of its own
        layer.set_submodule(adapter.attention, SkippedAttention(layer_idx, None, None))
        layer.set_submodule(adapter.attention_out, output)
    else:
        layer.set_submodule(adapter.attention, SkippedAttention(layer_idx, inside, output))


def _skip_ffn(layer: nn.Module, adapter: Adapter) -> None:
    output = _constant(layer, adapter.ffn_out)
    inside = adapter.ffn_out.removeprefix(adapter.ffn + ".")
    if inside == adapter.ffn_out:
        layer.set_submodule(adapter.ffn, SkippedFfn(None, None))
        layer.set_submodule(adapter.ffn_out, output)
    else:
        layer.set_submodule(adapter.ffn, SkippedFfn(inside, output))


def _constant(layer: nn.Module, path: str) -> ConstantOutput:
    projection = linear_at(layer, path)
    bias: nn.Parameter | None = projection.bias
    return ConstantOutput(n_outputs(projection), bias)


def _keep_layers(model: PreTrainedModel, layers_kept: tuple[int, ...], adapter: Adapter) -> None:
    layers = layers_of(model)
    if len(layers_kept) == len(layers):
        return
    parent_path, _, name = adapter.layers.rpartition(".")
    parent = model.base_model.get_submodule(parent_path)
    setattr(parent, name, nn.ModuleList([layers[number] for number in layers_kept]))
    for position, layer in enumerate(layers_of(model)):
        for module in layer.modules():
            if getattr(module, "layer_idx", None) is not None:  # the entry of the cache that this layer writes
                module.layer_idx = position  # type: ignore[assignment]
    for key in adapter.per_layer_keys:
        values = getattr(model.config, key, None)
        if values is not None:
            setattr(model.config, key, [values[number] for number in layers_kept])
    setattr(model.config, adapter.depth_key, len(layers_kept))


def _own_config(model: PreTrainedModel) -> None:
    """Give the model a config of its own: two models built from one config object must not resize each other."""
    shared = model.config
    own = copy.deepcopy(shared)
    for module in model.modules():
        if getattr(module, "config", None) is shared:
            module.config = own  # type: ignore[assignment]


def _update_config(model: PreTrainedModel, adapter: Adapter) -> None:
    layers = read_structure(model).layers
    _update_hidden(model, layers, adapter)
    widths = {layer.ffn_width for layer in layers}
    if len(widths) == 1 and widths != {0}:
        setattr(model.config, adapter.ffn_key, widths.pop())
    heads = {(layer.n_heads, layer.n_kv_heads) for layer in layers}
    if not adapter.reads_head_dim or len(heads) != 1 or heads == {(0, 0)}:
        return
    n_heads, n_kv_heads = heads.pop()
    if adapter.heads_divide_hidden and model.config.hidden_size % n_heads:
        return
    model.config.head_dim = head_dim_of(layers_of(model)[0], adapter)
    model.config.num_attention_heads = n_heads
    if adapter.keys_values:
        model.config.num_key_value_heads = n_kv_heads


def _update_hidden(model: PreTrainedModel, layers: tuple[LayerStructure, ...], adapter: Adapter) -> None:
    """State the hidden width where a stock config then builds this very model; else it stays as it was."""
    config, hidden = model.config, hidden_width(model)
    if hidden == config.hidden_size:
        return
    heads = {(layer.n_heads, layer.n_kv_heads) for layer in layers}
    head_dim = next((head_dim_of(of, adapter) for of in layers_of(model) if read_layer(of, adapter).n_heads), None)
    if head_dim is None:
        return
    if adapter.reads_head_dim:
        if adapter.heads_divide_hidden and hidden % int(getattr(config, adapter.heads_key)):
            n_heads = next(iter(heads))[0] if len(heads) == 1 else 0
            if not n_heads or hidden % n_heads:
                return
            setattr(config, adapter.heads_key, n_heads)  # with the key/value heads, below: they are uniform
        config.head_dim = head_dim
    elif {n_heads * head_dim for n_heads, _ in heads} == {hidden}:
        setattr(config, adapter.heads_key, next(iter(heads))[0])
    else:
        return
    if getattr(config, adapter.ffn_key, None) is None:  # GPT-2's None is 4 x the hidden width
        setattr(config, adapter.ffn_key, 4 * config.hidden_size)
    config.hidden_size = hidden


def _check(model: PreTrainedModel, structure: Structure, adapter: Adapter) -> None:
    present = read_structure(model)
    _check_indices("layers", structure.layers_kept, len(present.layers), where="the model")
    if not structure.layers_kept:
        raise CheckpointError("a structure must keep at least one layer")
    if structure.hidden_kept is not None:
        _check_indices("hidden channels", structure.hidden_kept, hidden_width(model), where="the model")
        if not structure.hidden_kept:
            raise CheckpointError("a structure must keep at least one hidden channel")
    if adapter.first_layer_stays and structure.layers_kept[0] != 0:
        raise UnsupportedError(
            f"layer 0 of a {model.config.model_type!r} model must stay: it is built without the norm of the others",
            hint="keep layer 0 and drop another",
        )
    prefix = tuple(range(len(structure.layers_kept)))
    if getattr(model.config, "scale_attn_by_inverse_layer_idx", False) and structure.layers_kept != prefix:
        raise UnsupportedError(
            "this model scales attention by the layer's number, which dropping an earlier layer would change",
            hint="drop only the last layers",
        )
    for number, wanted in zip(structure.layers_kept, structure.layers, strict=True):
        where, source = f"layer {number}", present.layers[number]
        _check_indices("heads", wanted.heads_kept, source.n_heads, where)
        _check_indices("key/value heads", wanted.kv_heads_kept, source.n_kv_heads, where)
        _check_indices("FFN neurons", wanted.ffn_kept, source.ffn_width, where)
        _check_groups(wanted, source, where)


def _check_indices(what: str, kept: tuple[int, ...], n_present: int, where: str) -> None:
    if any(not 0 <= index < n_present for index in kept) or list(kept) != sorted(set(kept)):
        raise CheckpointError(
            f"the structure keeps {what} that do not exist or stand out of order; there are {n_present}", where=where
        )


def _check_groups(wanted: LayerStructure, source: LayerStructure, where: str) -> None:
    """Grouped-query attention pairs query head i with key/value head i // (heads per group): groups stay equal."""
    if not wanted.heads_kept and not wanted.kv_heads_kept:
        return
    per_group = source.n_heads // source.n_kv_heads
    counts = dict.fromkeys(wanted.kv_heads_kept, 0)
    for head in wanted.heads_kept:
        if head // per_group not in counts:
            raise CheckpointError(f"query head {head} is kept but its key/value head is not", where=where)
        counts[head // per_group] += 1
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise CheckpointError(
            f"each kept key/value head must keep equally many query heads, found {counts}",
            where=where,
            hint="prune whole key/value groups",
        )
