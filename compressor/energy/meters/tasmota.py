"""A smart plug with Tasmota firmware: joules at the wall, on the local network.

``Status 8`` (later ``10``) answers with whole watts, and an energy total in steps of a watt-hour, which is 3,600
joules: too coarse for a window, so the power is integrated.
"""

from __future__ import annotations

from fractions import Fraction

from compressor.energy.domain import Domain, Probe, Provenance, Quantity, Sample, Scope
from compressor.energy.meters.http import find, get_json, scaled, unconfigured
from compressor.errors import EnergyError

PERIOD_S = 1.0
CEILING_W = 4000.0


class TasmotaMeter:
    """A plug by its address, such as ``http://192.168.1.21``.

    Args:
        address: of the plug; None when there is none.
    """

    name = "tasmota"
    label = "Tasmota plug"

    def __init__(self, address: str | None = None) -> None:
        self._url = None if address is None else f"{address.rstrip('/')}/cm?cmnd=Status%208"

    def probe(self) -> Probe:
        """Whether the plug answers and is on."""
        if self._url is None:
            return unconfigured("Tasmota plug", "give its address: meters=[TasmotaMeter('http://...')]")
        try:
            (sample,) = self.read()
        except EnergyError as error:
            return Probe("error", str(error))
        if sample.raw == 0:
            return Probe("frozen", "the plug reads 0 W: nothing runs from it")
        return Probe("ok", f"{sample.raw / 1000:g} W at the wall")

    def domains(self) -> tuple[Domain, ...]:
        """One sensor; plugs set to show decimals are read to the milliwatt."""
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
            raise EnergyError("no Tasmota plug is configured")
        t_ns, document = get_json(self._url)
        power = find(document, ("StatusSNS", "ENERGY", "Power"), self._url)
        return (Sample("plug", t_ns, scaled(power, 1000, "ENERGY.Power", self._url)),)
