"""torch-pruning (1.6.1) as the one that groups and ranks, for comparison with our own; our surgery then applies it.

It was seen to prune nothing on GPT-2 (its `Conv1D` is no pruning root) and not to come to an end on grouped-query
models, so both are refused before it starts; and whatever it comes to leave alone is an error and no success. Its own
slicing is not used: it leaves configs, head counts and reloading to the caller, which is what `apply_structure` does.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compressor.errors import MissingPackageError, StageError, UnsupportedError
from compressor.methods.calibration import evaluating
from compressor.methods.structure import ATTENTION, FFN, Structure
from compressor.methods.surgery import adapter_for, apply_structure, head_dim_of, layers_of, read_structure
from compressor.methods.surgery.slicing import linear_at
from compressor.methods.units import kept_layer

SUPPORTED = ("bert", "camembert", "roberta", "xlm-roberta", "llama")
"""Seen to work. Llama only where each query head has its own key and value."""


def prune_by_torch_pruning(
    model: PreTrainedModel, batch: Mapping[str, Tensor], *, heads: float = 1.0, ffn: float = 1.0, granule: int = 64
) -> Structure:
    """Keep fractions of every layer's heads and neurons by the library's grouped magnitude, in place; no recovery.

    Args:
        batch: one calibration batch; the library follows its gradients' graph.
        heads, ffn: fractions to keep.
        granule: FFN widths are multiples of this.

    Raises:
        MissingPackageError: torch-pruning is not installed.
        UnsupportedError: an architecture that it is known to fail on.
        StageError: it pruned nothing where something was asked for.
    """
    check_supported(model)
    wanted = {kind: fraction for kind, fraction in ((ATTENTION, heads), (FFN, ffn)) if fraction < 1.0}
    before, removed = read_structure(model), _ask(model, batch, wanted, granule)
    layers = []
    for number, layer in enumerate(before.layers):
        sizes = {ATTENTION: layer.n_kv_heads, FFN: layer.ffn_width}
        for kind in wanted:
            if not removed.get((number, kind)):
                raise StageError(
                    f"torch-pruning pruned nothing of the {kind} sublayer of layer {number}, without a word",
                    hint="use the built-in backend, or ask for a smaller fraction or granule",
                )
        kept = {kind: tuple(i for i in range(sizes[kind]) if i not in removed[number, kind]) for kind in wanted}
        layers.append(kept_layer(layer, kept))
    structure = Structure(before.layers_kept, tuple(layers))
    apply_structure(model, structure)
    return structure


def check_supported(model: PreTrainedModel) -> None:
    """Refuse what the library cannot prune, before it is asked.

    Raises:
        MissingPackageError, UnsupportedError: as `prune_by_torch_pruning`.
    """
    if importlib.util.find_spec("torch_pruning") is None:
        raise MissingPackageError("torch_pruning", extra="torch-pruning", needed_for="the backend torch-pruning")
    model_type = model.config.model_type
    why = None
    if model_type == "gpt2":
        why = "it finds nothing to prune in Conv1D layers and says nothing"
    elif model_type not in SUPPORTED:
        why = f"it was only seen to work on {', '.join(SUPPORTED)}"
    elif any(layer.n_heads != layer.n_kv_heads for layer in read_structure(model).layers):
        why = "it does not come to an end where query heads share keys and values"
    elif any(layer.skip for layer in read_structure(model).layers):
        why = "sublayers that were removed already are unknown to it"
    if why is not None:
        raise UnsupportedError(
            f"torch-pruning 1.6.1 cannot prune this {model_type!r} model: {why}", hint="use `backend: built-in`"
        )


def _ask(
    model: PreTrainedModel, batch: Mapping[str, Tensor], wanted: Mapping[str, float], granule: int
) -> dict[tuple[int, str], set[int]]:
    """Units that the library would remove, by layer and kind; the model is left as it is."""
    import torch_pruning as tp

    adapter, ratios = adapter_for(model), dict[Any, float]()
    places: dict[Any, tuple[int, str, int]] = {}  # a group's root -> layer, kind, rows of one unit
    num_heads, ignored = {}, []
    for number, layer in enumerate(layers_of(model)):
        inside = {ATTENTION: [projection.path for projection in adapter.queries + adapter.keys_values]}
        inside[FFN] = [projection.path for projection in adapter.ffn_in]
        for kind, paths in inside.items():
            for path in paths:
                linear = linear_at(layer, path)
                places[linear] = (number, kind, head_dim_of(layer, adapter) if kind == ATTENTION else 1)
                if kind == ATTENTION:
                    num_heads[linear] = read_structure(model).layers[number].n_heads
                if kind in wanted:
                    ratios[linear] = 1.0 - wanted[kind]
                else:
                    ignored.append(linear)
    example = {
        name: value for name, value in batch.items() if name in ("input_ids", "attention_mask", "token_type_ids")
    }
    with evaluating(model), torch.enable_grad(), warnings.catch_warnings():  # a key/value cache would send it round
        warnings.filterwarnings("ignore", message="Unwrapped parameters")  # norms, which it slices along
        pruner = tp.pruner.BasePruner(
            model.base_model,
            example,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.0,
            pruning_ratio_dict=ratios,
            ignored_layers=ignored,
            num_heads=num_heads,
            prune_num_heads=ATTENTION in wanted,
            prune_head_dims=False,
            head_pruning_ratio=1.0 - wanted.get(ATTENTION, 1.0),
            round_to=granule if FFN in wanted else None,
            in_channel_groups={},  # its defaults are shared dicts that keep earlier models alive
            out_channel_groups={},
            output_transform=lambda output: output[0],
        )
        removed: dict[tuple[int, str], set[int]] = {}
        for group in pruner.step(interactive=True):
            found = [
                (*places[item.dep.target.module], item.idxs)
                for item in group
                if item.dep.target.module in places and pruner.DG.is_out_channel_pruning_fn(item.dep.handler)
            ]
            if not found:
                raise StageError(f"torch-pruning would also prune {group[0].dep.target.name}, which nobody asked for")
            for number, kind, width, rows in found:
                removed.setdefault((number, kind), set()).update(int(row) // width for row in rows)
    return removed
