"""Whole models held against the dense one in paired rounds: whether a budget was kept, on the device and not on paper.

One process for each graph, stopped except in its turn, in random order within each round, and the dense model twice:
what it shows against itself (A/A) is the least that can be told apart.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from compressor.measurement.cost_rows import Effort, Timer, time_graph
from compressor.measurement.cost_table import CallShape, Device
from compressor.measurement.statistics import paired_ratio
from compressor.measurement.workers import GraphJob, WorkerProcess

ROUNDS = 6
DENSE, TWIN, PRUNED = "dense", "dense again", "pruned"


@dataclass(frozen=True)
class Comparison:
    """A pruned model against the dense one in one session; seconds are per token of the mix, latencies of a call.

    Attributes:
        ratio, ratio_ci95: CPU-seconds a token, pruned over dense, paired by round.
        aa_bound: the largest relative difference inside the A/A interval.
        dense_cpu_s, cpu_s: medians over the rounds.
        dense_latency_s, latency_s: likewise.
        dense_energy_j, energy_j: joules a token; None where they are not known.
        energy_kind: `measured`, `estimated`, or why there are none.
        rounds: complete blocks.
    """

    ratio: float
    ratio_ci95: tuple[float, float] | None
    aa_bound: float
    dense_cpu_s: float
    cpu_s: float
    dense_latency_s: float
    latency_s: float
    dense_energy_j: float | None
    energy_j: float | None
    energy_kind: str
    rounds: int


@dataclass(frozen=True)
class _Cost:
    cpu_s: float
    latency_s: float
    energy_j: float | None
    energy_kind: str


class AgainstDense:
    """The dense graph, open twice; use as a context manager.

    Args:
        dense: its ONNX file.
        calls: the mix.
        device: threads and provider.
        timer: how energy is read.
        rounds: complete blocks of a comparison.
        window_s: seconds of one turn and shape.
    """

    def __init__(
        self,
        dense: Path,
        calls: Sequence[CallShape],
        device: Device,
        timer: Timer,
        *,
        rounds: int = ROUNDS,
        window_s: float = 0.5,
    ) -> None:
        self._dense, self._calls, self._device, self._rounds = dense, tuple(calls), device, rounds
        self._timer = Timer(
            timer.model, timer.is_decoder, timer.output, Effort(window_s, window_s), timer.meters, timer.calibration
        )
        self._stack = ExitStack()
        self._crew: dict[str, WorkerProcess] = {}

    def __enter__(self) -> AgainstDense:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="whole-models-")))
        for name in (DENSE, TWIN):
            self._crew[name] = self._start(name, self._dense, self._stack)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def compare(self, pruned: Path, *, seed: int = 0) -> Comparison:
        """Time a pruned graph beside the dense one."""
        rng = np.random.default_rng(seed)
        found: dict[str, list[_Cost]] = {DENSE: [], TWIN: [], PRUNED: []}
        with ExitStack() as stack:
            crew = {**self._crew, PRUNED: self._start(PRUNED, pruned, stack)}
            for _ in range(self._rounds):
                for name in rng.permutation(sorted(crew)):
                    found[str(name)].append(self._turn(crew[str(name)]))
        ratio = paired_ratio([c.cpu_s for c in found[PRUNED]], [c.cpu_s for c in found[DENSE]], seed=seed)
        aa = paired_ratio([c.cpu_s for c in found[TWIN]], [c.cpu_s for c in found[DENSE]], seed=seed)
        aa_ends = aa.ci95 or (aa.value, aa.value)
        return Comparison(
            ratio=ratio.value,
            ratio_ci95=ratio.ci95,
            aa_bound=max(abs(math.expm1(abs(math.log(end)))) for end in aa_ends),
            dense_cpu_s=_median(found[DENSE], "cpu_s"),
            cpu_s=_median(found[PRUNED], "cpu_s"),
            dense_latency_s=_median(found[DENSE], "latency_s"),
            latency_s=_median(found[PRUNED], "latency_s"),
            dense_energy_j=_joules(found[DENSE]),
            energy_j=_joules(found[PRUNED]),
            energy_kind=found[PRUNED][0].energy_kind,
            rounds=self._rounds,
        )

    def _start(self, name: str, path: Path, stack: ExitStack) -> WorkerProcess:
        job = GraphJob(name, self._device.threads, self._device.provider, {})
        worker = stack.enter_context(WorkerProcess(job, self._folder / f"{name}.log"))
        worker.wait_until_ready()
        worker.ask("open", path=str(path))
        worker.pause()
        return worker

    def _turn(self, worker: WorkerProcess) -> _Cost:
        worker.resume()
        cpu_s = latency_s = joules = 0.0
        kind, is_known = "", True
        for call in self._calls:
            vocab_size = int(self._timer.model.config.vocab_size)
            timed, energy_j, kind = time_graph(worker, call, vocab_size=vocab_size, timer=self._timer)
            cpu_s += call.weight * timed["cpu_s"][0] / call.real_tokens
            latency_s += call.weight * timed["latency_s"][0]
            is_known = is_known and energy_j is not None
            joules += call.weight * (energy_j or 0.0) / call.real_tokens
        worker.pause()
        return _Cost(cpu_s, latency_s, joules if is_known else None, kind)


def _median(costs: Sequence[_Cost], name: str) -> float:
    return float(np.median([getattr(cost, name) for cost in costs]))


def _joules(costs: Sequence[_Cost]) -> float | None:
    known = [cost.energy_j for cost in costs if cost.energy_j is not None]
    return float(np.median(known)) if len(known) == len(costs) else None
