"""Whole models held against the dense one in paired rounds: whether a budget was kept, on the device and not on paper.

One process for each graph, stopped except in its turn, in random order within each round, and the dense model twice:
what it shows against itself (A/A) is the least that can be told apart.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from compressor.graphs.files import file_bytes
from compressor.measurement.cost_table import CallShape, Turn
from compressor.measurement.graph_rounds import Clock, Graph, mixed, opened, run_rounds
from compressor.measurement.statistics import robust_ratio

DENSE, TWIN, PRUNED = "dense", "dense again", "pruned"
BLOCK_ROUNDS = 4
"""Rounds in the same processes. Where the memory of one lies is drawn once for its life; on a virtual machine that
alone made differences of 5 to 20 % in decoding, which no number of further rounds takes away."""
WIDEST_AA = 0.05
"""A session that cannot tell the dense model from itself to 5 % is timed on: else a budget would pass for kept because
nothing could be seen."""


@dataclass(frozen=True)
class Comparison:
    """A pruned model against the dense one in one session; seconds are per token of the mix, latencies of a call.

    Attributes:
        ratio, ratio_ci95: CPU-seconds a token, pruned over dense, paired by round (`robust_ratio`).
        aa_bound: the largest relative difference inside the A/A interval.
        dense_cpu_s, cpu_s: medians over the rounds.
        dense_latency_s, latency_s: likewise.
        dense_energy_j, energy_j: joules a token; None where they are not known.
        energy_kind: `measured`, `estimated`, or why there are none.
        dense_size_bytes, size_bytes: of the files.
        rounds: each took all three models once.
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
    dense_size_bytes: int
    size_bytes: int
    rounds: int

    def to_json(self) -> dict[str, Any]:
        """As a cost table keeps it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Comparison:
        """What `to_json` gave."""
        ends = value["ratio_ci95"]
        return cls(**{**value, "ratio_ci95": None if ends is None else (ends[0], ends[1])})


class AgainstDense:
    """The dense graph, open twice; use as a context manager.

    Args:
        dense: the dense model's graph.
        calls: the mix.
        clock: threads, provider, seconds of one turn, and how energy is read.
        rounds: of a comparison.
        most_rounds: where its A/A interval is wide.
    """

    def __init__(
        self, dense: Graph, calls: Sequence[CallShape], clock: Clock, *, rounds: int, most_rounds: int
    ) -> None:
        self._dense, self._calls, self._clock = dense, tuple(calls), clock
        self._rounds, self._most_rounds = rounds, most_rounds
        self._stack = ExitStack()

    def __enter__(self) -> AgainstDense:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="whole-models-")))
        both = [replace(self._dense, name=name) for name in (DENSE, TWIN)]
        self._crew = self._stack.enter_context(opened(both, self._clock, folder, one_process=False))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def compare(self, pruned: Graph, *, seed: int = 0) -> Comparison:
        """Time a pruned graph beside the dense one."""
        self._crew.add(replace(pruned, name=PRUNED), one_process=False)
        found: dict[str, list[Turn]] = {DENSE: [], TWIN: [], PRUNED: []}
        aa_bound, rng = math.inf, np.random.default_rng(seed)
        while len(found[DENSE]) < (self._most_rounds if aa_bound > WIDEST_AA else self._rounds):
            if found[DENSE]:
                self._crew.renew(rng)
            n_rounds = min(BLOCK_ROUNDS, self._most_rounds - len(found[DENSE]))
            for turns in run_rounds(self._crew, self._calls, n_rounds, seed=seed + len(found[DENSE])):
                for name, taken in found.items():
                    taken.append(mixed(turns[name], self._calls))
            aa = robust_ratio([one.cpu_s for one in found[TWIN]], [one.cpu_s for one in found[DENSE]])
            aa_bound = max(math.expm1(abs(math.log(end))) for end in aa.ci95 or (aa.value,))
        self._crew.drop(PRUNED)
        ratio = robust_ratio([one.cpu_s for one in found[PRUNED]], [one.cpu_s for one in found[DENSE]])
        return Comparison(
            ratio=ratio.value,
            ratio_ci95=ratio.ci95,
            aa_bound=aa_bound,
            dense_cpu_s=_median(found[DENSE], "cpu_s"),
            cpu_s=_median(found[PRUNED], "cpu_s"),
            dense_latency_s=_median(found[DENSE], "latency_s"),
            latency_s=_median(found[PRUNED], "latency_s"),
            dense_energy_j=_joules(found[DENSE]),
            energy_j=_joules(found[PRUNED]),
            energy_kind=found[PRUNED][0].energy_kind,
            dense_size_bytes=file_bytes(self._dense.path),
            size_bytes=file_bytes(pruned.path),
            rounds=len(found[DENSE]),
        )


def _median(turns: Sequence[Turn], name: str) -> float:
    return float(np.median([getattr(turn, name) for turn in turns]))


def _joules(turns: Sequence[Turn]) -> float | None:
    known = [turn.energy_j for turn in turns if turn.energy_j is not None]
    return float(np.median(known)) if len(known) == len(turns) else None
