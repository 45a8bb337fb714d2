"""One candidate in a process of its own: ``python -m compressor.measurement.worker``.

The first line on standard input says which candidate; each further line is an order, answered by one line of JSON.
Two live runtimes in one process disturb each other (their thread pools spin), hence a process each; the parent stops
it (SIGSTOP) except in its turn. Inputs come as arrays in files, so an ONNX candidate is measured with no tokenizer and
no torch loaded.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from compressor.checkpoints.store import open_checkpoint
from compressor.errors import CompressorError
from compressor.measurement.arrays import Array, load_batches
from compressor.measurement.outputs import write_outputs
from compressor.measurement.profiles import STEADY_WITHIN
from compressor.runtime.runners import DecoderRunner, Runner, open_runner

Order = dict[str, Any]
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Obey until the parent says stop or is gone."""
    die_with_parent()
    replies = claim_stdout()
    try:
        job = json.loads(sys.stdin.readline())
        runner = open_runner(
            open_checkpoint(Path(job["checkpoint"]), verify=False),
            job["variant"],
            threads=job["threads"],
            provider=job["provider"],
            settings=job["settings"],
        )
        worker = Worker(runner)
        reply(replies, {"ready": True, "pid": os.getpid()})
        for line in sys.stdin:
            order = json.loads(line)
            if order["do"] == "stop":
                return
            reply(replies, worker.obey(order))
    except CompressorError as error:
        # A named failure goes to the parent as text; anything else is a bug and leaves its traceback on stderr.
        reply(replies, {"error": type(error).__name__, "text": str(error)})
        sys.exit(1)


def die_with_parent() -> None:
    """A stopped process whose parent was killed would hold its memory for ever; Linux can kill it with the parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def claim_stdout() -> TextIO:
    """Keep the pipe to the parent for replies alone: whatever libraries print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def reply(replies: TextIO, answer: Order) -> None:
    """Answer an order: one line of JSON."""
    replies.write(json.dumps(answer) + "\n")
    replies.flush()


@dataclass(frozen=True)
class Pass:
    """A workload's batches and what is done with them: (batches, tokens to generate) -> seconds of every call."""

    batches: list[dict[str, Array]]
    run_batches: Callable[[list[dict[str, Array]], int], list[float]]

    def whole(self, n_out: int) -> list[float]:
        """All batches once."""
        return self.run_batches(self.batches, n_out)

    def first(self, n_out: int) -> list[float]:
        """The first batch alone."""
        return self.run_batches(self.batches[:1], n_out)


class Worker:
    """A runner and the workloads it has been given."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.passes: dict[str, Pass] = {}

    def obey(self, order: Order) -> Order:
        """Carry out one order.

        Raises:
            KeyError: an order that does not exist.
        """
        return {
            "load": self.load,
            "warm_up": self.warm_up,
            "settle": self.settle,
            "window": self.window,
            "outputs": self.outputs,
            "about": self.about,
        }[order["do"]](order)

    def load(self, order: Order) -> Order:
        """Read a workload's batches and fix what one pass over it is; run one, so that all shapes have been seen."""
        batches = load_batches(Path(order["path"]))
        if order["phase"] == "forward":
            run_batches = partial(_forward_pass, self.runner)
        else:
            run_batches = partial(_generate_pass, _as_decoder(self.runner))
        self.passes[order["key"]] = Pass(batches, run_batches)
        run_batches(batches, order["n_out"])
        return {}

    def warm_up(self, order: Order) -> Order:
        """Work on the first batch until the last three periods agree, within a bound.

        One batch, since a whole pass may take longer than the window it warms up for.
        """
        first, periods = self.passes[order["key"]].first, list[float]()
        began = time.perf_counter()
        bound_s = 2 * order["period_s"] * order["max_periods"]
        while len(periods) < order["max_periods"]:
            start, n_passes = time.perf_counter(), 0
            while n_passes == 0 or time.perf_counter() - start < order["period_s"]:
                first(order["n_out"])
                n_passes += 1
            periods.append((time.perf_counter() - start) / n_passes)
            if is_steady(periods) or (len(periods) >= 3 and time.perf_counter() - began > bound_s):
                break
        return {"batch_s": periods, "steady": is_steady(periods)}

    def settle(self, order: Order) -> Order:
        """Work untimed after a pause, on the first batch: caches are cold and clocks low."""
        end = time.perf_counter() + order["settle_s"]
        while time.perf_counter() < end:
            self.passes[order["key"]].first(order["n_out"])
        return {}

    def window(self, order: Order) -> Order:
        """Whole passes until the window is full: wall seconds, own CPU seconds and the latency of every call."""
        whole, latencies, n_passes = self.passes[order["key"]].whole, list[float](), 0
        cpu_start, start = time.process_time_ns(), time.perf_counter_ns()
        end = start + int(order["window_s"] * 1e9)
        while n_passes == 0 or time.perf_counter_ns() < end:
            latencies += whole(order["n_out"])
            n_passes += 1
        wall_ns, cpu_ns = time.perf_counter_ns() - start, time.process_time_ns() - cpu_start
        return {"passes": n_passes, "wall_s": wall_ns / 1e9, "cpu_s": cpu_ns / 1e9, "latencies_s": latencies}

    def outputs(self, order: Order) -> Order:
        """Answers over the test rows, reduced to what quality needs, into a file."""
        write_outputs(self.runner, order["kind"], load_batches(Path(order["path"])), Path(order["out"]))
        return {}

    def about(self, order: Order) -> Order:
        """Peak memory, and the proof of what was (not) imported."""
        return {
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "has_torch": "torch" in sys.modules,
        }


def is_steady(periods: list[float]) -> bool:
    """Whether the last three periods agree within 2 % of their mean."""
    last = periods[-3:]
    return len(last) == 3 and max(last) - min(last) <= STEADY_WITHIN * sum(last) / 3


def _as_decoder(runner: Runner) -> DecoderRunner:
    if not isinstance(runner, DecoderRunner):
        raise CompressorError(f"{type(runner).__name__} has no prefill and decode: the graph has no KV cache")
    return runner


def _forward_pass(runner: Runner, batches: list[dict[str, Array]], n_out: int) -> list[float]:
    """One call for each batch, which generates nothing; returns the seconds of each."""
    latencies = []
    for batch in batches:
        start = time.perf_counter()
        runner.forward(batch)
        latencies.append(time.perf_counter() - start)
    return latencies


def _generate_pass(runner: DecoderRunner, batches: list[dict[str, Array]], n_out: int) -> list[float]:
    """Generate exactly `n_out` tokens for each batch, greedily, with no stop token.

    Returns:
        Seconds of each prefill where one token was asked for (prompt in, first token out), else of each decode step.
    """
    latencies = []
    for batch in batches:
        start = time.perf_counter()
        logits, state = runner.prefill(batch["input_ids"], batch["attention_mask"])
        ids = next_ids(logits)  # (B, 1)
        if n_out == 1:
            latencies.append(time.perf_counter() - start)
        for _ in range(n_out - 1):
            start = time.perf_counter()
            logits, state = runner.decode(ids, state)
            ids = next_ids(logits)
            latencies.append(time.perf_counter() - start)
    return latencies


def next_ids(logits: Array) -> Array:
    """Most likely token of each row's last position: (B, T, V) or (B, V) -> (B, 1)."""
    last = logits[:, -1] if logits.ndim == 3 else logits  # (B, V)
    ids: Array = np.argmax(last, axis=-1)[:, None].astype(np.int64)
    return ids


if __name__ == "__main__":
    main()
