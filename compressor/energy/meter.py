"""The one protocol that every meter follows.

A meter knows nothing of windows, tokens or joules: it says whether it can be used (`probe`), what it covers
(`domains`), and hands out raw integers (`read`). Everything else is in `compressor.energy.counter`.
"""

from __future__ import annotations

import time
from typing import Protocol, runtime_checkable

from compressor.energy.domain import Domain, Probe, Sample
from compressor.energy.types import EstimatedEnergy


class Meter(Protocol):
    """A source of raw readings."""

    @property
    def name(self) -> str:
        """Short name in lower case, unique among meters: ``rapl``."""

    @property
    def label(self) -> str:
        """Name for readers: ``RAPL``."""

    def probe(self) -> Probe:
        """Whether it can be used here; never raises for a machine that lacks it."""

    def domains(self) -> tuple[Domain, ...]:
        """What it can read here; raises `EnergyError` where `probe` is not ok."""

    def read(self) -> tuple[Sample, ...]:
        """One sample of each domain, or `EnergyError` with the reason."""


@runtime_checkable
class EstimatingMeter(Protocol):
    """A meter that reads CPU time and turns it into an estimate with a model."""

    def estimate(self, cpu_s: float, wall_s: float) -> EstimatedEnergy:
        """Energy of a window from its busy CPU time."""


def now_ns() -> int:
    """The clock of every sample: monotonic, so a stepped wall clock cannot stretch a window."""
    return time.monotonic_ns()
