"""Time several graphs in randomised complete rounds: what drifts with the machine falls on all of them alike.

A round times every graph once, in an order drawn from the seed. Small graphs share one process and are opened in turn;
whole models have one each, stopped except in its turn, since opening them takes longer than timing them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor import energy
from compressor.errors import EnergyError
from compressor.measurement.cost_table import CallShape, Turn
from compressor.measurement.device import Device
from compressor.measurement.workers import GraphJob, WorkerProcess


@dataclass(frozen=True)
class Graph:
    """A graph to time."""

    name: str
    path: Path
    vocab_size: int


@dataclass(frozen=True)
class Clock:
    """How turns are taken.

    Attributes:
        device: threads and provider.
        window_s: timed calls of one turn.
        meters: whose joules may be called measured; empty where energy is estimated.
        calibration: watts of this machine for estimates.
    """

    device: Device
    window_s: float
    meters: tuple[energy.Source, ...] = ()
    calibration: energy.Calibration | None = None


@contextmanager
def opened(graphs: Sequence[Graph], clock: Clock, folder: Path, *, one_process: bool) -> Iterator[Crew]:
    """Workers for these graphs, gone afterwards; their logs lie in the folder."""
    with ExitStack() as stack:
        crew = Crew(clock, folder, stack)
        for graph in graphs:
            crew.add(graph, one_process=one_process)
        yield crew


class Crew:
    """Graphs and the processes that time them."""

    def __init__(self, clock: Clock, folder: Path, stack: ExitStack) -> None:
        self._clock, self._folder, self._stack = clock, folder, stack
        self._shared: WorkerProcess | None = None
        self._members: dict[str, tuple[Graph, WorkerProcess]] = {}

    def add(self, graph: Graph, *, one_process: bool) -> None:
        """Take a graph in, in a process of its own or in the shared one."""
        if one_process:
            self._shared = self._shared or self._start("shared")
            self._members[graph.name] = (graph, self._shared)
            return
        self._open(graph, self._start(graph.name))

    def renew(self, rng: np.random.Generator) -> None:
        """Put every graph that has a process of its own into a fresh one, so that its memory lies elsewhere.

        All end before the first starts again, in a drawn order: a lone one would be given its old pages back.
        """
        graphs = [graph for graph, worker in self._members.values() if worker is not self._shared]
        for graph in graphs:
            self.drop(graph.name)
        drawn = [graphs[number] for number in rng.permutation(len(graphs))]
        workers = [self._launch(graph.name) for graph in drawn]
        for graph, worker in zip(drawn, workers, strict=True):
            worker.wait_until_ready()
            self._open(graph, worker)

    def drop(self, name: str) -> None:
        """End the process of a graph that has one of its own."""
        _, worker = self._members.pop(name)
        worker.close()

    def round(self, calls: Sequence[CallShape], rng: np.random.Generator) -> dict[str, dict[str, Turn]]:
        """Time every graph once: name -> key of the call -> its turn."""
        found: dict[str, dict[str, Turn]] = {}
        for name in rng.permutation(sorted(self._members)):
            graph, worker = self._members[str(name)]
            if worker is self._shared:
                worker.ask("open", path=str(graph.path))
            else:
                worker.resume()
            found[graph.name] = {call.key: self._turn(worker, graph, call) for call in calls}
            if worker is not self._shared:
                worker.pause()
        return found

    def _open(self, graph: Graph, worker: WorkerProcess) -> None:
        worker.ask("open", path=str(graph.path))
        worker.pause()
        self._members[graph.name] = (graph, worker)

    def _start(self, name: str) -> WorkerProcess:
        worker = self._launch(name)
        worker.wait_until_ready()
        return worker

    def _launch(self, name: str) -> WorkerProcess:
        device = self._clock.device
        job = GraphJob(name, device.threads, device.provider, {})
        return self._stack.enter_context(WorkerProcess(job, self._folder / f"{name}.log"))

    def _turn(self, worker: WorkerProcess, graph: Graph, call: CallShape) -> Turn:
        clock = self._clock
        with energy.Window(clock.meters) if clock.meters else nullcontext() as window:
            timed: dict[str, Any] = worker.ask(
                "time",
                batch=call.batch,
                n_new=call.n_new,
                n_past=call.n_past,
                vocab_size=graph.vocab_size,
                window_s=clock.window_s,
            )
        joules, kind = _joules(None if window is None else window.result, timed, clock)
        return Turn(timed["cpu_s"], timed["latency_s"], int(timed["n_calls"]), joules, kind)


def _joules(result: energy.EnergyResult | None, timed: Mapping[str, Any], clock: Clock) -> tuple[float | None, str]:
    """Joules of one call, and `measured`, `estimated` or why there are none."""
    if result is not None:
        if isinstance(result, energy.MeasuredEnergy):
            return result.energy_gross_j / (timed["n_calls"] + timed["n_warm_up"]), "measured"
        return None, result.reason or "the meter's readings cannot be called measured"
    try:
        estimate = energy.estimate_with(clock.calibration, cpu_s=timed["cpu_s"], wall_s=timed["latency_s"])
    except EnergyError as error:
        return None, error.message
    return estimate.est_energy_gross_j, "estimated"


def run_rounds(
    crew: Crew,
    calls: Sequence[CallShape],
    rounds: int,
    *,
    seed: int,
    on_round: Callable[[int, dict[str, dict[str, Turn]]], None] = lambda number, turns: None,
) -> list[dict[str, dict[str, Turn]]]:
    """Several rounds; each is handed over as soon as it is complete."""
    rng, found = np.random.default_rng(seed), []
    for number in range(rounds):
        turns = crew.round(calls, rng)
        found.append(turns)
        on_round(number, turns)
    return found


def mixed(turns: Mapping[str, Turn], calls: Sequence[CallShape]) -> Turn:
    """One turn for a mix of calls: CPU-seconds and joules a token, the mean latency of a call."""
    known = [turns[call.key].energy_j for call in calls]
    joules = [value for value in known if value is not None]
    per_token = [call.weight / call.real_tokens for call in calls]
    return Turn(
        cpu_s=math.fsum(share * turns[call.key].cpu_s for share, call in zip(per_token, calls, strict=True)),
        latency_s=math.fsum(call.weight * turns[call.key].latency_s for call in calls),
        n_calls=sum(turn.n_calls for turn in turns.values()),
        energy_j=math.fsum(share * one for share, one in zip(per_token, joules, strict=True))
        if len(joules) == len(known)
        else None,
        energy_kind=turns[calls[0].key].energy_kind,
    )
