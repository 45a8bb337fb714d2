"""Export the graphs of a cost table on two cores: tracing a model takes one, and there is nothing else to do meanwhile.

A second process writes every other graph: ``python -m compressor.measurement.graph_writer``, told what to do by one
pickled order on its standard input. It is gone before anything is timed.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil

from compressor.measurement.cost_graphs import Whole, weight_bytes
from compressor.measurement.cost_rows import Timer
from compressor.measurement.cost_table import RowName
from compressor.measurement.device import Device
from compressor.measurement.worker import die_with_parent

FEWEST_GRAPHS = 6
"""Below this a second process would hardly have started before the first is done."""
MODELS_IN_MEMORY = 6
"""Copies of the weights that a tracing process may hold at its peak."""


@dataclass(frozen=True)
class Order:
    """Graphs to write.

    Attributes:
        timer: how; its `graphs` is the folder.
        device: of the table.
        rows: rows of the table.
        wholes: whole models.
    """

    timer: Timer
    device: Device
    rows: tuple[RowName, ...]
    wholes: tuple[Whole, ...]

    def __len__(self) -> int:
        return len(self.rows) + len(self.wholes)

    def halves(self) -> tuple[Order, Order]:
        """Every other row and every other whole model."""
        mine = replace(self, rows=self.rows[::2], wholes=self.wholes[1::2])
        return mine, replace(self, rows=self.rows[1::2], wholes=self.wholes[::2])

    def write(self, on_graph: Callable[[], None] = lambda: None) -> None:
        """Write them one after the other; those that are there are left as they are."""
        folder = self.timer.graphs
        assert folder is not None
        for row in self.rows:
            self.timer.write_row(row, self.device, folder)
            on_graph()
        for whole in self.wholes:
            self.timer.write_whole(whole, folder)
            on_graph()


def write_ahead(order: Order, on_progress: Callable[[int, int], None]) -> None:
    """Write graphs into the timer's folder, half of them in a second process where cores and memory allow.

    What the second process cannot write is left to whoever needs it, who then meets the error by its name.
    """
    if len(order) < FEWEST_GRAPHS or not _has_room(order.timer):
        return
    mine, theirs = order.halves()
    total, done = len(order), 0

    def count() -> None:
        nonlocal done
        done += 2
        on_progress(min(done, total), total)

    on_progress(0, total)
    with tempfile.TemporaryFile() as told:
        pickle.dump(replace(theirs, timer=replace(theirs.timer, meters=(), calibration=None)), told)
        told.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-m", "compressor.measurement.graph_writer"],
            stdin=told,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        mine.write(count)
        child.wait()
    finally:
        child.kill()
        child.wait()
    on_progress(total, total)


def _has_room(timer: Timer) -> bool:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores > 1 and psutil.virtual_memory().available > 2 * MODELS_IN_MEMORY * weight_bytes(timer.model)


def main() -> None:
    """Write what the order on standard input names."""
    import torch

    die_with_parent()
    torch.set_num_threads(1)
    order: Order = pickle.load(sys.stdin.buffer)  # from the parent that started us
    order.write()


if __name__ == "__main__":
    main()
