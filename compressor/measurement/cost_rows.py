"""Fill a cost table: which rows a model and its workloads need, and measuring those that are not there yet."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from compressor import energy
from compressor.graphs.files import file_bytes
from compressor.measurement.cost_graphs import STACK_VOCAB, Whole, graph_for, sliced, weight_bytes, write_graph
from compressor.measurement.cost_table import (
    EMPTY,
    FRAME,
    CallShape,
    CostTable,
    Precision,
    RowName,
    Turn,
)
from compressor.measurement.device import Device
from compressor.measurement.graph_rounds import Clock, Graph, opened, run_rounds
from compressor.methods.structure import ATTENTION, FFN
from compressor.methods.surgery import read_structure


@dataclass(frozen=True)
class Effort:
    """How long things are timed: rounds of the table and of whole models, and seconds of a turn.

    Whole models take more and shorter turns, since what drifts between two of them is paired away, and up to
    `most_whole_rounds` where they would otherwise show too little.
    """

    rounds: int = 6
    window_s: float = 0.2
    whole_rounds: int = 12
    most_whole_rounds: int = 36
    whole_window_s: float = 0.2


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
        graphs: folder that keeps the graphs for another time; a temporary one where None.
    """

    model: PreTrainedModel
    is_decoder: bool
    outputs: tuple[str, ...]
    effort: Effort = Effort()
    meters: tuple[energy.Source, ...] = ()
    calibration: energy.Calibration | None = None
    quantisation: Mapping[str, Any] | None = None
    graphs: Path | None = None

    @property
    def n_layers(self) -> int:
        """Of the model."""
        return len(read_structure(self.model).layers)

    def clock(self, device: Device, window_s: float) -> Clock:
        """How turns are taken on a device."""
        return Clock(device, window_s, self.meters, self.calibration)

    def write(
        self,
        make: Callable[[], PreTrainedModel],
        name: str,
        folder: Path,
        precision: Precision,
        *,
        vocab_size: int,
        wide: Collection[tuple[int, str]] = (),
        sweep_bytes: int = 0,
    ) -> Graph:
        """Export, fuse and quantise a module of this model's class, unless its graph is kept already."""
        path = (self.graphs or folder) / f"{name}.onnx"
        if self.graphs is None or not path.exists():
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as partial:
                write_graph(
                    make(),
                    Path(partial) / path.name,
                    is_decoder=self.is_decoder,
                    outputs=self.outputs,
                    precision=precision,
                    quantisation=self.quantisation,
                    wide=wide,
                    sweep_bytes=sweep_bytes,
                )
                for made in sorted(Path(partial).iterdir(), key=lambda file: file.name == path.name):
                    made.replace(path.parent / made.name)  # the graph last, after the weights that it names
        return Graph(path.stem, path, vocab_size)

    def write_row(self, row: RowName, device: Device, folder: Path) -> tuple[Graph, int]:
        """The graph of a row, and how many sublayers it holds."""
        kind, size, precision = row
        # the whole model without sublayers is called as real ones are
        sweep_bytes = 0 if kind == EMPTY else self.sweep_bytes(device)
        # beside a sweep more sublayers are needed to be seen
        n_sublayers = min(4 if self.sweep_bytes(device) else 2, self.n_layers)
        vocab_size = int(self.model.config.vocab_size) if kind == EMPTY else STACK_VOCAB
        graph = self.write(
            lambda: graph_for(self.model, kind, size, n_sublayers),
            f"{kind}-{size}-{precision}",
            folder,
            precision,
            vocab_size=vocab_size,
            sweep_bytes=sweep_bytes,
        )
        return graph, n_sublayers

    def write_whole(self, whole: Whole, folder: Path) -> Graph:
        """The whole model, cut and stored as it says."""
        return self.write(
            lambda: self.model if whole.sizes is None else sliced(self.model, whole.sizes),
            whole.name,
            folder,
            whole.precision,
            vocab_size=int(self.model.config.vocab_size),
            wide=whole.wide,
        )

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


def missing_rows(table: CostTable, rows: Sequence[RowName], calls: Sequence[CallShape], n_rounds: int) -> list[RowName]:
    """Those that are not in the table, or not often enough."""
    return [row for row in rows if any(table.n_samples(row, call) < n_rounds for call in calls)]


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
    missing = missing_rows(table, rows, calls, n_rounds)
    if not missing:
        return
    fewest = min(table.n_samples(row, call) for row in missing for call in calls)
    total = len(missing) + n_rounds - fewest
    on_progress(0, total)
    with tempfile.TemporaryDirectory(prefix="cost-table-") as name:
        graphs = {}
        for done, row in enumerate(missing, 1):
            graphs[row] = timer.write_row(row, table.device, Path(name))
            on_progress(done, total)

        def keep(number: int, turns: dict[str, dict[str, Turn]]) -> None:
            for row, (graph, n_sublayers) in graphs.items():
                for call in calls:
                    turn = turns[graph.name][call.key]
                    table.add(row, call, number, turn, n_sublayers=n_sublayers, size_bytes=file_bytes(graph.path))
            on_progress(len(missing) + number + 1, total)

        with opened(
            [graph for graph, _ in graphs.values()],
            timer.clock(table.device, timer.effort.window_s),
            Path(name),
            one_process=True,
        ) as crew:
            table.begin_session()
            run_rounds(crew, calls, n_rounds - fewest, seed=seed, on_round=keep)
