"""The best shape that is the same in every layer: what a stock config can say, searched by trying all of them.

There are few: a head count and a width for all layers, of those that were scored (seven times seven by default). Where
options differ in precision too, each layer takes its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import product

from transformers import PreTrainedModel

from compressor.errors import UserError
from compressor.methods.choosing import Choice, Cost, OptionScores, choice_of, costs_of, losses_of
from compressor.methods.knapsack import solve_limited
from compressor.methods.structure import ATTENTION
from compressor.methods.surgery import adapter_for

Fits = Callable[[int], bool]


def stock_head_counts(model: PreTrainedModel) -> Fits:
    """Which head counts the model's stock config can say, its hidden width staying as it is.

    Raises:
        UnsupportedError: an architecture without an adapter.
    """
    adapter, config = adapter_for(model), model.config
    present, hidden = int(getattr(config, adapter.heads_key)), int(config.hidden_size)

    def fits(n_heads: int) -> bool:
        if n_heads == 0 or not adapter.reads_head_dim:
            return n_heads == present
        return not adapter.heads_divide_hidden or hidden % n_heads == 0

    return fits


def choose_uniform(
    scores: OptionScores,
    cost: Cost,
    budget: float,
    fixed_cost: float = 0.0,
    limits: Sequence[tuple[Cost, float]] = (),
    *,
    fits: Fits,
) -> Choice:
    """As `choosing.choose`, of the shapes that are the same in all layers.

    Args:
        fits: whether a stock config can say a head count.

    Raises:
        UserError: a budget that no uniform shape reaches; the least reachable is named.
    """
    table, losses = costs_of(scores, cost), losses_of(scores)
    further = [(costs_of(scores, other), most) for other, most in limits]
    best: tuple[float, list[int]] | None = None
    least = float("inf")
    for sizes in _shapes(scores, fits):
        options = _options(scores, sizes)
        least = min(least, sum(map(min, _only(table, options))))
        with suppress(UserError):  # this shape costs too much in any precision
            picked = solve_limited(
                _only(table, options),
                _only(losses, options),
                budget - fixed_cost,
                [(_only(other, options), most) for other, most in further],
            )
            chosen = [numbers[pick] for numbers, pick in zip(options, picked, strict=True)]
            loss = sum(row[number] for row, number in zip(losses, chosen, strict=True))
            if best is None or loss < best[0]:
                best = loss, chosen
    if least == float("inf"):
        raise UserError(
            "no shape that is the same in all layers was scored and is one that a stock config can say",
            hint="let layers differ (`layout: per_layer`)",
        )
    if best is None:
        raise UserError(
            f"a budget of {budget:.6g} cannot be met by layers of one shape: the least of them costs "
            f"{least + fixed_cost:.6g}",
            hint="raise the budget, or let layers differ (`layout: per_layer`)",
        )
    return choice_of(scores, best[1], cost, fixed_cost)


def _shapes(scores: OptionScores, fits: Fits) -> list[dict[str, int]]:
    """Sizes, one for each kind of sublayer, that every layer was scored with."""
    common: dict[str, set[int]] = {}
    for group in scores.groups:
        sizes = {option.size for option in group.options}
        common[group.kind] = common[group.kind] & sizes if group.kind in common else sizes
    allowed = {
        kind: sorted(size for size in sizes if (fits(size) if kind == ATTENTION else size > 0))
        for kind, sizes in common.items()
    }
    return [dict(zip(allowed, shape, strict=True)) for shape in product(*allowed.values())]


def _options(scores: OptionScores, sizes: Mapping[str, int]) -> list[list[int]]:
    """For each group, the options of that size: one for each precision."""
    return [
        [number for number, option in enumerate(group.options) if option.size == sizes[group.kind]]
        for group in scores.groups
    ]


def _only(table: Sequence[Sequence[float]], options: Sequence[Sequence[int]]) -> list[list[float]]:
    return [[row[number] for number in numbers] for row, numbers in zip(table, options, strict=True)]
