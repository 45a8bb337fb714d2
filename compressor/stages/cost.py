"""What a stage costs: wall time, CPU time of the process and its children, energy.

Time is journalled while the stage works, so a stage that was killed and resumed still states all of it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compressor import energy
from compressor.errors import EnergyError, ProvenanceError
from compressor.schema.events import Emit, Event, Progress

JOURNAL = "cost.json"
JOURNAL_EVERY_S = 1.0


@dataclass(frozen=True)
class Cost:
    """Attempts that were cut short included; measured energy only where one attempt did it all."""

    wall_s: float
    cpu_s: float
    energy: dict[str, Any] | None
    energy_reason: str | None


class CostMeter:
    """Reads clocks from when it is made; `cost` is there once `measure_cost` has ended."""

    def __init__(self, workdir: Path, calibration: energy.Calibration | None = None) -> None:
        self._calibration = calibration
        self._journal = workdir / JOURNAL
        self._earlier_wall_s, self._earlier_cpu_s = _read_journal(self._journal)
        self._start_wall_s, self._start_cpu_s = time.monotonic(), _cpu_s()
        self._written_s = self._start_wall_s
        self._elsewhere_cpu_s = 0.0
        self.cost: Cost | None = None

    def add(self, cpu_s: float) -> None:
        """Count CPU-seconds that other processes spent on the same work."""
        self._elsewhere_cpu_s += cpu_s

    @property
    def is_resumed(self) -> bool:
        return self._earlier_wall_s > 0

    def so_far(self) -> tuple[float, float]:
        """(wall_s, cpu_s), earlier attempts included."""
        wall_s = self._earlier_wall_s + time.monotonic() - self._start_wall_s
        return wall_s, self._earlier_cpu_s + _cpu_s() - self._start_cpu_s + self._elsewhere_cpu_s

    def watching(self, emit: Emit) -> Emit:
        """The same `emit`, which adds the cost so far to what a training says, and keeps the journal up to date."""

        def emit_and_note(event: Event) -> None:
            emit(self._with_cost(event) if isinstance(event, Progress) and event.task == "train" else event)
            if time.monotonic() - self._written_s >= JOURNAL_EVERY_S:
                self.note()

        return emit_and_note

    def _with_cost(self, event: Progress) -> Progress:
        wall_s, cpu_s = self.so_far()
        so_far = {"cpu_s": cpu_s}
        with suppress(EnergyError):  # no watts to be had for this machine: then no joules are shown
            joules = energy.estimate_with(self._calibration, cpu_s=cpu_s, wall_s=wall_s).est_energy_gross_j
            so_far |= {"est_energy_j": joules} if joules is not None else {}
        return replace(event, values={**event.values, **so_far})

    def note(self) -> None:
        """Write the journal; of several processes, the first does."""
        if os.environ.get("RANK", "0") != "0":
            return
        wall_s, cpu_s = self.so_far()
        partial = self._journal.with_suffix(".partial")
        partial.write_text(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s}))
        partial.replace(self._journal)
        self._written_s = time.monotonic()


@contextmanager
def measure_cost(workdir: Path, calibration: energy.Calibration | None = None) -> Iterator[CostMeter]:
    """Time and energy of the work inside; read `meter.cost` afterwards.

    Args:
        workdir: takes the journal.
        calibration: watts of this machine, where energy can only be estimated.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    meter = CostMeter(workdir, calibration)
    sources = _measured_sources()
    window = energy.Window(sources) if sources else None
    record, reason = None, None
    if window is not None:
        window.__enter__()
    try:
        yield meter
    finally:
        meter.note()
        if window is not None:
            reason = _close(window)
    wall_s, cpu_s = meter.so_far()
    if window is not None and reason is None:
        if meter.is_resumed:
            reason = "the stage was resumed, and what its earlier attempts drew was not read to the end"
        else:
            record = energy.to_json(window.result)
    elif window is None:
        # From the stage's own CPU time, as its wall time resumed or not: the machine's total holds its neighbours'.
        try:
            record = energy.to_json(energy.estimate_with(calibration, cpu_s=cpu_s, wall_s=wall_s))
        except EnergyError as error:
            reason = error.message
    meter.cost = Cost(wall_s=wall_s, cpu_s=cpu_s, energy=record, energy_reason=reason)


def _measured_sources() -> tuple[energy.Source, ...]:
    """Meters whose readings may be called measured; empty where there is none."""
    try:
        return energy.choose_sources(require="measured")
    except ProvenanceError:
        return ()


def _close(window: energy.Window) -> str | None:
    """Close the window; why it gave no joules, if it did not."""
    try:
        window.__exit__(None, None, None)
    except EnergyError as error:
        return error.message
    result = window.result
    return result.reason if isinstance(result, energy.InvalidEnergy) else None


def _read_journal(path: Path) -> tuple[float, float]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return 0.0, 0.0
    return float(values["wall_s"]), float(values["cpu_s"])


def _cpu_s() -> float:
    """CPU-seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
