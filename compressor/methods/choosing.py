"""Choose how many heads and neurons each layer keeps, by what their removal does at the end of the model.

Every option (layer, sublayer, kept units) is tried alone in the dense model, refitted, and scored on the model's own
outputs: no labels. Sums of these replace-one scores then enter a knapsack with a cost per option, measured or counted.
Local reconstruction errors instead of end-to-end scores lose about 0.02 of cosine on MiniLM at equal cost. The search
is Kwon et al.'s and ZipLM's in spirit (arXiv 2204.09656, 2302.04089), with a dynamic programme in place of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from transformers import PreTrainedModel

from compressor.errors import UserError
from compressor.methods.calibration import Batch
from compressor.methods.judging import Score
from compressor.methods.knapsack import Front, Limits, pareto_front, solve_limited, total
from compressor.methods.pruning import Recovery
from compressor.methods.structure import ATTENTION, FFN, Structure
from compressor.methods.surgery import adapter_for, head_dim_of, hidden_width, layers_of, read_structure
from compressor.methods.trying import SEVEN_LEVELS, Precision, Trial
from compressor.methods.units import Importance, kept_layer

Integers = NDArray[np.int64]


class Cost(Protocol):
    """Cost of a sublayer in any one unit, joules per token first of all."""

    def __call__(self, layer: int, kind: str, size: int, precision: Precision = "fp32", /) -> float:
        """Of so many query heads or FFN neurons, 0 where the sublayer is gone."""


@dataclass(frozen=True)
class Option:
    """One way to keep a sublayer.

    Attributes:
        kept: units (key/value groups or neurons).
        size: what a cost table counts: query heads or FFN neurons.
        loss: score of the model with only this sublayer replaced; 0 where all is kept in fp32.
        precision: of its weights.
    """

    kept: tuple[int, ...]
    size: int
    loss: float
    precision: Precision = "fp32"


@dataclass(frozen=True)
class Group:
    """All options of one sublayer, from nothing to everything, for each precision in turn."""

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
        options: number of the option of each group.
        precisions: of each layer's sublayers that stay, by kind.
    """

    structure: Structure
    n_heads: tuple[int, ...]
    ffn_widths: tuple[int, ...]
    predicted_loss: float
    predicted_cost: float
    dense_cost: float
    options: tuple[int, ...]
    precisions: tuple[Mapping[str, Precision], ...]

    @property
    def wide(self) -> frozenset[tuple[int, str]]:
        """Sublayers that stay in fp32, as (layer, kind)."""
        chosen = enumerate(self.precisions)
        return frozenset((layer, kind) for layer, kinds in chosen for kind, one in kinds.items() if one == "fp32")


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
    precisions: Sequence[Precision] = ("fp32",),
    on_progress: Callable[[int, int], None] | None = None,
) -> OptionScores:
    """Rank units once per sublayer, refit every level, and score each alone in the dense model.

    Args:
        batches: calibration inputs for ranking and refitting.
        score_batches: inputs for the scores, best others than those (64 to 128 sequences); `batches` by default.
        score: "kl" of the logits, "cosine" of mean-pooled last hidden states (embedders), "mse" of the logits
            (regression).
        levels: kept fractions to try; FFN widths are rounded to the granule, heads to whole key/value groups.
        precisions: each level is scored in each of them, so that (size, precision) is one option.
        on_progress: called with (options scored, options in all).

    Raises:
        DataError: no calibration data, or a score that the model's outputs do not allow.
        UnsupportedError: an architecture without an adapter.
    """
    trial = Trial(
        model, batches, score_batches=score_batches, score=score, importance=importance, recovery=recovery,
        levels=levels, ffn_granule=ffn_granule,
    )  # fmt: skip
    return score_trial(trial, precisions=precisions, on_progress=on_progress)


def score_trial(
    trial: Trial,
    *,
    precisions: Sequence[Precision] = ("fp32",),
    on_progress: Callable[[int, int], None] | None = None,
) -> OptionScores:
    """As `score_options`, over a trial that is kept for more: true losses of whole choices."""
    n_options, n_scored = len(precisions) * sum(len(place.counts) for place in trial.places), 0
    groups = []
    for place in trial.places:
        options: list[Option] = []
        for precision in precisions:
            scored = []
            for count in place.counts:
                kept = place.best(count)
                loss = trial.loss_of_one(place, kept, precision)
                scored.append(Option(kept, place.size(kept), loss, precision))
                n_scored += 1
                if on_progress is not None:
                    on_progress(n_scored, n_options)
            options += _smooth(scored)
        groups.append(Group(place.layer, place.kind, tuple(options)))
    return OptionScores(trial.source, tuple(groups))


def front_of(scores: OptionScores, cost: Cost) -> Front:
    """All choices worth making, for one cost table; costs without the fixed part."""
    return pareto_front(costs_of(scores, cost), losses_of(scores))


def choose(
    scores: OptionScores,
    cost: Cost,
    budget: float,
    fixed_cost: float = 0.0,
    limits: Sequence[tuple[Cost, float]] = (),
) -> Choice:
    """The choice of least summed loss within an absolute budget.

    Args:
        cost: of a sublayer, in any unit.
        budget: in the same unit, for the entire model.
        fixed_cost: what no choice changes: embeddings, head, dispatch.
        limits: further costs and the most that all sublayers together may have of each, their fixed part taken off.

    Raises:
        UserError: a budget that no choice reaches; the least reachable is named.
    """
    if budget <= 0:
        raise UserError(f"a budget must be positive, not {budget:g}")
    table = costs_of(scores, cost)
    least = sum(min(group) for group in table) + fixed_cost
    if least > budget * (1 + 1e-12):
        full = dense_cost(scores.source, cost, fixed_cost)
        raise UserError(
            f"a budget of {budget:.6g} ({budget / full:.3f} of dense) cannot be met: the least that any choice costs "
            f"is {least:.6g} ({least / full:.3f} of dense)",
            hint="raise the budget; embeddings, head and per-call costs cannot be pruned away",
        )
    further: Limits = [(costs_of(scores, other), most) for other, most in limits]
    return choice_of(scores, solve_limited(table, losses_of(scores), budget - fixed_cost, further), cost, fixed_cost)


def in_order(scores: OptionScores, costs: Sequence[Cost]) -> OptionScores:
    """Each group's options from the cheapest to the dearest by the first cost, without those that another option of
    the group beats: no more loss, and no more of any cost."""
    groups = []
    for group in scores.groups:
        spent = {
            number: tuple(cost(group.layer, group.kind, option.size, option.precision) for cost in costs)
            for number, option in enumerate(group.options)
        }
        order = sorted(spent, key=lambda number: (*spent[number], group.options[number].loss))
        kept: list[int] = []
        for number in order:
            option = group.options[number]
            if not any(
                group.options[other].loss <= option.loss
                and all(a <= b for a, b in zip(spent[other], spent[number], strict=True))
                for other in kept
            ):
                kept.append(number)
        groups.append(replace(group, options=tuple(group.options[number] for number in kept)))
    return OptionScores(scores.source, tuple(groups))


def choice_of(scores: OptionScores, options: Sequence[int] | Integers, cost: Cost, fixed_cost: float = 0.0) -> Choice:
    """A choice from the number of the option of each group."""
    numbers = np.asarray(options, dtype=np.int64)
    kept: list[dict[str, tuple[int, ...]]] = [{} for _ in scores.source.layers]
    precisions: list[dict[str, Precision]] = [{} for _ in scores.source.layers]
    for group, number in zip(scores.groups, numbers, strict=True):
        option = group.options[number]
        kept[group.layer][group.kind] = option.kept
        if option.kept:
            precisions[group.layer][group.kind] = option.precision
    layers = tuple(kept_layer(layer, units) for layer, units in zip(scores.source.layers, kept, strict=True))
    return Choice(
        structure=Structure(scores.source.layers_kept, layers),
        n_heads=tuple(layer.n_heads for layer in layers),
        ffn_widths=tuple(layer.ffn_width for layer in layers),
        predicted_loss=total(losses_of(scores), numbers),
        predicted_cost=total(costs_of(scores, cost), numbers) + fixed_cost,
        dense_cost=dense_cost(scores.source, cost, fixed_cost),
        options=tuple(int(number) for number in numbers),
        precisions=tuple(precisions),
    )


def dense_cost(source: Structure, cost: Cost, fixed_cost: float = 0.0) -> float:
    """What the source costs by this table, in fp32."""
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
    hidden = hidden_width(model)
    n_ffn_maps = sum(projection.n_blocks for projection in adapter.ffn_in) + 1

    def cost(number: int, kind: str, size: int, precision: Precision = "fp32", /) -> float:
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


def costs_of(scores: OptionScores, cost: Cost) -> list[list[float]]:
    """The cost of every option of every group."""
    return [
        [cost(group.layer, group.kind, option.size, option.precision) for option in group.options]
        for group in scores.groups
    ]


def losses_of(scores: OptionScores) -> list[list[float]]:
    """The replace-one loss of every option of every group."""
    return [[option.loss for option in group.options] for group in scores.groups]


def _smooth(options: list[Option]) -> list[Option]:
    """Losses made non-increasing in size: keeping more never counts as worse (noise in small score sets)."""
    losses = isotonic_regression([option.loss for option in options], increasing=False).x
    return [replace(option, loss=float(loss)) for option, loss in zip(options, losses, strict=True)]
