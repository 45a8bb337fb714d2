"""A Shelly smart plug: joules at the wall, on the local network.

Second-generation plugs answer ``/rpc/Switch.GetStatus`` with the power in watts and the energy in watt-hours. The
energy counter moves only about once a minute: for windows the power is integrated, and for work that takes hours the
counter can be read instead, which misses nothing between two answers.
"""

from __future__ import annotations

from compressor.energy.domain import Domain, Probe, Sample
from compressor.energy.meters.http import find, get_json, scaled, unconfigured
from compressor.energy.meters.plug import counter_domain, power_domain
from compressor.errors import EnergyError

STEPS_PER_WH = 1000  # it shows milliwatt-hours


class ShellyMeter:
    """A plug by its address, such as ``http://192.168.1.20``.

    Args:
        address: of the plug; None when there is none.
        channel: number of the switch.
        counter: read the energy counter in place of the power.
        rolls_over_at_wh: where the counter starts again at 0; a counter that fell is invalid where this is None.
    """

    name = "shelly"
    label = "Shelly plug"

    def __init__(
        self,
        address: str | None = None,
        *,
        channel: int = 0,
        counter: bool = False,
        rolls_over_at_wh: int | None = None,
    ) -> None:
        self._url = None if address is None else f"{address.rstrip('/')}/rpc/Switch.GetStatus?id={channel}"
        self._counter, self._rolls_over_at_wh = counter, rolls_over_at_wh

    def probe(self) -> Probe:
        """Whether the plug answers and is on."""
        if self._url is None:
            return unconfigured("Shelly plug", "give its address: meters=[ShellyMeter('http://...')]")
        try:
            _, document = get_json(self._url)
            milliwatts = scaled(find(document, ("apower",), self._url), 1000, "apower", self._url)
        except EnergyError as error:
            return Probe("error", str(error))
        if milliwatts == 0:
            return Probe("frozen", "the plug reads 0 W: nothing runs from it")
        return Probe("ok", f"{milliwatts / 1000:g} W at the wall")

    def domains(self) -> tuple[Domain, ...]:
        """The sensor, in milliwatts, or the counter, in milliwatt-hours."""
        return (counter_domain(STEPS_PER_WH, self._rolls_over_at_wh) if self._counter else power_domain(),)

    def read(self) -> tuple[Sample, ...]:
        """Power now, or energy so far."""
        if self._url is None:
            raise EnergyError("no Shelly plug is configured")
        t_ns, document = get_json(self._url)
        if self._counter:
            total = find(document, ("aenergy", "total"), self._url)
            return (Sample("plug", t_ns, scaled(total, STEPS_PER_WH, "aenergy.total", self._url)),)
        return (Sample("plug", t_ns, scaled(find(document, ("apower",), self._url), 1000, "apower", self._url)),)
