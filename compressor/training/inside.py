"""What a model computes on its way to an answer: embeddings, hidden states, queries, keys and values of a layer.

Hidden states come with the model's own output. Queries, keys and values do not, in any model; they are the outputs of
the projections that the architecture's adapter names, and a forward hook reads them there. From queries and keys the
attention scores follow (before rotary embeddings, where a model has them), at a (heads x d)-wide vector for each token
instead of a (heads x T)-wide one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from compressor.methods.surgery import Adapter, adapter_for, head_dim_of, layers_of, read_layer
from compressor.methods.surgery.adapters import Projection

What = Literal["embeddings", "hidden", "query", "key", "value"]
VECTORS: tuple[What, ...] = ("query", "key", "value")


@dataclass(frozen=True, order=True)
class Place:
    """One thing to look at in one layer (counted from 0; embeddings are at 0)."""

    what: What
    layer: int = 0

    @property
    def name(self) -> str:
        """As a file is called."""
        return f"{self.what}_{self.layer:02d}"


@dataclass(frozen=True)
class Heads:
    """How many heads a layer's attention has, and how wide each is; 0 heads where the sublayer is gone."""

    query: int
    key_value: int
    size: int

    def of(self, what: What) -> int:
        """Heads of one kind of vector."""
        return self.query if what == "query" else self.key_value

    def width(self, what: What) -> int:
        """Width of one kind of vector, all heads side by side."""
        return self.of(what) * self.size


def heads_of(model: PreTrainedModel) -> tuple[Heads, ...]:
    """Head counts of each layer, as they are after any pruning."""
    adapter = adapter_for(model)
    return tuple(_heads(layer, adapter) for layer in layers_of(model))


def _heads(layer: nn.Module, adapter: Adapter) -> Heads:
    kept = read_layer(layer, adapter)
    return Heads(kept.n_heads, kept.n_kv_heads, head_dim_of(layer, adapter) if kept.n_heads else 0)


class Inside:
    """Looks into a model while it is open: hooks where there have to be, and nothing where the output says it.

    Args:
        model: the module itself, not a wrapper around it.
        places: what to look at.
    """

    def __init__(self, model: nn.Module, places: Iterable[Place]) -> None:
        self.places = tuple(sorted(set(places)))
        self.wants_hidden = any(place.what in ("embeddings", "hidden") for place in self.places)
        self._found: dict[Place, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        wanted = {place for place in self.places if place.what in VECTORS}
        if not wanted:
            return
        body = getattr(model, "body", model)  # an embedder's encoder stands inside what pools its vectors
        assert isinstance(body, PreTrainedModel)
        adapter, layers = adapter_for(body), layers_of(body)
        for number in sorted({place.layer for place in wanted}):
            blocks = _blocks((*adapter.queries, *adapter.keys_values))
            for projection, vectors in blocks.items():
                module = layers[number].get_submodule(projection.path)
                places_here = [Place(what, number) for what in vectors]
                if wanted.intersection(places_here):
                    self._handles.append(module.register_forward_hook(partial(self._keep, places_here)))

    def __enter__(self) -> Inside:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks out again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._found.clear()

    def take(self, outputs: Any) -> dict[Place, Tensor]:
        """What the forward pass that gave `outputs` went through, each (B, T, width)."""
        found = {place: self._found[place] for place in self.places if place.what in VECTORS}
        self._found.clear()
        for place in self.places:
            if place.what == "embeddings":
                found[place] = outputs.hidden_states[0]
            elif place.what == "hidden":
                found[place] = outputs.hidden_states[place.layer + 1]
        return found

    def _keep(self, places: Sequence[Place], module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for place, block in zip(places, output.chunk(len(places), dim=-1), strict=True):
            self._found[place] = block


def _blocks(projections: Iterable[Projection]) -> Mapping[Projection, tuple[What, ...]]:
    """Which of query, key and value each projection gives; a fused one gives all three."""
    left = list(VECTORS)
    return {each: tuple(left.pop(0) for _ in range(each.n_blocks)) for each in projections}
