"""Fill a cost table: which rows a model and its workloads need, and measuring those that are not there yet."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from compressor import energy
from compressor.errors import EnergyError
from compressor.graphs.files import file_bytes
from compressor.measurement.cost_graphs import graph_for, weight_bytes, write_graph
from compressor.measurement.cost_table import EMPTY, FRAME, CallShape, CostTable, Device, Precision, Row
from compressor.measurement.workers import GraphJob, WorkerProcess
from compressor.methods.structure import ATTENTION, FFN
from compressor.methods.surgery import read_structure

N_SUBLAYERS = 4
"""Equal sublayers in one timed graph: the difference to the frame is shared between them."""
WITHIN = 0.02
"""A row is looped until half the 95 % interval of its median is below this share, or its time is up."""


@dataclass(frozen=True)
class Effort:
    """How long a row is looped: seconds of calls at least, and at most."""

    min_s: float = 0.5
    max_s: float = 2.0
    within: float = WITHIN


@dataclass(frozen=True)
class Timer:
    """How graphs are made and timed.

    Attributes:
        model: whose sublayers.
        is_decoder, output: how it is exported.
        effort: of each row.
        meters: meters whose joules may be called measured; empty where energy is estimated.
        calibration: watts of this machine for estimates.
        quantisation: arguments of `quantise_dynamic` for INT8.
    """

    model: PreTrainedModel
    is_decoder: bool
    output: str
    effort: Effort = Effort()
    meters: tuple[energy.Source, ...] = ()
    calibration: energy.Calibration | None = None
    quantisation: Mapping[str, Any] | None = None

    def sweep_bytes(self, table: CostTable) -> int:
        """How much a small graph reads besides its sublayers, so that their weights come from memory.

        In a model that is far larger than the last-level cache they always do: decoding is bound by that. A graph of
        two sublayers would find them in the cache.
        """
        cache = table.device.cache_bytes
        return 2 * cache if cache is not None and weight_bytes(self.model) > 2 * cache else 0


def wanted_rows(
    model: PreTrainedModel, precisions: Sequence[Precision], granule: int, n_points: int = 3
) -> list[tuple[str, int, Precision]]:
    """(kind, size, precision) of the rows that a search over this model needs: a few sizes, interpolated between."""
    layers = read_structure(model).layers
    heads, kv_heads = max(layer.n_heads for layer in layers), max(layer.n_kv_heads for layer in layers)
    width = max(layer.ffn_width for layer in layers)
    groups = points(kv_heads, 1, n_points)
    rows: list[tuple[str, int, Precision]] = []
    for precision in precisions:
        rows += [(EMPTY, 0, precision), (FRAME, 0, precision)]
        rows += [(ATTENTION, count * (heads // kv_heads), precision) for count in groups if heads]
        rows += [(FFN, size, precision) for size in points(width, granule, n_points)]
    return rows


def points(most: int, granule: int, n_points: int) -> list[int]:
    """Sizes to measure: everything, and multiples of the granule spread below it."""
    if most == 0:
        return []
    shares = [(step + 1) / n_points for step in range(n_points - 1)]
    rounded = {min(most, max(granule, granule * round(share * most / granule))) for share in (1 / 6, *shares)}
    return sorted(rounded | {most})


def fill_table(
    table: CostTable,
    timer: Timer,
    rows: Sequence[tuple[str, int, Precision]],
    calls: Sequence[CallShape],
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Measure every row that is not in the table; each is in the file before the next begins."""
    found = [(row, [call for call in calls if (*row, call.key) not in table.rows]) for row in rows]
    missing = [(row, absent) for row, absent in found if absent]
    if not missing:
        return
    on_progress(0, len(missing))
    with tempfile.TemporaryDirectory(prefix="cost-table-") as name, graph_worker(table.device, Path(name)) as worker:
        worker.wait_until_ready()
        for done, (row, absent) in enumerate(missing):
            _measure_row(table, timer, worker, row, absent, Path(name))
            on_progress(done + 1, len(missing))


def graph_worker(device: Device, folder: Path) -> WorkerProcess:
    """A process that times graphs on this device; its log lies in the folder."""
    return WorkerProcess(GraphJob("cost table", device.threads, device.provider, {}), folder / "worker.log")


def _measure_row(
    table: CostTable,
    timer: Timer,
    worker: WorkerProcess,
    row: tuple[str, int, Precision],
    calls: Sequence[CallShape],
    folder: Path,
) -> None:
    """Make one graph and time it in every shape of call."""
    kind, size, precision = row
    n_sublayers, path = min(N_SUBLAYERS, table.model["n_layers"]), folder / "graph.onnx"
    module = graph_for(timer.model, kind, size, n_sublayers)
    write_graph(
        module,
        path,
        is_decoder=timer.is_decoder,
        output=timer.output,
        precision=precision,
        quantisation=timer.quantisation,
        # the whole model without sublayers is called as real ones are
        sweep_bytes=0 if kind == EMPTY else timer.sweep_bytes(table),
    )
    worker.ask("open", path=str(path))
    for call in calls:
        timed, joules, energy_kind = time_graph(worker, call, vocab_size=int(module.config.vocab_size), timer=timer)
        table.add(
            Row(
                kind=kind,
                size=size,
                precision=precision,
                call=call.key,
                n_sublayers=n_sublayers,
                cpu_s=_timing(timed["cpu_s"]),
                latency_s=_timing(timed["latency_s"]),
                n_calls=int(timed["n_calls"]),
                size_bytes=file_bytes(path),
                energy_j=joules,
                energy_kind=energy_kind,
            )
        )


def time_graph(
    worker: WorkerProcess, call: CallShape, *, vocab_size: int, timer: Timer
) -> tuple[dict[str, Any], float | None, str]:
    """Time the graph that is open; also joules of one call, and whether they are `measured`, `estimated` or why not."""
    with energy.Window(timer.meters) if timer.meters else nullcontext() as window:
        timed = worker.ask(
            "time",
            batch=call.batch,
            n_new=call.n_new,
            n_past=call.n_past,
            vocab_size=vocab_size,
            min_s=timer.effort.min_s,
            max_s=timer.effort.max_s,
            within=timer.effort.within,
        )
    if window is not None:
        result = window.result
        if isinstance(result, energy.MeasuredEnergy):
            return timed, result.energy_gross_j / (timed["n_calls"] + timed["n_warm_up"]), "measured"
        return timed, None, result.reason or "the meter's readings cannot be called measured"
    try:
        estimate = energy.estimate_with(timer.calibration, cpu_s=timed["cpu_s"][0], wall_s=timed["latency_s"][0])
    except EnergyError as error:
        return timed, None, error.message
    return timed, estimate.est_energy_gross_j, "estimated"


def _timing(values: Sequence[float]) -> tuple[float, float, float]:
    middle, low, high = values
    return middle, low, high
