"""ONNX graphs timed in one process: ``python -m compressor.measurement.table_worker``.

Serves cost tables: each order names a graph and the shape of one call, and is answered by medians over many calls with
their intervals. One graph is open at a time, since two live sessions disturb each other's threads. Imports no torch.
"""

from __future__ import annotations

import json
import math
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

MIN_CALLS = 12
"""Fewest calls behind an interval: the order statistics of six or fewer have none at 95 %."""


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
        self.filler = np.zeros(0, np.float32)

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
        """Call until the interval of the median is tight, at least `min_s` and at most `max_s` of calls.

        With `evict_bytes`, caches are swept between calls, outside of what is timed: in a whole model that is larger
        than the last-level cache every weight comes from memory.
        """
        assert self.session is not None, "a graph is opened before it is timed"
        call = self._call(order)
        for _ in range(3):
            call()
        wall: list[float] = []
        cpu: list[float] = []
        spent = 0.0
        while spent < order["max_s"]:
            self._evict(order["evict_bytes"])
            cpu_start, start = time.process_time_ns(), time.perf_counter_ns()
            call()
            wall.append((time.perf_counter_ns() - start) / 1e9)
            cpu.append((time.process_time_ns() - cpu_start) / 1e9)
            spent += wall[-1]
            enough = spent >= order["min_s"] and len(wall) >= MIN_CALLS
            if enough and len(wall) % 8 == 0 and half_width(cpu) <= order["within"]:
                break
        return {"n_calls": len(wall), "spent_s": spent, "latency_s": interval(wall), "cpu_s": interval(cpu)}

    def _evict(self, n_bytes: int) -> None:
        if n_bytes:
            if self.filler.nbytes < n_bytes:
                self.filler = np.zeros(n_bytes // 4, np.float32)
            self.filler += 1.0

    def _call(self, order: dict[str, Any]) -> Callable[[], object]:
        assert self.session is not None
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


def interval(values: list[float]) -> list[float]:
    """(median, low, high): the 95 % interval of a median by order statistics, which one slow call cannot move."""
    ordered = sorted(values)
    n, reach = len(ordered), 0.98 * math.sqrt(len(ordered))
    low = ordered[max(0, math.floor(n / 2 - reach))]
    high = ordered[min(n - 1, math.ceil(n / 2 + reach))]
    return [statistics.median(ordered), low, high]


def half_width(values: list[float]) -> float:
    """Half the interval as a share of the median."""
    middle, low, high = interval(values)
    return (high - low) / 2 / middle if middle > 0 else math.inf


if __name__ == "__main__":
    main()
