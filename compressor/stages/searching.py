"""Choose a structure under a budget and hold it to that budget on the device.

Options are scored without labels, a dynamic programme picks among them by measured or counted costs, swaps repair what
the sum of scores cannot see, and the shape is exported and timed beside the dense model; where it misses the budget by
more than the tolerance, the budget is corrected by what was measured, and the choice trimmed or made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from compressor.errors import StageError, UserError
from compressor.measurement.cost_basis import CostBasis, WholeModels
from compressor.measurement.cost_table import Costs, Quantity
from compressor.measurement.whole_models import Comparison
from compressor.methods.choosing import (
    Choice,
    Cost,
    OptionScores,
    choice_of,
    choose,
    costs_of,
    dense_cost,
    in_order,
    losses_of,
    macs_cost,
    parameter_cost,
    score_trial,
)
from compressor.methods.judging import Score
from compressor.methods.pruning import Recovery, require_tokens
from compressor.methods.refining import refine, refit_to_budget
from compressor.methods.structure import Structure
from compressor.methods.trying import Precision, Trial
from compressor.methods.uniform import Fits, choose_uniform
from compressor.methods.units import Importance
from compressor.schema.events import Emit, Note, Progress
from compressor.spec.budgets import MEASURED, Limit, PruneBudget, Search
from compressor.training.rows import Batch

QUANTITIES: dict[str, Quantity] = {
    "joules_per_token": "energy_j", "cpu_s_per_token": "cpu_s", "latency_s": "latency_s", "size_bytes": "size_bytes",
}  # fmt: skip
"""The budget's key -> what a cost table calls it."""


@dataclass(frozen=True)
class Request:
    """A search, in a stage's settings."""

    stage: str
    budget: PruneBudget
    search: Search
    importance: Importance
    recovery: Recovery
    granule: int
    score: Score
    uniform: Fits | None = None
    """Which head counts a stock config can say, where all layers shall be alike; None where they may differ."""


@dataclass(frozen=True)
class Found:
    """What the search gives: sizes for `prune_model`, and the facts for the record."""

    n_heads: tuple[int, ...]
    ffn_widths: tuple[int, ...]
    facts: dict[str, Any]

    def keeps_all(self, source: Structure) -> bool:
        """Whether nothing leaves."""
        sizes = zip(self.n_heads, self.ffn_widths, strict=True)
        return all(
            (heads, width) == (layer.n_heads, layer.ffn_width)
            for (heads, width), layer in zip(sizes, source.layers, strict=True)
        )

    @property
    def has_int8(self) -> bool:
        """Whether a mixture has any INT8 in it."""
        return any(one == "int8" for layer in self.facts.get("precisions", ()) for one in layer.values())


@dataclass(frozen=True)
class _Limit:
    """One limit of a budget as the search uses it: a cost, what is fixed of it, and the most that may be spent."""

    name: str
    limit: Limit
    cost: Cost
    fixed: float
    dense: float

    @property
    def most(self) -> float:
        return self.limit.of(self.dense)


def search(
    request: Request, model: PreTrainedModel, batches: Sequence[Batch], basis: CostBasis | None, emit: Emit
) -> Found:
    """Find the structure of least damage within the budget.

    Args:
        request: budget and settings.
        model: dense, in fp32; left as it is.
        batches: calibration batches; the last rows score, the others rank and refit.
        basis: measured costs; None where the budget is counted.

    Raises:
        UserError: a budget that cannot be met; the least reachable is named.
        DataError: too few calibration tokens.
    """
    precisions: dict[str, tuple[Precision, ...]] = {"fp32": ("fp32",), "int8": ("int8",), "mixed": ("fp32", "int8")}
    fitting, judged = split_batches(batches, request.search.score_rows)
    trial = Trial(
        model, fitting, score_batches=judged, score=request.score, importance=request.importance,
        recovery=request.recovery, levels=_levels(request.search.levels), ffn_granule=request.granule,
    )  # fmt: skip
    # refused before an hour of scores that would rest on overfitted weights, not after it
    require_tokens(_n_tokens(batches), trial.widest_refit)
    scores = score_trial(
        trial,
        precisions=precisions[request.search.precision],
        on_progress=lambda done, total: emit(Progress(request.stage, "score options", done, total)),
    )
    limits = [_limit(name, limit, scores, model, batches, basis) for name, limit in request.budget.limits.items()]
    if request.uniform is None:
        scores = in_order(scores, [limit.cost for limit in limits])
    return _Hunt(request, scores, trial, limits, emit).run(model, basis)


class _Hunt:
    """Choose, refine, measure, correct."""

    def __init__(
        self, request: Request, scores: OptionScores, trial: Trial, limits: Sequence[_Limit], emit: Emit
    ) -> None:
        self.request, self.scores, self.trial, self.emit = request, scores, trial, emit
        self.first, self.others = limits[0], limits[1:]
        self.attempts: list[dict[str, Any]] = []
        self.wants_no_more = False
        """What is left of the budget would buy nothing: whatever costs more loses as much."""

    def run(self, model: PreTrainedModel, basis: CostBasis | None) -> Found:
        choice, refined = self._refined(self._choose(1.0))
        if basis is None or not any(name in MEASURED for name in self.request.budget.limits):
            return self._found(choice, refined, None, basis)
        with WholeModels(basis) as whole:
            choice, comparison = self._held(whole, choice, refined)
        if not self._is_kept(comparison):
            self.emit(
                Note(
                    self.request.stage,
                    f"the budget of {self.first.limit} was missed by {self._miss(comparison) - 1:+.1%}; "
                    f"{self._tolerance(comparison):.1%} is allowed",
                )
            )
        return self._found(choice, refined, comparison, basis)

    def _choose(self, scale: float) -> Choice:
        first = self.first
        others = [(other.cost, other.most * scale - other.fixed) for other in self.others]
        if self.request.uniform is not None:
            fits = self.request.uniform
            return choose_uniform(self.scores, first.cost, first.most * scale, first.fixed, others, fits=fits)
        return choose(self.scores, first.cost, first.most * scale, first.fixed, others)

    def _held(self, whole: WholeModels, choice: Choice, refined: dict[str, Any]) -> tuple[Choice, Comparison]:
        """Measure the exported shape and correct the budget by it until it is kept; else the nearest stands.

        Args:
            refined: facts of the choice; its loss becomes that of what is returned.
        """
        scale, loss, tried = 1.0, refined["loss"], []
        for number in range(self.request.search.rescale + 1):
            comparison = self._measure(whole, choice, scale)
            tried.append((abs(self._miss(comparison) - 1), number, choice, comparison, loss))
            if self._is_kept(comparison) or number == self.request.search.rescale:
                break
            scale /= self._miss(comparison)
            under = self._under(choice, scale)
            if not under:
                break
            losses = [self._true_loss(other.options) for other in under]
            loss = min(losses)
            before, choice = choice, under[losses.index(loss)]
            if scale > 1 and choice.options == before.options:
                self.wants_no_more = True
                break
        *_, choice, comparison, refined["loss"] = min(tried, key=lambda one: one[:2])
        return choice, comparison

    def _under(self, choice: Choice, scale: float) -> list[Choice]:
        """What a corrected budget allows: the old choice with a few steps more or less, and what is chosen afresh; none
        where it is below the least that any choice costs."""
        found = [] if self.request.uniform is not None else [self._trimmed(choice, scale)]
        with suppress(UserError):
            found.append(self._choose(scale))
        return found

    def _refined(self, choice: Choice) -> tuple[Choice, dict[str, Any]]:
        n_moves, stage = self.request.search.swaps, self.request.stage
        if self.request.uniform is not None:
            n_moves = 0  # a swap would make layers differ
        if not n_moves:
            loss = self._true_loss(choice.options)
            return choice, {"loss": loss, "loss_before_swaps": loss, "swaps_tried": 0, "swaps_accepted": 0}
        found = refine(
            costs_of(self.scores, self.first.cost),
            losses_of(self.scores),
            choice.options,
            max(self.first.most, choice.predicted_cost) - self.first.fixed,
            self._true_loss,
            n_moves=n_moves,
            limits=self._further(1.0),
            on_progress=lambda done, total: self.emit(Progress(stage, "swap options", done, total)),
        )
        facts = {
            "loss": found.loss,
            "loss_before_swaps": found.loss_before,
            "swaps_tried": found.n_tried,
            "swaps_accepted": found.n_accepted,
        }
        return choice_of(self.scores, found.options, self.first.cost, self.first.fixed), facts

    def _trimmed(self, choice: Choice, scale: float) -> Choice:
        options = refit_to_budget(
            costs_of(self.scores, self.first.cost),
            losses_of(self.scores),
            choice.options,
            self.first.most * scale - self.first.fixed,
            self._further(scale),
        )
        return choice_of(self.scores, options, self.first.cost, self.first.fixed)

    def _further(self, scale: float) -> list[tuple[list[list[float]], float]]:
        return [(costs_of(self.scores, one.cost), one.most * scale - one.fixed) for one in self.others]

    def _true_loss(self, options: Sequence[int]) -> float:
        chosen = [group.options[number] for group, number in zip(self.scores.groups, options, strict=True)]
        return self.trial.loss_of_all([(option.kept, option.precision) for option in chosen])

    def _measure(self, whole: WholeModels, choice: Choice, scale: float) -> Comparison:
        task = "measure the exported shape"
        self.emit(Progress(self.request.stage, task, 0, 1))
        layers = choice.structure.layers
        sizes = [(layer.n_heads, layer.n_kv_heads, layer.ffn_width) for layer in layers]
        found = whole.compare(sizes, choice.wide if self.request.search.precision == "mixed" else ())
        self.emit(Progress(self.request.stage, task, 1, 1))
        self.attempts.append(
            {
                "budget_scale": scale,
                "predicted_ratio": choice.predicted_cost / choice.dense_cost,
                "measured_ratio": found.ratio,
                "measured_ratio_ci95": found.ratio_ci95,
                "aa_bound": found.aa_bound,
                "miss": self._miss(found) - 1,
            }
        )
        return found

    def _miss(self, found: Comparison) -> float:
        """The largest measured cost as a multiple of its limit; of the deciding limit where all are kept."""
        misses = [_spent(one, found) for one in (self.first, *self.others) if one.name in MEASURED]
        worst = max((miss for miss in misses[1:] if miss > 1), default=0.0)
        return max(misses[0], worst)

    def _tolerance(self, found: Comparison) -> float:
        return max(self.request.search.tolerance, found.aa_bound)

    def _is_kept(self, found: Comparison) -> bool:
        miss = self._miss(found) - 1
        return abs(miss) <= self._tolerance(found) or (miss < 0 and self.wants_no_more)

    def _found(
        self, choice: Choice, refined: dict[str, Any], comparison: Comparison | None, basis: CostBasis | None
    ) -> Found:
        facts: dict[str, Any] = {
            "cost": self.first.name,
            "budget": {name: str(limit) for name, limit in self.request.budget.limits.items()},
            "predicted_loss": choice.predicted_loss,
            **refined,
            "predicted_cost": choice.predicted_cost,
            "predicted_cost_ratio": choice.predicted_cost / choice.dense_cost,
            "precision": self.request.search.precision,
        }
        if self.request.search.precision == "mixed":
            facts["precisions"] = [dict(layer) for layer in choice.precisions]
        if comparison is not None and basis is not None:
            fit = basis.costs.fit
            facts |= {
                "measured": comparison.to_json(),
                "measured_cost_ratio": _spent(self.first, comparison) * self.first.most / self.first.dense,
                "tolerance": self._tolerance(comparison),
                "is_kept": self._is_kept(comparison),
                "attempts": self.attempts,
                "cost_table": basis.digest(),
                "additivity": None
                if fit is None
                else {"mape": fit.mape, "kendall_tau": fit.kendall_tau, "n_models": fit.n_models, "slopes": fit.slopes},
            }
        return Found(choice.n_heads, choice.ffn_widths, facts)


def _spent(one: _Limit, found: Comparison) -> float:
    """What a comparison measured, as a multiple of a limit."""
    ratios = {
        "cpu_s_per_token": found.ratio,
        "latency_s": found.latency_s / found.dense_latency_s,
        "joules_per_token": None
        if found.energy_j is None or found.dense_energy_j is None
        else found.energy_j / found.dense_energy_j,
        "size_bytes": found.size_bytes / found.dense_size_bytes,
    }
    amounts = {
        "cpu_s_per_token": found.cpu_s,
        "latency_s": found.latency_s,
        "joules_per_token": found.energy_j,
        "size_bytes": float(found.size_bytes),
    }
    value, limit = (
        (ratios[one.name], one.limit.ratio) if one.limit.ratio is not None else (amounts[one.name], one.limit.amount)
    )
    if value is None or limit is None:
        raise StageError(f"the whole model's {one.name} could not be read: {found.energy_kind}")
    return value / limit


def _limit(
    name: str,
    limit: Limit,
    scores: OptionScores,
    model: PreTrainedModel,
    batches: Sequence[Batch],
    basis: CostBasis | None,
) -> _Limit:
    cost: Cost
    if name in MEASURED:
        assert basis is not None, "a measured budget comes with its costs"
        costs, quantity = basis.costs, QUANTITIES[name]
        cost = measured_cost(costs, quantity)
        sizes = [(layer.n_heads, layer.ffn_width) for layer in scores.source.layers]
        return _Limit(name, limit, cost, costs.fixed(quantity), costs.dense(sizes, quantity))
    if name == "macs":
        n_rows = sum(len(batch["input_ids"]) for batch in batches)
        n_tokens = _n_tokens(batches)
        cost = macs_cost(model, n_tokens=max(1, round(n_tokens / n_rows)))
    else:
        cost = parameter_cost(model)
    return _Limit(name, limit, cost, 0.0, dense_cost(scores.source, cost))


def measured_cost(costs: Costs, quantity: Quantity) -> Cost:
    """A cost table as the search reads it; layers of one shape cost the same."""

    def cost(layer: int, kind: str, size: int, precision: Precision = "fp32", /) -> float:
        return costs.sublayer(kind, size, quantity, precision)

    return cost


def split_batches(batches: Sequence[Batch], n_score_rows: int) -> tuple[list[Batch], list[Batch]]:
    """Batches that rank and refit, and batches that score: other rows, spread over the lengths; at most a quarter.

    A single batch serves both.
    """
    if len(batches) == 1:
        return list(batches), list(batches)
    n_rows = sum(len(batch["input_ids"]) for batch in batches)
    share = min(0.25, n_score_rows / n_rows)
    every = max(2, round(1 / share))
    judged = [batch for number, batch in enumerate(batches) if number % every == every // 2]
    fitting = [batch for number, batch in enumerate(batches) if number % every != every // 2]
    return fitting, judged or [fitting[-1]]


def _levels(n_levels: int) -> tuple[float, ...]:
    return tuple(step / (n_levels - 1) for step in range(n_levels))


def _n_tokens(batches: Sequence[Batch]) -> int:
    return sum(int(batch["attention_mask"].sum()) for batch in batches)
