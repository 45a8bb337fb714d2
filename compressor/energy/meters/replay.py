"""A meter without hardware: it plays a given list of readings.

Public, since tests of anything that measures need it. Whatever it plays is labelled simulated: not even a recorded
log of a real counter can pass as a measurement through here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compressor.energy.domain import Domain, Probe, Provenance, Sample
from compressor.errors import EnergyError


class ReplayMeter:
    """Plays one set of samples at each read, with the times they carry.

    Args:
        domains: what the readings belong to; their provenance is set to simulated.
        readings: one tuple of samples for each read; an error in place of one is raised.
    """

    name = "replay"
    label = "simulated"

    def __init__(self, domains: Sequence[Domain], readings: Sequence[tuple[Sample, ...] | EnergyError]) -> None:
        self._domains = tuple(replace(domain, provenance=Provenance.SIMULATED) for domain in domains)
        self._readings = list(readings)

    def probe(self) -> Probe:
        """Always ok, and says what it is."""
        return Probe("ok", f"simulated: {len(self._readings)} reading(s) to play")

    def domains(self) -> tuple[Domain, ...]:
        """The given domains, labelled simulated."""
        return self._domains

    def read(self) -> tuple[Sample, ...]:
        """The next set of samples."""
        if not self._readings:
            raise EnergyError("the replay has no readings left")
        reading = self._readings.pop(0)
        if isinstance(reading, EnergyError):
            raise reading
        return reading
