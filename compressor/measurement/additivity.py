"""Whether a cost table may be believed: sums over it against random whole models, exported and timed.

E = a + b x sum must predict models that were left out of the fit, or one slope for each kind of sublayer must; else the
table is refused with its figures. IrEne (arXiv 2106.01199) adds up energies of parts in the same way and checks them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from compressor.checkpoints.files import digest_json
from compressor.errors import StageError
from compressor.measurement.cost_graphs import Whole
from compressor.measurement.cost_rows import Timer
from compressor.measurement.cost_table import (
    CallShape,
    Costs,
    CostTable,
    Fit,
)
from compressor.measurement.graph_rounds import mixed, opened, run_rounds
from compressor.methods.structure import ATTENTION, FFN, KINDS
from compressor.methods.surgery import read_structure
from compressor.spec.budgets import Shipped

MAX_MAPE = 0.05
MIN_TAU = 0.95
MOST_APART = 2.0
"""How far the slopes of two kinds may lie apart. Whole models that grow in both kinds at once say little of either: a
table of MiniLM's once fitted them with 0.27 and 1.57, and the search then cut what was cheap."""
N_MODELS = 5


def fit_name(calls: Sequence[CallShape], precision: Shipped) -> str:
    """What a fit holds for: a mix of calls, and a precision."""
    mix = sorted([call.key, call.real_tokens, call.weight] for call in calls)
    return f"{precision}-{digest_json(mix)[:12]}"


def check_additivity(
    table: CostTable,
    timer: Timer,
    calls: Sequence[CallShape],
    precision: Shipped,
    structures: Sequence[Whole],
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Fit:
    """The fit of this mix: from the table's file, or made now on whole models.

    Args:
        structures: whole models; those that `random_structures` draws.

    Raises:
        StageError: sums over the table do not predict whole models; the figures are named.
    """
    name = fit_name(calls, precision)
    if name not in table.fits:
        costs = Costs(table, tuple(calls), precision)
        parts = np.array([_parts(costs, whole) for whole in structures])  # (n, 2): attention, FFN
        measured = np.array(_measure(table, timer, calls, structures, on_progress))
        table.add_fit(name, fit_costs(parts, measured))
    fit = table.fits[name]
    if fit.mape >= MAX_MAPE or fit.kendall_tau <= MIN_TAU:
        raise StageError(
            f"the cost table does not add up: on {fit.n_models} random whole models its sums are off by "
            f"{fit.mape:.1%} on average (less than {MAX_MAPE:.0%} is asked) and rank them with Kendall's tau "
            f"{fit.kendall_tau:.2f} (more than {MIN_TAU} is asked)",
            where=str(table.path),
            hint="measure it again on a quiet machine (delete the file), or set the budget in macs or parameters",
        )
    return fit


def fit_costs(parts: NDArray[np.float64], measured: NDArray[np.float64]) -> Fit:
    """One slope for all sublayers if that predicts well, else one for each kind where those are believable.

    Errors are those of models left out of the fit in turn.

    Args:
        parts: (n, 2) sums over attention and FFN sublayers.
        measured: (n,) costs of the whole models.
    """
    single = _fit(parts.sum(axis=1, keepdims=True), measured, ("all",))
    if single.mape < MAX_MAPE and single.kendall_tau > MIN_TAU:
        return single
    double = _fit(parts, measured, (ATTENTION, FFN))
    low, high = sorted(double.slopes.values())
    return double if 0 < high <= MOST_APART * low and double.mape < single.mape else single


def _fit(columns: NDArray[np.float64], measured: NDArray[np.float64], names: tuple[str, ...]) -> Fit:
    design = np.column_stack([np.ones(len(measured)), columns])
    held_out = []
    for number in range(len(measured)):
        others = np.arange(len(measured)) != number
        solution, *_ = np.linalg.lstsq(design[others], measured[others], rcond=None)
        held_out.append(float(design[number] @ solution))
    solution, *_ = np.linalg.lstsq(design, measured, rcond=None)
    return Fit(
        intercept=float(solution[0]),
        slopes={name: float(slope) for name, slope in zip(names, solution[1:], strict=True)},
        mape=float(np.mean(np.abs(np.array(held_out) / measured - 1))),
        kendall_tau=float(kendalltau(held_out, measured).statistic),
        n_models=len(measured),
        predicted=tuple(held_out),
        measured=tuple(float(value) for value in measured),
    )


def random_structures(timer: Timer, n_models: int, granule: int, seed: int, precision: Shipped = "fp32") -> list[Whole]:
    """Structures from small to large, uneven inside: whole key/value groups, FFN widths on the granule; where the
    precision is mixed, half of the sublayers in fp32."""
    layers = read_structure(timer.model).layers
    rng, coin = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    drawn = []
    for level in np.linspace(0.25, 1.0, n_models):
        shares = np.clip(level + rng.uniform(-0.25, 0.25, (len(layers), 2)), 0.0, 1.0)
        sizes = []
        for layer, (heads, ffn) in zip(layers, shares, strict=True):
            kv_heads = round(heads * layer.n_kv_heads)
            per_group = layer.n_heads // max(1, layer.n_kv_heads)
            width = min(layer.ffn_width, granule * round(ffn * layer.ffn_width / granule))
            sizes.append((kv_heads * per_group, kv_heads, width))
        places = [(number, kind) for number in range(len(layers)) for kind in KINDS]
        wide = [place for place in places if precision == "mixed" and coin.random() < 0.5]
        drawn.append(Whole(tuple(sizes), "fp32" if precision == "fp32" else "int8", frozenset(wide)))
    return drawn


def _parts(costs: Costs, whole: Whole) -> tuple[float, float]:
    sums = dict.fromkeys(KINDS, 0.0)
    for number, (heads, _, width) in enumerate(whole.sizes or ()):
        for kind, size in ((ATTENTION, heads), (FFN, width)):
            if size:
                sums[kind] += costs.sublayer(kind, size, "cpu_s", whole.precision_of(number, kind))
    return sums[ATTENTION], sums[FFN]


def _measure(
    table: CostTable,
    timer: Timer,
    calls: Sequence[CallShape],
    structures: Sequence[Whole],
    on_progress: Callable[[int, int], None],
) -> list[float]:
    """CPU-seconds a token of each structure as a whole model, in rounds over all of them."""
    effort, graphs = timer.effort, []
    total = len(structures) + effort.whole_rounds
    on_progress(0, total)
    with tempfile.TemporaryDirectory(prefix="additivity-") as name:
        for number, whole in enumerate(structures):
            graphs.append(timer.write_whole(whole, Path(name)))
            on_progress(number + 1, total)
        clock = timer.clock(table.device, effort.whole_window_s)
        with opened(graphs, clock, Path(name), one_process=False) as crew:
            rounds = run_rounds(
                crew,
                calls,
                effort.whole_rounds,
                seed=len(graphs),
                on_round=lambda number, turns: on_progress(len(graphs) + number + 1, total),
            )
    costs = [[mixed(turns[graph.name], calls).cpu_s for graph in graphs] for turns in rounds]  # (rounds, models)
    return [float(value) for value in np.exp(np.mean(np.log(costs), axis=0))]
