"""A smart plug with Tasmota firmware: joules at the wall, on the local network.

``Status 8`` (later ``10``) answers with whole watts, and with an energy total in steps of a watt-hour, which is 3,600
joules: too coarse for a window, so the power is integrated. For work that takes hours the total can be read instead.
"""

from __future__ import annotations

from compressor.energy.domain import Domain, Probe, Sample
from compressor.energy.meters.http import find, get_json, scaled, unconfigured
from compressor.energy.meters.plug import counter_domain, power_domain
from compressor.errors import EnergyError

WH_PER_KWH = 1000


class TasmotaMeter:
    """A plug by its address, such as ``http://192.168.1.21``.

    Args:
        address: of the plug; None when there is none.
        counter: read the energy total in place of the power.
        rolls_over_at_wh: where the total starts again at 0; a total that fell is invalid where this is None.
    """

    name = "tasmota"
    label = "Tasmota plug"

    def __init__(
        self, address: str | None = None, *, counter: bool = False, rolls_over_at_wh: int | None = None
    ) -> None:
        self._url = None if address is None else f"{address.rstrip('/')}/cm?cmnd=Status%208"
        self._counter, self._rolls_over_at_wh = counter, rolls_over_at_wh

    def probe(self) -> Probe:
        """Whether the plug answers and is on."""
        if self._url is None:
            return unconfigured("Tasmota plug", "give its address: meters=[TasmotaMeter('http://...')]")
        try:
            _, milliwatts = self._ask("Power")
        except EnergyError as error:
            return Probe("error", str(error))
        if milliwatts == 0:
            return Probe("frozen", "the plug reads 0 W: nothing runs from it")
        return Probe("ok", f"{milliwatts / 1000:g} W at the wall")

    def domains(self) -> tuple[Domain, ...]:
        """The sensor, read to the milliwatt where it shows decimals, or the total, in watt-hours."""
        return (counter_domain(1, self._rolls_over_at_wh) if self._counter else power_domain(),)

    def read(self) -> tuple[Sample, ...]:
        """Power now, or energy so far."""
        return (Sample("plug", *self._ask("Total" if self._counter else "Power")),)

    def _ask(self, field: str) -> tuple[int, int]:
        """When it was read, and ``Power`` in milliwatts or ``Total`` (kilowatt-hours) in watt-hours."""
        if self._url is None:
            raise EnergyError("no Tasmota plug is configured")
        t_ns, document = get_json(self._url)
        value = find(document, ("StatusSNS", "ENERGY", field), self._url)
        return t_ns, scaled(value, WH_PER_KWH if field == "Total" else 1000, f"ENERGY.{field}", self._url)
