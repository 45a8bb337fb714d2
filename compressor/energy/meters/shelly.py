"""A Shelly smart plug: joules at the wall, on the local network.

Second-generation plugs answer ``/rpc/Switch.GetStatus`` with the power in watts and the energy in watt-hours. The
energy counter moves only about once a minute, so the power is integrated and the counter is not used.
"""

from __future__ import annotations

from fractions import Fraction

from compressor.energy.domain import Domain, Probe, Provenance, Quantity, Sample, Scope
from compressor.energy.meters.http import find, get_json, scaled, unconfigured
from compressor.errors import EnergyError

PERIOD_S = 1.0
CEILING_W = 4000.0


class ShellyMeter:
    """A plug by its address, such as ``http://192.168.1.20``.

    Args:
        address: of the plug; None when there is none.
        channel: number of the switch.
    """

    name = "shelly"
    label = "Shelly plug"

    def __init__(self, address: str | None = None, *, channel: int = 0) -> None:
        self._url = None if address is None else f"{address.rstrip('/')}/rpc/Switch.GetStatus?id={channel}"

    def probe(self) -> Probe:
        """Whether the plug answers and is on."""
        if self._url is None:
            return unconfigured("Shelly plug", "give its address: meters=[ShellyMeter('http://...')]")
        try:
            (sample,) = self.read()
        except EnergyError as error:
            return Probe("error", str(error))
        if sample.raw == 0:
            return Probe("frozen", "the plug reads 0 W: nothing runs from it")
        return Probe("ok", f"{sample.raw / 1000:g} W at the wall")

    def domains(self) -> tuple[Domain, ...]:
        """One sensor, in milliwatts."""
        return (
            Domain(
                id="plug",
                scope=Scope.NODE_WALL_AC,
                provenance=Provenance.WALL_METERED,
                quantity=Quantity.POWER,
                unit=Fraction(1, 1000),
                period_s=PERIOD_S,
                ceiling_w=CEILING_W,
            ),
        )

    def read(self) -> tuple[Sample, ...]:
        """Power now."""
        if self._url is None:
            raise EnergyError("no Shelly plug is configured")
        t_ns, document = get_json(self._url)
        return (Sample("plug", t_ns, scaled(find(document, ("apower",), self._url), 1000, "apower", self._url)),)
