"""What a pruned model kept of its source, as plain data: no torch, no model, one JSON object.

Two readers need it. A loader needs the shapes (`Structure.reload`): it builds the stock model and resizes its layers
before the weights arrive, because a Hugging Face config can say neither "4 of 12 heads" (BERT and GPT-2 derive the head
size from the head count) nor widths that differ between layers. A person needs the provenance: which original heads,
neurons and layers these are (`Structure.then` keeps that true when a pruned model is pruned again).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from compressor.errors import CheckpointError

KINDS = ATTENTION, FFN = "attention", "ffn"


@dataclass(frozen=True)
class LayerStructure:
    """One kept layer. Indices count within the source layer; an empty tuple means that the sublayer is gone.

    Attributes:
        heads_kept: query heads.
        kv_heads_kept: key/value heads; equal to `heads_kept` where every query head has its own.
        ffn_kept: FFN neurons (the width between the two projections).
    """

    heads_kept: tuple[int, ...]
    kv_heads_kept: tuple[int, ...]
    ffn_kept: tuple[int, ...]

    @property
    def n_heads(self) -> int:
        return len(self.heads_kept)

    @property
    def n_kv_heads(self) -> int:
        return len(self.kv_heads_kept)

    @property
    def ffn_width(self) -> int:
        return len(self.ffn_kept)

    @property
    def skip(self) -> frozenset[str]:
        """Sublayers that are gone; their residual (and, where there is one, their output bias) stays."""
        gone = {ATTENTION} if not self.heads_kept else set()
        return frozenset(gone | ({FFN} if not self.ffn_kept else set()))

    def reload(self) -> LayerStructure:
        """The same shapes, counted from 0: what is kept of a module that has these shapes already."""
        return full_layer(self.n_heads, self.n_kv_heads, self.ffn_width)


@dataclass(frozen=True)
class Structure:
    """What is kept of a source model.

    Attributes:
        layers_kept: source layers, in order; one entry of `layers` each.
        layers: what is kept inside each of them.
        hidden_kept: channels of the residual stream, the same in the whole model; None where all stay.
    """

    layers_kept: tuple[int, ...]
    layers: tuple[LayerStructure, ...] = field(default=())
    hidden_kept: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.layers_kept) != len(self.layers):
            raise ValueError(f"{len(self.layers_kept)} layers kept but {len(self.layers)} described")

    def reload(self) -> Structure:
        """The shapes alone, relative to a stock model that already has the kept number of layers."""
        hidden = None if self.hidden_kept is None else tuple(range(len(self.hidden_kept)))
        return Structure(tuple(range(len(self.layers))), tuple(layer.reload() for layer in self.layers), hidden)

    def then(self, later: Structure) -> Structure:
        """This structure followed by a later one (its indices count within ours), in terms of our source."""
        layers = []
        for position, layer in zip(later.layers_kept, later.layers, strict=True):
            first = self.layers[position]
            layers.append(
                LayerStructure(
                    heads_kept=tuple(first.heads_kept[i] for i in layer.heads_kept),
                    kv_heads_kept=tuple(first.kv_heads_kept[i] for i in layer.kv_heads_kept),
                    ffn_kept=tuple(first.ffn_kept[i] for i in layer.ffn_kept),
                )
            )
        hidden = self.hidden_kept if later.hidden_kept is None else later.hidden_kept
        if self.hidden_kept is not None and later.hidden_kept is not None:
            hidden = tuple(self.hidden_kept[i] for i in later.hidden_kept)
        return Structure(tuple(self.layers_kept[i] for i in later.layers_kept), tuple(layers), hidden)

    def to_json(self) -> dict[str, Any]:
        """Counts for the loader, kept indices (as ranges, "0-3,7") for provenance."""
        hidden = {}
        if self.hidden_kept is not None:
            hidden = {"hidden_width": len(self.hidden_kept), "hidden_kept": write_ranges(self.hidden_kept)}
        return {
            **hidden,
            "layers_kept": write_ranges(self.layers_kept),
            "layers": [
                {
                    "n_heads": layer.n_heads,
                    "n_kv_heads": layer.n_kv_heads,
                    "ffn_width": layer.ffn_width,
                    "skip": sorted(layer.skip),
                    "heads_kept": write_ranges(layer.heads_kept),
                    "kv_heads_kept": write_ranges(layer.kv_heads_kept),
                    "ffn_kept": write_ranges(layer.ffn_kept),
                }
                for layer in self.layers
            ],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Structure:
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: a missing key, or counts that contradict the indices.
        """
        try:
            layers = tuple(
                LayerStructure(*(read_ranges(layer[key]) for key in ("heads_kept", "kv_heads_kept", "ffn_kept")))
                for layer in value["layers"]
            )
            counts = [(layer["n_heads"], layer["n_kv_heads"], layer["ffn_width"]) for layer in value["layers"]]
            hidden = read_ranges(value["hidden_kept"]) if "hidden_kept" in value else None
            structure = cls(read_ranges(value["layers_kept"]), layers, hidden)
            if hidden is not None and len(hidden) != value["hidden_width"]:
                raise ValueError(f"{len(hidden)} hidden channels kept where the width is {value['hidden_width']}")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the structure in the manifest cannot be read: {error!r}") from error
        for number, (layer, expected) in enumerate(zip(layers, counts, strict=True)):
            found = (layer.n_heads, layer.n_kv_heads, layer.ffn_width)
            if found != expected:
                raise CheckpointError(
                    f"the structure in the manifest contradicts itself at layer {number}: "
                    f"counts {expected}, indices {found} (heads, key/value heads, FFN width)"
                )
        return structure


def full_layer(n_heads: int, n_kv_heads: int, ffn_width: int) -> LayerStructure:
    """A layer that keeps everything."""
    return LayerStructure(tuple(range(n_heads)), tuple(range(n_kv_heads)), tuple(range(ffn_width)))


def write_ranges(indices: Iterable[int]) -> str:
    """Increasing indices as text: (0, 1, 2, 7) is "0-2,7". Half of 3072 neurons stay readable and small."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def read_ranges(text: str) -> tuple[int, ...]:
    """The indices that `write_ranges` wrote.

    Raises:
        ValueError: something that is not a number or a range.
    """
    indices: list[int] = []
    for run in text.split(",") if text else []:
        first, _, last = run.partition("-")
        indices.extend(range(int(first), int(last or first) + 1))
    return tuple(indices)
