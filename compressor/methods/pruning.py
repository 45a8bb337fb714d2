"""Prune a model layer by layer: measure on what is already pruned, choose, refit, slice.

Each sublayer's inputs are collected behind the pruned layers before it, and its output projection is refitted towards
what the dense model would have put into the residual there: Y + x_dense - x_pruned, so that later sublayers repair
what earlier ones lost (Kwon et al., arXiv 2204.09656, section 4.3, for the corrected target; ZipLM, arXiv 2302.04089,
for the order of removal). No training and no labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.errors import DataError, StageError, UnsupportedError, UserError
from compressor.methods.calibration import (
    Batch,
    LayerCall,
    MomentSums,
    evaluating,
    mask_gradients,
    output_paths,
    run_layer,
    trace_layers,
)
from compressor.methods.importance import Moments, equal_groups, keep_best
from compressor.methods.recovery import Target, mean_bias, ridge, unit_scales
from compressor.methods.structure import ATTENTION, FFN, LayerStructure, Structure
from compressor.methods.surgery import (
    Adapter,
    adapter_for,
    apply_structure,
    layers_of,
    read_layer,
    read_structure,
    require_change,
    resize_layer,
)
from compressor.methods.surgery.slicing import Linear, linear_at, set_weight, weight_of
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

Recovery = Literal["ridge", "bias", "scales", "none"]
Kept = float | Sequence[int] | None
TOKENS_PER_COLUMN = 8
"""Calibration tokens that a ridge needs for each column that it solves for; fewer overfit."""


@dataclass(frozen=True)
class _Method:
    """How units are chosen and the rest refitted."""

    importance: Importance
    recovery: Recovery
    damping: float
    block: int


@dataclass
class _States:
    """Hidden states before the current layer, per batch: of the dense model and behind the pruned layers."""

    dense: list[Tensor]
    pruned: list[Tensor]


def prune_model(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    *,
    heads: Kept = None,
    ffn: Kept = None,
    importance: Importance = "block_obs",
    recovery: Recovery = "ridge",
    ffn_granule: int = 64,
    damping: float = 1e-2,
    block: int = 64,
    tokens_per_column: int = TOKENS_PER_COLUMN,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[PreTrainedModel, Structure]:
    """Prune heads and FFN neurons in place, layer by layer, and refit what is left.

    Args:
        model: any supported architecture, with whatever head; already pruned models too.
        batches: calibration inputs (tensors for the model's forward), read several times; labels only for taylor and
            fisher.
        heads: fraction of heads to keep in every layer, or query heads to keep per layer (0 removes the sublayer and
            keeps its residual); whole key/value groups in either case. None keeps all.
        ffn: the same for FFN neurons.
        importance: how units are ranked.
        recovery: "ridge" (default), FLAP's "bias", Kwon's "scales", or "none".
        ffn_granule: FFN widths that come from a fraction are rounded to multiples of this.
        damping: ridge strength as a share of the mean diagonal.
        block: neurons that leave at a time in block_obs.
        tokens_per_column: calibration tokens that the ridge needs for each column it solves for; fewer overfit.
        on_progress: called with (layers done, layers in all).

    Returns:
        The same model, resized, and what was kept of its source.

    Raises:
        UnsupportedError: an architecture without an adapter, or "bias" recovery where projections have no bias.
        DataError: no calibration data, only padding, or too little of it.
        StageError: nothing would be removed.
        UserError: fractions or counts that make no sense.
    """
    batches = list(batches)
    before = read_structure(model)
    counts = kept_counts(before, heads=heads, ffn=ffn, ffn_granule=ffn_granule)
    _require_removal(before, counts)
    method = _Method(importance, recovery, damping, block)
    trace = trace_layers(model, batches)
    if recovery in ("ridge", "scales"):
        require_tokens(trace.n_tokens, _widest_refit(model, before, counts), tokens_per_column)
    gradients = mask_gradients(model, batches) if importance in GRADIENT_BASED else None
    adapter, states, layers = adapter_for(model), _States(list(trace.hidden), list(trace.hidden)), []
    with evaluating(model):
        for number, layer in enumerate(layers_of(model)):
            of_layer = gradients[number] if gradients is not None else {}
            run = _LayerRun(layer, adapter, [calls[number] for calls in trace.calls], trace.masks)
            layers.append(_prune_layer(run, counts[number], states, method, of_layer))
            if on_progress is not None:
                on_progress(number + 1, len(counts))
    structure = Structure(before.layers_kept, tuple(layers))
    require_change(before, structure)
    apply_structure(model, read_structure(model))  # nothing left to slice: brings the config up to date
    return model, structure


def kept_counts(
    structure: Structure, *, heads: Kept = None, ffn: Kept = None, ffn_granule: int = 64
) -> list[dict[str, int]]:
    """Units to keep per layer and kind of sublayer, from fractions or counts; sublayers that keep all are left out.

    Raises:
        UserError: a fraction outside 0..1, a list of another length than the depth, a count that is out of range or
            splits a key/value group.
    """
    counts: list[dict[str, int]] = []
    for number, layer in enumerate(structure.layers):
        wanted: dict[str, int] = {}
        if heads is not None:
            per_group = layer.n_heads // max(1, layer.n_kv_heads)
            if isinstance(heads, int | float):
                wanted[ATTENTION] = round_units(heads, layer.n_kv_heads, 1)
            else:
                n_kept = _entry(heads, number, structure, "heads", layer.n_heads)
                if per_group and n_kept % per_group:
                    raise UserError(
                        f"layer {number} cannot keep {n_kept} query heads: they leave in groups of {per_group}",
                        hint=f"keep a multiple of {per_group}",
                    )
                wanted[ATTENTION] = n_kept // max(1, per_group)
        if ffn is not None:
            if isinstance(ffn, int | float):
                wanted[FFN] = round_units(ffn, layer.ffn_width, ffn_granule)
            else:
                wanted[FFN] = _entry(ffn, number, structure, "FFN neurons", layer.ffn_width)
        counts.append({kind: count for kind, count in wanted.items() if count != n_units(layer, kind)})
    return counts


def _entry(values: Sequence[int], number: int, structure: Structure, what: str, present: int) -> int:
    if len(values) != len(structure.layers):
        raise UserError(f"{len(values)} counts of {what} for {len(structure.layers)} layers", hint="give one per layer")
    if not 0 <= values[number] <= present:
        raise UserError(f"layer {number} has {present} {what} and cannot keep {values[number]}")
    return values[number]


def _require_removal(structure: Structure, counts: list[dict[str, int]]) -> None:
    if not any(counts):
        raise StageError(
            "nothing would be removed: every layer keeps all its heads and FFN neurons",
            hint="ask for a smaller kept fraction, or a smaller FFN granule on a small model",
        )


def _widest_refit(model: PreTrainedModel, structure: Structure, counts: list[dict[str, int]]) -> int:
    """Columns of the largest of the solves."""
    adapter, widest = adapter_for(model), 0
    for layer, described, kept in zip(layers_of(model), structure.layers, counts, strict=True):
        for kind, count in kept.items():
            widest = max(widest, count * unit_columns(layer, described, kind, adapter).shape[1])
    return widest


def require_tokens(n_tokens: int, n_columns: int, per_column: int = TOKENS_PER_COLUMN) -> None:
    """Refuse calibration data that a ridge over so many columns would overfit.

    Raises:
        DataError: too few tokens; how many are needed is said.
    """
    needed = per_column * n_columns
    if n_tokens < needed:
        raise DataError(
            f"{n_tokens} calibration tokens are too few to refit {n_columns} columns: {needed} are needed "
            f"({per_column} for each)",
            hint=f"give about {needed / max(1, n_tokens):.1f} times as much text, such as by a larger "
            "data.calibration_rows",
        )


def _prune_layer(
    run: _LayerRun, counts: dict[str, int], states: _States, method: _Method, gradients: dict[str, Tensor]
) -> LayerStructure:
    """Prune one layer's sublayers in turn, and move the states behind it."""
    original = read_layer(run.layer, run.adapter)
    dense_after, outputs, residuals = run.dense(states.dense)
    kept: dict[str, tuple[int, ...]] = {}
    for kind in (ATTENTION, FFN):  # the order of the forward pass: the FFN sees the pruned attention
        if kind in counts:
            sums = run.collect(kind, states.pruned, outputs[kind], residuals[kind])
            kept[kind] = _prune_sublayer(run, kind, counts[kind], sums, method, gradients.get(kind))
    states.dense, states.pruned = dense_after, run.forward(states.pruned)
    return kept_layer(original, kept)


@dataclass(frozen=True)
class _LayerRun:
    """One layer and how it is called on every batch."""

    layer: nn.Module
    adapter: Adapter
    calls: list[LayerCall]
    masks: list[Tensor]

    def forward(self, states: list[Tensor]) -> list[Tensor]:
        return [run_layer(self.layer, call, hidden)[0] for call, hidden in zip(self.calls, states, strict=True)]

    def dense(self, states: list[Tensor]) -> tuple[list[Tensor], dict[str, list[Tensor]], dict[str, list[Tensor]]]:
        """What the layer gives, what its two output projections give, and the residuals that these are added to."""
        paths, residual = output_paths(self.adapter), self.adapter.ffn_residual
        after: list[Tensor] = []
        outputs: dict[str, list[Tensor]] = {kind: [] for kind in paths}
        residuals: dict[str, list[Tensor]] = {ATTENTION: list(states), FFN: []}
        for call, hidden in zip(self.calls, states, strict=True):
            output, taps = run_layer(self.layer, call, hidden, (residual,), tuple(paths.values()))
            after.append(output)
            residuals[FFN].append(taps[f"in:{residual}"])
            for kind, path in paths.items():
                outputs[kind].append(taps[f"out:{path}"])
        return after, outputs, residuals

    def collect(self, kind: str, states: list[Tensor], outputs: list[Tensor], residuals: list[Tensor]) -> MomentSums:
        """Moments of a projection's inputs behind the pruned layers, towards the residual-corrected target."""
        sums, path, residual = MomentSums(), output_paths(self.adapter)[kind], self.adapter.ffn_residual
        for call, hidden, mask, output, dense_residual in zip(
            self.calls, states, self.masks, outputs, residuals, strict=True
        ):
            _, taps = run_layer(self.layer, call, hidden, (path, residual))
            own_residual = hidden if kind == ATTENTION else taps[f"in:{residual}"]
            drift = 0.0 if self.adapter.output_is_normed else dense_residual - own_residual
            sums.add(taps[f"in:{path}"], mask, output + drift)
        return sums


def _prune_sublayer(
    run: _LayerRun, kind: str, count: int, sums: MomentSums, method: _Method, gradients: Tensor | None
) -> tuple[int, ...]:
    """Choose units, slice the sublayer and write its refitted output projection; gives the kept units."""
    present, path = read_layer(run.layer, run.adapter), output_paths(run.adapter)[kind]
    projection = linear_at(run.layer, path)
    bias: nn.Parameter | None = projection.bias
    columns = unit_columns(run.layer, present, kind, run.adapter)
    scores = score_units(
        method.importance, weight_of(projection).detach().cpu(), sums.moments(), columns, gradients, method.block
    )
    kept = keep_best(scores, count)
    weight, new_bias = refit(projection, sums.moments(), sums.target(), columns, kept, method.recovery, method.damping)
    resize_layer(run.layer, kept_layer(present, {kind: kept}), run.adapter)
    with torch.no_grad():
        if kept:
            set_weight(linear_at(run.layer, path), weight.to(projection.weight.device))
        if bias is not None and new_bias is not None:
            bias.copy_(new_bias)
    return kept


def refit(
    projection: Linear,
    moments: Moments,
    target: Target,
    columns: Tensor,
    kept: Sequence[int],
    recovery: Recovery,
    damping: float = 1e-2,
) -> tuple[Tensor, Tensor | None]:
    """The dense output projection refitted to its kept units.

    Args:
        projection: still dense.
        moments, target: of all its inputs.
        columns: (n_units, columns per unit).
        kept: units, in order.

    Returns:
        (out, k) weight of the kept columns and the (out,) bias, if there is one.

    Raises:
        UnsupportedError: "bias" without a bias.
    """
    weight = weight_of(projection).detach().cpu()
    bias = None if projection.bias is None else projection.bias.detach().cpu()
    chosen = kept_columns(columns, kept)
    kept_weight, kept_moments = weight[:, chosen], moments.select(chosen)
    kept_target = Target(target.cross[chosen], target.total)
    if recovery == "ridge":
        return ridge(kept_moments, kept_target, kept_weight, bias, damping)
    if recovery == "scales" and len(kept):
        groups = equal_groups(len(kept), columns.shape[1])
        scales = unit_scales(kept_moments, kept_target, kept_weight, groups, bias)
        return kept_weight * scales.repeat_interleave(columns.shape[1]).to(kept_weight.dtype), bias
    if recovery == "bias":
        if bias is None:
            raise UnsupportedError(
                "recovery by bias needs output projections with a bias, which this model does not have",
                hint="use the ridge recovery",
            )
        removed = torch.ones(weight.shape[1], dtype=torch.bool)
        removed[chosen] = False
        return kept_weight, mean_bias(moments.mean, removed.nonzero().squeeze(1), weight, bias)
    return kept_weight, bias
