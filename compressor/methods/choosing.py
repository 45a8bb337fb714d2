"""Choose how many heads and neurons each layer keeps, by what their removal does at the end of the model.

Every option (layer, sublayer, kept units) is tried alone in the dense model, refitted, and scored on the model's own
outputs: no labels. Sums of these replace-one scores then enter a knapsack with a cost per option, measured or counted.
Local reconstruction errors instead of end-to-end scores lose about 0.02 of cosine on MiniLM at equal cost. The search
is Kwon et al.'s and ZipLM's in spirit (arXiv 2204.09656, 2302.04089), with a dynamic programme in place of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from scipy.optimize import isotonic_regression
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.errors import DataError, UserError
from compressor.methods.calibration import (
    Batch,
    Trace,
    collect_moments,
    mask_gradients,
    output_paths,
    real_tokens,
    run_layer,
    run_model,
    trace_layers,
)
from compressor.methods.importance import Moments, keep_best
from compressor.methods.knapsack import Front, pareto_front, total
from compressor.methods.losses import logit_kl
from compressor.methods.pruning import Recovery, refit
from compressor.methods.recovery import Target, dense_target
from compressor.methods.structure import ATTENTION, FFN, Structure
from compressor.methods.surgery import adapter_for, head_dim_of, layers_of, read_structure
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

Score = Literal["kl", "cosine", "mse"]
Cost: TypeAlias = Callable[[int, str, int], float]
"""Cost of a sublayer: (layer, kind, query heads or FFN neurons kept) -> any one unit, joules per token first of all."""

SEVEN_LEVELS = tuple(step / 6 for step in range(7))


@dataclass(frozen=True)
class Option:
    """One way to keep a sublayer.

    Attributes:
        kept: units (key/value groups or neurons).
        size: what a cost table counts: query heads or FFN neurons.
        loss: score of the model with only this sublayer replaced; 0 where all is kept.
    """

    kept: tuple[int, ...]
    size: int
    loss: float


@dataclass(frozen=True)
class Group:
    """All options of one sublayer, from nothing to everything."""

    layer: int
    kind: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class OptionScores:
    """What scoring found: minutes of work that know of no cost or budget, so that a budget can be moved for free."""

    source: Structure
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Choice:
    """One point of the front.

    Attributes:
        structure: units kept by the dense model's ranking; `prune_model` ranks again behind the pruned prefix.
        n_heads, ffn_widths: query heads and FFN neurons per layer, as `prune_model` takes them.
        predicted_loss: sum of replace-one scores; ignores how removals interact.
        predicted_cost, dense_cost: in the cost's unit, fixed cost included.
    """

    structure: Structure
    n_heads: tuple[int, ...]
    ffn_widths: tuple[int, ...]
    predicted_loss: float
    predicted_cost: float
    dense_cost: float


def choose_structure(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    *,
    budget_ratio: float,
    score_batches: Iterable[Batch] | None = None,
    cost: Cost | None = None,
    fixed_cost: float = 0.0,
    score: Score = "kl",
    importance: Importance = "block_obs",
    recovery: Recovery = "ridge",
    levels: Sequence[float] = SEVEN_LEVELS,
    ffn_granule: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
) -> Choice:
    """The structure of least loss within a share of the dense cost; the model is left as it was.

    `score_options` and `choose` in one call; see there for the arguments.

    Args:
        budget_ratio: of the dense cost (fixed cost included), above 0 and below 1.
        cost: multiply-accumulates per token at 128 tokens by default.

    Raises:
        UserError: a ratio outside 0..1, or one that no choice reaches (the least is named).
    """
    if not 0.0 < budget_ratio < 1.0:
        raise UserError(f"a budget ratio must lie between 0 and 1, not {budget_ratio}")
    cost = cost or macs_cost(model)
    scores = score_options(
        model,
        batches,
        score_batches=score_batches,
        score=score,
        importance=importance,
        recovery=recovery,
        levels=levels,
        ffn_granule=ffn_granule,
        on_progress=on_progress,
    )
    return choose(scores, cost, budget_ratio * dense_cost(scores.source, cost, fixed_cost), fixed_cost)


def score_options(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    *,
    score_batches: Iterable[Batch] | None = None,
    score: Score = "kl",
    importance: Importance = "block_obs",
    recovery: Recovery = "ridge",
    levels: Sequence[float] = SEVEN_LEVELS,
    ffn_granule: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
) -> OptionScores:
    """Rank units once per sublayer, refit every level, and score each alone in the dense model.

    Args:
        batches: calibration inputs for ranking and refitting.
        score_batches: inputs for the scores, best others than those (64 to 128 sequences); `batches` by default.
        score: "kl" of the logits, "cosine" of mean-pooled last hidden states (embedders), "mse" of the logits
            (regression).
        levels: kept fractions to try; FFN widths are rounded to the granule, heads to whole key/value groups.
        on_progress: called with (options scored, options in all).

    Raises:
        DataError: no calibration data, or a score that the model's outputs do not allow.
        UnsupportedError: an architecture without an adapter.
    """
    batches = list(batches)
    judged = list(score_batches) if score_batches is not None else batches
    adapter, source, layers = adapter_for(model), read_structure(model), layers_of(model)
    moments = collect_moments(model, batches)
    gradients = mask_gradients(model, batches) if importance in GRADIENT_BASED else [{} for _ in layers]
    judge = _Judge(model, judged, score)
    planned = [
        (number, kind, _level_counts(source, number, kind, levels, ffn_granule))
        for number in range(len(layers))
        for kind in moments[number]
    ]
    n_options, n_scored = sum(len(counts) for *_, counts in planned), 0
    groups = []
    for number, kind, counts in planned:
        layer, described = layers[number], source.layers[number]
        projection = linear_at(layer, output_paths(adapter)[kind])
        columns = unit_columns(layer, described, kind, adapter)
        weight = weight_of(projection).detach().cpu()
        bias = None if projection.bias is None else projection.bias.detach().cpu()
        ranking = score_units(importance, weight, moments[number][kind], columns, gradients[number].get(kind))
        target = dense_target(moments[number][kind], weight, bias)
        options = []
        for count in counts:
            kept = keep_best(ranking, count)
            loss = 0.0
            if count < n_units(described, kind):
                judge.move_to(number)
                with _replaced(projection, moments[number][kind], target, columns, kept, recovery):
                    loss = judge.loss()
            size = kept_layer(described, {kind: kept})
            options.append(Option(kept, size.n_heads if kind == ATTENTION else size.ffn_width, loss))
            n_scored += 1
            if on_progress is not None:
                on_progress(n_scored, n_options)
        groups.append(Group(number, kind, _smooth(options)))
    return OptionScores(source, tuple(groups))


def front_of(scores: OptionScores, cost: Cost) -> Front:
    """All choices worth making, for one cost table; costs without the fixed part."""
    return pareto_front(_costs(scores, cost), [[option.loss for option in group.options] for group in scores.groups])


def choose(scores: OptionScores, cost: Cost, budget: float, fixed_cost: float = 0.0) -> Choice:
    """The choice of least summed loss within an absolute budget.

    Args:
        cost: of a sublayer, in any unit.
        budget: in the same unit, for the entire model.
        fixed_cost: what no choice changes: embeddings, head, dispatch.

    Raises:
        UserError: a budget that no choice reaches; the least reachable is named.
    """
    if budget <= 0:
        raise UserError(f"a budget must be positive, not {budget:g}")
    front = front_of(scores, cost)
    least = float(front.costs[0]) + fixed_cost
    if least > budget * (1 + 1e-12):
        full = dense_cost(scores.source, cost, fixed_cost)
        raise UserError(
            f"a budget of {budget:.6g} ({budget / full:.3f} of dense) cannot be met: the least that any choice costs "
            f"is {least:.6g} ({least / full:.3f} of dense)",
            hint="raise the budget; embeddings, head and per-call costs cannot be pruned away",
        )
    choice = front.choices[front.within(budget - fixed_cost)]
    kept: list[dict[str, tuple[int, ...]]] = [{} for _ in scores.source.layers]
    for group, number in zip(scores.groups, choice, strict=True):
        kept[group.layer][group.kind] = group.options[number].kept
    layers = tuple(kept_layer(layer, units) for layer, units in zip(scores.source.layers, kept, strict=True))
    losses = [[option.loss for option in group.options] for group in scores.groups]
    return Choice(
        structure=Structure(scores.source.layers_kept, layers),
        n_heads=tuple(layer.n_heads for layer in layers),
        ffn_widths=tuple(layer.ffn_width for layer in layers),
        predicted_loss=total(losses, choice),
        predicted_cost=total(_costs(scores, cost), choice) + fixed_cost,
        dense_cost=dense_cost(scores.source, cost, fixed_cost),
    )


def dense_cost(source: Structure, cost: Cost, fixed_cost: float = 0.0) -> float:
    """What the source costs by this table."""
    return fixed_cost + sum(
        cost(number, ATTENTION, layer.n_heads) + cost(number, FFN, layer.ffn_width)
        for number, layer in enumerate(source.layers)
    )


def macs_cost(model: PreTrainedModel, n_tokens: int = 128) -> Cost:
    """Multiply-accumulates per token in a sequence of n_tokens: weights, and the two products of attention.

    A stand-in where nothing was measured: it ignores memory traffic and misaligned widths, and attention costs more
    energy per operation than the FFN does.
    """
    adapter, source, layers = adapter_for(model), read_structure(model), layers_of(model)
    hidden = int(model.config.hidden_size)
    n_ffn_maps = sum(projection.n_blocks for projection in adapter.ffn_in) + 1

    def cost(number: int, kind: str, size: int) -> float:
        if kind == FFN:
            return float(n_ffn_maps * hidden * size)
        if size == 0:
            return 0.0
        described = source.layers[number]
        kv_heads = size * described.n_kv_heads // described.n_heads
        head_dim = head_dim_of(layers[number], adapter)
        return float((2 * size + 2 * kv_heads) * head_dim * hidden + 2 * size * head_dim * n_tokens)

    return cost


def parameter_cost(model: PreTrainedModel) -> Cost:
    """Parameters of each sublayer's projections (biases and norms apart): bytes, and decode traffic at batch 1."""
    return macs_cost(model, n_tokens=0)


def _costs(scores: OptionScores, cost: Cost) -> list[list[float]]:
    return [[cost(group.layer, group.kind, option.size) for option in group.options] for group in scores.groups]


def _level_counts(source: Structure, number: int, kind: str, levels: Sequence[float], ffn_granule: int) -> list[int]:
    units = n_units(source.layers[number], kind)
    granule = 1 if kind == ATTENTION else ffn_granule
    return sorted({round_units(level, units, granule) for level in levels} | {units})


def _smooth(options: list[Option]) -> tuple[Option, ...]:
    """Losses made non-increasing in size: keeping more never counts as worse (noise in small score sets)."""
    losses = isotonic_regression([option.loss for option in options], increasing=False).x
    return tuple(Option(option.kept, option.size, float(loss)) for option, loss in zip(options, losses, strict=True))


@contextmanager
def _replaced(
    projection: Linear, moments: Moments, target: Target, columns: Tensor, kept: Sequence[int], recovery: Recovery
) -> Iterator[None]:
    """The dense projection as if pruned and refitted: removed columns zero, the others and the bias refitted."""
    bias: nn.Parameter | None = projection.bias
    old_weight, old_bias = weight_of(projection).detach().clone(), None if bias is None else bias.detach().clone()
    new_weight, new_bias = refit(projection, moments, target, columns, kept, recovery)
    full = torch.zeros_like(old_weight, device="cpu")
    full[:, kept_columns(columns, kept)] = new_weight
    with torch.no_grad():
        weight_of(projection).copy_(full)
        if bias is not None and new_bias is not None:
            bias.copy_(new_bias)
    try:
        yield
    finally:
        with torch.no_grad():
            weight_of(projection).copy_(old_weight)
            if bias is not None and old_bias is not None:
                bias.copy_(old_bias)


class _Judge:
    """Compares the model's outputs now with those it gave at first, running only from one layer on."""

    def __init__(self, model: PreTrainedModel, batches: list[Batch], score: Score) -> None:
        self.model, self.batches, self.score = model, batches, score
        self.trace: Trace = trace_layers(model, batches)
        self.reference = [self._outputs(batch) for batch in batches]
        self.at, self.hidden = 0, self.trace.hidden

    def move_to(self, number: int) -> None:
        """Stand before a layer; the layers passed on the way must be dense at this moment."""
        for passed in range(self.at, number):
            layer = layers_of(self.model)[passed]
            self.hidden = [
                run_layer(layer, calls[passed], hidden)[0]
                for calls, hidden in zip(self.trace.calls, self.hidden, strict=True)
            ]
        self.at = number

    def loss(self) -> float:
        """Mean distance to the first outputs over real positions."""
        loss, n_positions = 0.0, 0
        layers = layers_of(self.model)
        for batch, hidden, reference in zip(self.batches, self.hidden, self.reference, strict=True):
            with _started_at(layers, self.at, hidden):
                found = self._outputs(batch)
            for now, then in zip(found, reference, strict=True):
                loss += float(_distance(now, then, self.score)) * len(then)
                n_positions += len(then)
        return loss / n_positions

    def _outputs(self, batch: Batch) -> list[Tensor]:
        """What is judged, one (positions, width) tensor per output."""
        output, mask = run_model(self.model, batch), real_tokens(batch)
        if self.score == "cosine":
            hidden = getattr(output, "last_hidden_state", None)
            if hidden is None:
                raise DataError(
                    "the cosine score needs a model without a task head",
                    hint="score the logits with kl (or mse for a regression)",
                )
            weights = mask[..., None].to(hidden)
            return [(hidden * weights).sum(dim=1) / weights.sum(dim=1)]
        logits = [value for name, value in output.items() if name.endswith("logits")]
        if not logits:
            raise DataError(f"the {self.score} score needs logits, which this model lacks", hint="use score: cosine")
        if self.score == "kl" and logits[0].shape[-1] == 1:
            raise DataError("the kl score of a single logit is always 0", hint="use score: mse for a regression")
        return [value[mask] if value.ndim == 3 else value for value in logits]


def _distance(now: Tensor, then: Tensor, score: Score) -> Tensor:
    if score == "kl":
        return logit_kl(now, then)
    if score == "cosine":
        return (1.0 - F.cosine_similarity(now, then, dim=-1)).mean()
    return F.mse_loss(now, then)


@contextmanager
def _started_at(layers: nn.ModuleList, number: int, hidden: Tensor) -> Iterator[None]:
    """The layers before `number` hand on what they get, and layer `number` gets `hidden` instead."""

    def hand_on(hidden_states: Tensor, *positional: Any, **named: Any) -> Tensor:
        return hidden_states

    def enter(module: nn.Module, positional: tuple[Any, ...]) -> tuple[Any, ...]:
        return (hidden, *positional[1:])

    handle = layers[number].register_forward_pre_hook(enter)
    for passed in layers[:number]:
        passed.forward = hand_on
    try:
        yield
    finally:
        handle.remove()
        for passed in layers[:number]:
            del passed.forward
