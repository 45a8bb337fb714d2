"""A benchmark worker's side: one candidate in a process of its own, orders as lines of JSON on standard input.

Needs only numpy, so that it runs in the environment of any tool. A worker hands `serve` a function that opens its
model; what comes back has `forward` (encoders), or `prefill` and `decode` with a cache of its own (decoders).
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

Arrays = dict[str, Any]


class Model(Protocol):
    """What a worker serves; decoders keep their cache to themselves, and `prefill` starts a new one."""

    version: str

    def forward(self, inputs: Arrays) -> Any:
        """Logits, (B, C)."""

    def prefill(self, ids: Any) -> Any:
        """Logits of the last position, (B, V)."""

    def decode(self, ids: Any) -> Any:
        """The next tokens, (B, 1); logits, (B, V)."""


def serve(open_model: Callable[[Arrays], Model]) -> None:
    """Obey until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print goes to standard error
    job = json.loads(sys.stdin.readline())
    wall, cpu = time.perf_counter(), time.process_time()
    model = open_model(job)
    answer = {"load_s": time.perf_counter() - wall, "load_cpu_s": time.process_time() - cpu, "version": model.version}
    _reply(replies, answer)
    batches: list[Arrays] = []
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "load":
            batches = read_batches(order["path"])
            answer = {}
        elif order["do"] == "run":
            run = run_encoder if order["n_out"] is None else run_decoder
            answer = run(model, batches, order)
        elif order["do"] == "answer":
            np.savez(order["out"], logits=np.concatenate([model.forward(batch) for batch in batches]))
            answer = {}
        elif order["do"] == "score":
            np.savez(order["out"], nll=np.concatenate([score(model, batch["input_ids"]) for batch in batches]))
            answer = {}
        else:
            answer = {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        _reply(replies, answer)


def _reply(replies: Any, answer: Arrays) -> None:
    replies.write(json.dumps(answer) + "\n")
    replies.flush()


def read_batches(path: str) -> list[Arrays]:
    """Batches in order: arrays are named `<number>/<input>`."""
    batches: dict[str, Arrays] = {}
    with np.load(path) as file:
        for key in file.files:
            number, _, name = key.partition("/")
            batches.setdefault(number, {})[name] = file[key]
    return [batches[number] for number in sorted(batches)]


def run_encoder(model: Model, batches: list[Arrays], order: Arrays) -> Arrays:
    """Whole passes over the batches until the window is full."""
    n_passes, cpu, wall = 0, time.process_time(), time.perf_counter()
    latencies = []
    while n_passes == 0 or time.perf_counter() - wall < order["window_s"]:
        for batch in batches:
            start = time.perf_counter()
            model.forward(batch)
            latencies.append(time.perf_counter() - start)
        n_passes += 1
    n_tokens = n_passes * sum(batch["input_ids"].size for batch in batches)
    taken = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall, "tokens": n_tokens}
    return {"forward": {**taken, "latency_s": float(np.median(latencies))}}


def run_decoder(model: Model, batches: list[Arrays], order: Arrays) -> Arrays:
    """Prompts read and `n_out` tokens written, greedily, until the window is full; the two phases apart."""
    sums = {phase: {"cpu_s": 0.0, "wall_s": 0.0, "tokens": 0} for phase in ("prefill", "decode")}
    steps: dict[str, list[float]] = {"prefill": [], "decode": []}
    began, n_passes = time.perf_counter(), 0
    while n_passes == 0 or time.perf_counter() - began < order["window_s"]:
        ids = batches[n_passes % len(batches)]["input_ids"]
        next_ids = ids[:, -1:]
        for phase, n_calls in (("prefill", 1), ("decode", order["n_out"])):
            for _ in range(n_calls):
                cpu, wall = time.process_time(), time.perf_counter()
                logits = model.prefill(ids) if phase == "prefill" else model.decode(next_ids)
                taken = sums[phase]
                taken["cpu_s"] += time.process_time() - cpu
                steps[phase].append(time.perf_counter() - wall)
                taken["wall_s"] += steps[phase][-1]
                taken["tokens"] += ids.size if phase == "prefill" else len(ids)
                next_ids = logits.argmax(axis=-1)[:, None].astype(np.int64)
        n_passes += 1
    return {phase: {**sums[phase], "latency_s": float(np.median(steps[phase]))} for phase in sums}


def score(model: Model, ids: Any) -> Any:
    """Negative log-likelihood of every token but the first, one at a time through the cache, (T - 1,) for one row."""
    found = []
    for at, logits in enumerate(_walk(model, ids)):
        row = logits[0].astype(np.float64)
        row -= row.max()
        found.append(np.log(np.exp(row).sum()) - row[ids[0, at + 1]])
    return np.array(found)


def _walk(model: Model, ids: Any) -> Iterator[Any]:
    yield model.prefill(ids[:, :1])
    for at in range(1, ids.shape[1] - 1):
        yield model.decode(ids[:, at : at + 1])
