"""Fill a cost table: which rows a model and its workloads need, and measuring those that are not there yet."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from compressor import energy
from compressor.graphs.files import file_bytes
from compressor.measurement.cost_graphs import graph_for, weight_bytes, write_graph
from compressor.measurement.cost_table import EMPTY, FRAME, CallShape, CostTable, Device, Precision, RowName, Turn
from compressor.measurement.graph_rounds import Clock, Graph, opened, run_rounds
from compressor.methods.structure import ATTENTION, FFN
from compressor.methods.surgery import read_structure


@dataclass(frozen=True)
class Effort:
    """How long things are timed: rounds of the table and of whole models, and seconds of a turn."""

    rounds: int = 6
    window_s: float = 0.2
    whole_rounds: int = 6
    whole_window_s: float = 0.4


@dataclass(frozen=True)
class Timer:
    """How graphs are made and timed.

    Attributes:
        model: whose sublayers.
        is_decoder, outputs: how it is exported.
        effort: rounds and windows.
        meters: meters whose joules may be called measured; empty where energy is estimated.
        calibration: watts of this machine for estimates.
        quantisation: arguments of `quantise_dynamic` for INT8.
    """

    model: PreTrainedModel
    is_decoder: bool
    outputs: tuple[str, ...]
    effort: Effort = Effort()
    meters: tuple[energy.Source, ...] = ()
    calibration: energy.Calibration | None = None
    quantisation: Mapping[str, Any] | None = None

    def clock(self, device: Device, window_s: float) -> Clock:
        """How turns are taken on a device."""
        return Clock(device, window_s, self.meters, self.calibration)

    def write(self, module: PreTrainedModel, path: Path, precision: Precision, sweep_bytes: int = 0) -> Graph:
        """Export, fuse and quantise a module of this model's class."""
        write_graph(
            module,
            path,
            is_decoder=self.is_decoder,
            outputs=self.outputs,
            precision=precision,
            quantisation=self.quantisation,
            sweep_bytes=sweep_bytes,
        )
        return Graph(path.stem, path, int(module.config.vocab_size))

    def sweep_bytes(self, device: Device) -> int:
        """How much a small graph reads besides its sublayers, so that their weights come from memory.

        In a model that is far larger than the last-level cache they always do: decoding is bound by that. A graph of a
        few sublayers would find them in the cache.
        """
        cache = device.cache_bytes
        return 2 * cache if cache is not None and weight_bytes(self.model) > 2 * cache else 0


def wanted_rows(
    model: PreTrainedModel, precisions: Sequence[Precision], granule: int, n_points: int = 3
) -> list[RowName]:
    """The rows that a search over this model needs: a few sizes of each kind, interpolated between."""
    layers = read_structure(model).layers
    heads, kv_heads = max(layer.n_heads for layer in layers), max(layer.n_kv_heads for layer in layers)
    width = max(layer.ffn_width for layer in layers)
    groups = points(kv_heads, 1, n_points)
    rows: list[RowName] = []
    for precision in precisions:
        rows += [(EMPTY, 0, precision), (FRAME, 0, precision)]
        rows += [(ATTENTION, count * (heads // kv_heads), precision) for count in groups if heads]
        rows += [(FFN, size, precision) for size in points(width, granule, n_points)]
    return rows


def points(most: int, granule: int, n_points: int) -> list[int]:
    """Sizes to measure: everything, and multiples of the granule spread below it."""
    if most == 0:
        return []
    shares = [1 / 6, *((step + 1) / n_points for step in range(n_points - 1))]
    rounded = {min(most, max(granule, granule * round(share * most / granule))) for share in shares}
    return sorted(rounded | {most})


def fill_table(
    table: CostTable,
    timer: Timer,
    rows: Sequence[RowName],
    calls: Sequence[CallShape],
    *,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Time every row that is not in the table, or not often enough; each complete round is in the file at once.

    Raises:
        CompressorError: a graph that cannot be made or opened.
    """
    n_rounds = timer.effort.rounds
    missing = [row for row in rows if any(table.n_samples(row, call) < n_rounds for call in calls)]
    if not missing:
        return
    fewest = min(table.n_samples(row, call) for row in missing for call in calls)
    total = len(missing) + n_rounds - fewest
    on_progress(0, total)
    with tempfile.TemporaryDirectory(prefix="cost-table-") as name:
        sweep_bytes = timer.sweep_bytes(table.device)
        # beside a sweep more sublayers are needed to be seen
        n_sublayers = min(4 if sweep_bytes else 2, table.model["n_layers"])
        graphs = {}
        for done, row in enumerate(missing, 1):
            kind, size, precision = row
            module = graph_for(timer.model, kind, size, n_sublayers)
            # the whole model without sublayers is called as real ones are
            sweep = 0 if kind == EMPTY else sweep_bytes
            graph = timer.write(module, Path(name) / f"{kind}-{size}-{precision}.onnx", precision, sweep)
            graphs[row] = graph
            on_progress(done, total)

        def keep(number: int, turns: dict[str, dict[str, Turn]]) -> None:
            for row, graph in graphs.items():
                for call in calls:
                    turn = turns[graph.name][call.key]
                    table.add(row, call, number, turn, n_sublayers=n_sublayers, size_bytes=file_bytes(graph.path))
            on_progress(len(missing) + number + 1, total)

        with opened(
            list(graphs.values()), timer.clock(table.device, timer.effort.window_s), Path(name), one_process=True
        ) as crew:
            table.begin_session()
            run_rounds(crew, calls, n_rounds - fewest, seed=seed, on_round=keep)
