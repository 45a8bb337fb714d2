"""ONNX graphs timed in one process: ``python -m compressor.measurement.table_worker``.

Serves cost tables: an order opens a graph, or names the shape of one call and is answered by what a call costs. One
graph is open at a time, since two live sessions disturb each other's threads. Imports no torch.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from compressor.errors import CompressorError
from compressor.measurement.worker import claim_stdout, die_with_parent, reply
from compressor.runtime.onnx_runner import open_session
from compressor.runtime.runners import position_ids

WARM_UP_S = 0.05


def main() -> None:
    """Obey until the parent says stop or is gone."""
    die_with_parent()
    replies = claim_stdout()
    try:
        worker = TableWorker(json.loads(sys.stdin.readline()))
        reply(replies, {"ready": True, "pid": os.getpid()})
        for line in sys.stdin:
            order = json.loads(line)
            if order["do"] == "stop":
                return
            reply(replies, worker.time(order) if order["do"] == "time" else worker.open(order))
    except CompressorError as error:
        reply(replies, {"error": type(error).__name__, "text": str(error)})
        sys.exit(1)


class TableWorker:
    """One session at a time, and how it is called."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.session: ort.InferenceSession | None = None

    def open(self, order: dict[str, Any]) -> dict[str, Any]:
        """Open a graph in place of the one before."""
        self.session = None  # its threads end before the next one's start
        self.session = open_session(
            Path(order["path"]),
            threads=self.job["threads"],
            provider=self.job["provider"],
            settings=self.job["settings"],
        )
        return {}

    def time(self, order: dict[str, Any]) -> dict[str, Any]:
        """Call until the window is full: seconds of one call, by the clock (median) and of this process (mean).

        CPU seconds are read at both ends only: the kernel counts those of the other threads in ticks of a few ms.
        """
        call = self._call(order)
        began, n_warm_up = time.perf_counter(), 0
        while n_warm_up < 2 or time.perf_counter() - began < WARM_UP_S:
            call()
            n_warm_up += 1
        wall: list[float] = []
        cpu_start, before = time.process_time_ns(), time.perf_counter_ns()
        end = before + int(order["window_s"] * 1e9)
        while not wall or before < end:
            call()
            now = time.perf_counter_ns()
            wall.append((now - before) / 1e9)
            before = now
        cpu_s = (time.process_time_ns() - cpu_start) / 1e9 / len(wall)
        return {
            "n_calls": len(wall),
            "n_warm_up": n_warm_up,
            "latency_s": statistics.median(wall),
            "cpu_s": cpu_s,
        }

    def _call(self, order: dict[str, Any]) -> Callable[[], object]:
        assert self.session is not None, "a graph is opened before it is timed"
        feeds = make_feeds(self.session, order["batch"], order["n_new"], order["n_past"], order["vocab_size"])
        names = [value.name for value in self.session.get_outputs()]
        session = self.session
        return lambda: session.run_with_ort_values(names, feeds)


def make_feeds(
    session: ort.InferenceSession, batch: int, n_new: int, n_past: int, vocab_size: int
) -> dict[str, ort.OrtValue]:
    """Random inputs of one shape, without padding: (B, T) tokens after P past ones."""
    rng = np.random.default_rng(0)
    mask = np.ones((batch, n_past + n_new), np.int64)
    arrays: dict[str, np.ndarray] = {
        "input_ids": rng.integers(0, vocab_size, (batch, n_new)),
        "attention_mask": mask,
        "token_type_ids": np.zeros((batch, n_new), np.int64),
        "position_ids": np.ascontiguousarray(position_ids(mask)[:, -n_new:]),
    }
    feeds = {}
    for value in session.get_inputs():
        if value.name.startswith("past_key_values."):
            _, n_heads, _, head_size = value.shape
            array = rng.standard_normal((batch, n_heads, n_past, head_size)).astype(np.float32)
        else:
            array = arrays[value.name]
        feeds[value.name] = ort.OrtValue.ortvalue_from_numpy(array)
    return feeds


if __name__ == "__main__":
    main()
