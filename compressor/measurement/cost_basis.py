"""Everything a search under a measured budget stands on: a filled table, believed only after its sums were checked."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from transformers import PreTrainedModel

from compressor import energy
from compressor.checkpoints.files import digest_json
from compressor.errors import UserError
from compressor.measurement.additivity import N_MODELS, check_additivity, fit_name, random_structures
from compressor.measurement.cost_graphs import Whole, model_shape
from compressor.measurement.cost_rows import Effort, Timer, fill_table, missing_rows, wanted_rows
from compressor.measurement.cost_table import (
    CallShape,
    Costs,
    Precision,
    open_table,
    table_path,
    tables_folder,
)
from compressor.measurement.device import this_device
from compressor.measurement.graph_rounds import Graph
from compressor.measurement.graph_writer import Order, write_ahead
from compressor.measurement.session import find_meters
from compressor.measurement.whole_models import AgainstDense, Comparison
from compressor.spec.budgets import Shipped

Progress = Callable[[str, int, int], None]
"""Told (what is being done, done, total)."""


@dataclass(frozen=True)
class CostBasis:
    """Costs to choose by, and how whole models are timed against them."""

    costs: Costs
    timer: Timer

    def digest(self) -> str:
        """What a choice depends on of all this: it goes into the stage's fingerprint."""
        return self.costs.digest()


def measure_costs(
    model: PreTrainedModel,
    *,
    is_decoder: bool,
    outputs: Sequence[str],
    calls: Sequence[CallShape],
    precision: Shipped,
    granule: int,
    threads: int,
    provider: str,
    path: Path | None = None,
    accept_other_device: bool = False,
    calibration: energy.Calibration | None = None,
    effort: Effort | None = None,
    check: bool = True,
    graphs: Path | None = None,
    on_progress: Progress = lambda task, done, total: None,
) -> CostBasis:
    """The cost table of a model on this machine: what is missing is measured, and its sums are checked.

    Args:
        model: whose sublayers; a stock or pruned one.
        is_decoder, outputs: how it is exported.
        calls: the mix of calls.
        precision: what will ship.
        granule: FFN widths are measured at multiples of it.
        threads, provider: of one inference.
        path: a table to use; this machine's own, kept for all runs, where None.
        accept_other_device: believe a table of another device.
        calibration: watts of this machine, where energy is estimated.
        effort: of each row.
        check: hold sums against random whole models.
        graphs: folder that keeps what is exported; a temporary one where None.

    Raises:
        UserError: a table of another device or model, or one of another device without a row that is needed.
        StageError: sums over the table do not predict whole models.
    """
    device, shape = this_device(threads=threads, provider=provider), model_shape(model)
    if path is not None and not path.exists():
        raise UserError("no such cost table", where=str(path), hint="leave it out, and one is measured")
    file = path if path is not None else table_path(tables_folder(), device, shape)
    table = open_table(file, device, shape, accept_other_device=accept_other_device)
    timer = Timer(model, is_decoder, tuple(outputs), effort or Effort(), find_meters(), calibration, graphs=graphs)
    is_ours, fit = table.device == device, None
    if not is_ours and check and fit_name(calls, precision) not in table.fits:
        raise UserError(
            "the cost table was not checked on whole models for these workloads, and its device is not here",
            where=str(file),
            hint="use it with the workloads that it was measured for, or measure one here",
        )
    with ExitStack() as stack:
        kept = graphs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cost-graphs-")))
        writer = replace(timer, graphs=kept)
        precisions: list[Precision] = ["fp32"] if precision == "fp32" else ["fp32", "int8"]
        rows = wanted_rows(model, precisions, granule) if is_ours else []
        wholes = random_structures(timer, N_MODELS, granule, 0, precision) if check else []
        missing = tuple(missing_rows(table, rows, calls, timer.effort.rounds))
        unchecked = () if fit_name(calls, precision) in table.fits else tuple(wholes)
        dense = () if graphs is None else (Whole(),)  # timed beside each choice, later
        write_ahead(
            Order(writer, device, missing, (*dense, *unchecked)),
            on_progress=lambda done, total: on_progress("cost table: graphs", done, total),
        )
        if is_ours:
            fill_table(
                table, writer, rows, calls, on_progress=lambda done, total: on_progress("cost table", done, total)
            )
        if check:
            fit = check_additivity(
                table,
                writer,
                calls,
                precision,
                wholes,
                on_progress=lambda done, total: on_progress("cost table: whole models", done, total),
            )
    return CostBasis(Costs(table, tuple(calls), precision, fit), timer)


class WholeModels:
    """The dense model beside candidates for its place; use as a context manager.

    A comparison is kept with the table: given the same file, a search takes the same way again.
    """

    def __init__(self, basis: CostBasis) -> None:
        self._basis = basis
        self._stack = ExitStack()
        self._against: AgainstDense | None = None

    def __enter__(self) -> WholeModels:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="whole-models-")))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def compare(self, sizes: Sequence[tuple[int, int, int]], wide: Collection[tuple[int, str]] = ()) -> Comparison:
        """Export a structure and time it against the dense model.

        Args:
            sizes: query heads, key/value heads and neurons of each layer.
            wide: sublayers in fp32 where the others are in INT8, as (layer, kind).
        """
        costs = self._basis.costs
        whole = Whole(tuple(sizes), costs.rest, frozenset(wide))
        left = [sorted(whole.wide)] if whole.wide else []
        key = digest_json([[list(layer) for layer in sizes], fit_name(costs.calls, costs.precision), *left])
        known = costs.table.comparisons
        if key not in known:
            found = self._open().compare(self._basis.timer.write_whole(whole, self._folder))
            costs.table.add_comparison(key, found.to_json())
        return Comparison.from_json(known[key])

    def compare_file(self, path: Path) -> Comparison:
        """Time a graph that is there already, whatever was measured before."""
        return self._open().compare(Graph(path.stem, path, int(self._basis.timer.model.config.vocab_size)))

    def _open(self) -> AgainstDense:
        if self._against is None:
            basis, effort = self._basis, self._basis.timer.effort
            clock = basis.timer.clock(basis.costs.table.device, effort.whole_window_s)
            self._against = self._stack.enter_context(
                AgainstDense(
                    basis.timer.write_whole(Whole(), self._folder),
                    basis.costs.calls,
                    clock,
                    rounds=effort.whole_rounds,
                    most_rounds=effort.most_whole_rounds,
                )
            )
        return self._against
