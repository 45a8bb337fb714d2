"""Try options on a model and put it back: units ranked once, any level refitted, alone or all together.

One trial serves the scores of single options and the true loss of whole choices: moments are collected once, and the
weights of an option are solved once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.methods.calibration import Batch, collect_moments, mask_gradients, output_paths
from compressor.methods.importance import Moments, keep_best
from compressor.methods.judging import Judge, Score
from compressor.methods.pruning import Recovery, refit
from compressor.methods.recovery import Target, dense_target
from compressor.methods.structure import ATTENTION, LayerStructure
from compressor.methods.surgery import adapter_for, layers_of, read_structure
from compressor.methods.surgery.slicing import Linear, linear_at, weight_of
from compressor.methods.units import (
    GRADIENT_BASED,
    Importance,
    kept_columns,
    kept_layer,
    n_units,
    round_units,
    score_units,
    unit_columns,
)

Precision = Literal["fp32", "int8"]
SEVEN_LEVELS = tuple(step / 6 for step in range(7))


@dataclass(frozen=True)
class Place:
    """One sublayer of the dense model, and what is known of its inputs.

    Attributes:
        layer, kind: which.
        described: its layer's shape.
        counts: units to try keeping, increasing; everything is the last.
        ranking: (n_units,) scores.
        projection: its output projection.
        inputs: its other projections.
        moments, target: of the projection's inputs and outputs.
        columns: (n_units, columns per unit).
    """

    layer: int
    kind: str
    described: LayerStructure
    counts: tuple[int, ...]
    ranking: Tensor
    projection: Linear
    inputs: tuple[Linear, ...]
    moments: Moments
    target: Target
    columns: Tensor

    def best(self, count: int) -> tuple[int, ...]:
        """The units that stay when so many do."""
        return keep_best(self.ranking, count)

    def size(self, kept: Sequence[int]) -> int:
        """What a cost table counts of these units: query heads or neurons."""
        layer = kept_layer(self.described, {self.kind: kept})
        return layer.n_heads if self.kind == ATTENTION else layer.ffn_width


class Trial:
    """A model, its calibration moments, and a judge of its answers. The model is as it was after every call.

    Args:
        as those of `choosing.score_options`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batches: Iterable[Batch],
        *,
        score_batches: Iterable[Batch] | None = None,
        score: Score = "kl",
        importance: Importance = "block_obs",
        recovery: Recovery = "ridge",
        levels: Sequence[float] = SEVEN_LEVELS,
        ffn_granule: int = 64,
    ) -> None:
        batches = list(batches)
        self.model, self.recovery = model, recovery
        self.source = read_structure(model)
        adapter, layers = adapter_for(model), layers_of(model)
        moments = collect_moments(model, batches)
        gradients = mask_gradients(model, batches) if importance in GRADIENT_BASED else [{} for _ in layers]
        self.judge = Judge(model, batches if score_batches is None else list(score_batches), score)
        self.places = []
        for number, layer in enumerate(layers):
            described = self.source.layers[number]
            for kind, collected in moments[number].items():
                projection = linear_at(layer, output_paths(adapter)[kind])
                columns = unit_columns(layer, described, kind, adapter)
                weight = weight_of(projection).detach().cpu()
                bias = None if projection.bias is None else projection.bias.detach().cpu()
                *before, _ = adapter.paths(kind)
                units, granule = n_units(described, kind), 1 if kind == ATTENTION else ffn_granule
                self.places.append(
                    Place(
                        layer=number,
                        kind=kind,
                        described=described,
                        counts=tuple(sorted({round_units(level, units, granule) for level in levels} | {units})),
                        ranking=score_units(importance, weight, collected, columns, gradients[number].get(kind)),
                        projection=projection,
                        inputs=tuple(linear_at(layer, path) for path in before),
                        moments=collected,
                        target=dense_target(collected, weight, bias),
                        columns=columns,
                    )
                )
        self._solved: dict[tuple[int, tuple[int, ...]], tuple[Tensor, Tensor | None]] = {}

    @property
    def widest_refit(self) -> int:
        """Columns of the largest solve that any option asks for; 0 where nothing is solved."""
        if self.recovery not in ("ridge", "scales"):
            return 0
        refitted = (
            count * place.columns.shape[1]
            for place in self.places
            for count in place.counts
            if count < n_units(place.described, place.kind)
        )
        return max(refitted, default=0)

    def loss_of_one(self, place: Place, kept: Sequence[int], precision: Precision = "fp32") -> float:
        """The model's loss with this sublayer alone replaced. Places are best asked for in order."""
        if len(kept) == n_units(place.described, place.kind) and precision == "fp32":
            return 0.0
        self.judge.move_to(place.layer)
        with self._replaced(place, tuple(kept), precision):
            return self.judge.loss()

    def loss_of_all(self, choice: Sequence[tuple[Sequence[int], Precision]]) -> float:
        """The model's true loss with every sublayer replaced at once; one (kept units, precision) for each place."""
        self.judge.move_back()
        with ExitStack() as stack:
            for place, (kept, precision) in zip(self.places, choice, strict=True):
                if len(kept) < n_units(place.described, place.kind) or precision != "fp32":
                    stack.enter_context(self._replaced(place, tuple(kept), precision))
            return self.judge.loss()

    def _weights(self, place: Place, kept: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        """(out, d) with removed columns zero and the others refitted, and the bias; solved once."""
        key = id(place), kept
        if key not in self._solved:
            new_weight, new_bias = refit(
                place.projection, place.moments, place.target, place.columns, kept, self.recovery
            )
            full = torch.zeros(weight_of(place.projection).shape, dtype=new_weight.dtype)
            full[:, kept_columns(place.columns, kept)] = new_weight
            self._solved[key] = full, new_bias
        return self._solved[key]

    @contextmanager
    def _replaced(self, place: Place, kept: tuple[int, ...], precision: Precision) -> Iterator[None]:
        """The dense sublayer as if pruned, refitted and (for INT8) quantised."""
        with ExitStack() as stack:
            if len(kept) < n_units(place.described, place.kind):
                weight, bias = self._weights(place, kept)
            else:
                weight, bias = weight_of(place.projection).detach().clone(), place.projection.bias
            if precision == "int8":
                weight = fake_int8(weight)
                for one in place.inputs:
                    stack.enter_context(_swapped(one, fake_int8(weight_of(one).detach()), one.bias))
            stack.enter_context(_swapped(place.projection, weight, bias))
            yield


def fake_int8(weight: Tensor) -> Tensor:
    """Weights rounded to 255 levels per output and back, as dynamic INT8 stores them (per channel, symmetric).

    Args:
        weight: (out, d).
    """
    scale = weight.abs().amax(dim=1, keepdim=True) / 127.0
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (weight / scale).round().clamp(-127, 127) * scale


@contextmanager
def _swapped(linear: Linear, weight: Tensor, bias: Tensor | None) -> Iterator[None]:
    """Other values in a linear map while inside."""
    own: nn.Parameter | None = linear.bias
    old_weight, old_bias = weight_of(linear).detach().clone(), None if own is None else own.detach().clone()
    with torch.no_grad():
        weight_of(linear).copy_(weight)
        if own is not None and bias is not None:
            own.copy_(bias)
    try:
        yield
    finally:
        with torch.no_grad():
            weight_of(linear).copy_(old_weight)
            if own is not None and old_bias is not None:
                own.copy_(old_bias)
