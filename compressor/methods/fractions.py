"""Prune a model to fixed fractions of what it has: layers, sublayers, heads and neurons, hidden width, in this order.

What leaves first makes what follows cheaper, and heads and neurons are ranked and refitted on the model that is left.
The hidden width goes last: nothing refits it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from transformers import PreTrainedModel

from compressor.errors import StageError
from compressor.methods.calibration import Batch
from compressor.methods.depth import DepthBy, layers_to_keep, sublayers_to_keep
from compressor.methods.pruning import Recovery, prune_model
from compressor.methods.structure import ATTENTION, FFN, Structure
from compressor.methods.surgery import drop_layers, hidden_width, read_structure
from compressor.methods.units import Importance, round_units
from compressor.methods.width import prune_hidden


@dataclass(frozen=True)
class Fractions:
    """What to keep of each; 1 keeps all. See `compressor.spec.stages.Keep`."""

    layers: float = 1.0
    attention_sublayers: float = 1.0
    ffn_sublayers: float = 1.0
    hidden: float = 1.0
    heads: float = 1.0
    ffn: float = 1.0


def prune_to_fractions(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    keep: Fractions,
    *,
    depth_by: DepthBy = "kl",
    importance: Importance = "block_obs",
    recovery: Recovery = "ridge",
    granule: int = 64,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> tuple[PreTrainedModel, Structure]:
    """Prune in place, and say what is kept of the source.

    Args:
        on_progress: called with (what is done, steps done, steps in all).

    Raises:
        StageError: rounding leaves nothing to remove.
        UnsupportedError, DataError, UserError: as the single steps.
    """
    batches = list(batches)

    def telling(what: str) -> Callable[[int, int], None] | None:
        return None if on_progress is None else lambda done, of: on_progress(what, done, of)

    source = structure = read_structure(model)
    n_layers = len(source.layers)
    if (n_kept := _count(keep.layers, n_layers)) < n_layers:
        kept = layers_to_keep(model, batches, n_kept, depth_by, telling("choose layers"))
        structure = drop_layers(model, kept)
    heads, ffn = _counts(model, batches, keep, granule, telling)
    before = read_structure(model).layers
    if heads != [layer.n_heads for layer in before] or ffn != [layer.ffn_width for layer in before]:
        model, units = prune_model(
            model, batches, heads=heads, ffn=ffn, importance=importance, recovery=recovery, on_progress=telling("prune")
        )
        structure = structure.then(units)
    width = hidden_width(model)
    n_channels = width if keep.hidden == 1.0 else round_units(keep.hidden, width, granule)
    if n_channels < width:
        structure = structure.then(prune_hidden(model, batches, n_channels))
    if structure == source:
        raise StageError(
            "nothing would be removed: rounded to whole units, all that is there is kept",
            hint="ask for a smaller kept fraction, or a smaller granule on a small model",
        )
    return model, structure


def _counts(
    model: PreTrainedModel,
    batches: list[Batch],
    keep: Fractions,
    granule: int,
    telling: Callable[[str], Callable[[int, int], None] | None],
) -> tuple[list[int], list[int]]:
    """Query heads and FFN neurons to keep per layer; 0 where the sublayer leaves or has left."""
    layers = read_structure(model).layers
    staying = {}
    for kind, fraction in ((ATTENTION, keep.attention_sublayers), (FFN, keep.ffn_sublayers)):
        present = [number for number, layer in enumerate(layers) if kind not in layer.skip]
        n_kept = _count(fraction, len(present)) if present else 0
        staying[kind] = set(present)
        if n_kept < len(present):
            staying[kind] = set(sublayers_to_keep(model, batches, kind, n_kept, telling(f"choose {kind} sublayers")))
    heads, ffn = [], []
    for number, layer in enumerate(layers):
        per_group = layer.n_heads // max(1, layer.n_kv_heads)
        n_heads = round_units(keep.heads, layer.n_kv_heads, 1) * per_group
        n_neurons = layer.ffn_width if keep.ffn == 1.0 else round_units(keep.ffn, layer.ffn_width, granule)
        heads.append(n_heads if number in staying[ATTENTION] else 0)
        ffn.append(n_neurons if number in staying[FFN] else 0)
    return heads, ffn


def _count(fraction: float, present: int) -> int:
    return max(1, round(fraction * present))
