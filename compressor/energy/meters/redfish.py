"""The board's management controller over Redfish: the whole node at its supplies."""

from __future__ import annotations

from fractions import Fraction

from compressor.energy.domain import Domain, Probe, Provenance, Quantity, Sample, Scope
from compressor.energy.meters.http import find, get_json, scaled, unconfigured
from compressor.errors import EnergyError

PERIOD_S = 1.0
CEILING_W = 20_000.0


class RedfishMeter:
    """Power of one chassis.

    Args:
        address: of the controller, such as ``https://bmc.local``; None when there is none.
        chassis: its id under ``/redfish/v1/Chassis``.
        login: user and password.
    """

    name = "redfish"
    label = "Redfish"

    def __init__(self, address: str | None = None, *, chassis: str = "1", login: tuple[str, str] | None = None) -> None:
        self._url = None if address is None else f"{address.rstrip('/')}/redfish/v1/Chassis/{chassis}/Power"
        self._login = login

    def probe(self) -> Probe:
        """Whether the controller answers with a power."""
        if self._url is None:
            return unconfigured("Redfish controller", "give its address: meters=[RedfishMeter('https://...')]")
        try:
            (sample,) = self.read()
        except EnergyError as error:
            refused = "answered 401" in error.message or "answered 403" in error.message
            remedy = "give the controller's login: RedfishMeter(..., login=(user, password))" if refused else None
            return Probe("permission" if refused else "error", str(error), remedy)
        if sample.raw == 0:
            return Probe("frozen", "the controller reads 0 W")
        return Probe("ok", f"node power, {sample.raw / 1000:g} W now")

    def domains(self) -> tuple[Domain, ...]:
        """One sensor, in milliwatts."""
        return (
            Domain(
                id="redfish",
                scope=Scope.NODE_WALL_AC,
                provenance=Provenance.DEVICE_POWER_INTEGRATED,
                quantity=Quantity.POWER,
                unit=Fraction(1, 1000),
                period_s=PERIOD_S,
                ceiling_w=CEILING_W,
            ),
        )

    def read(self) -> tuple[Sample, ...]:
        """Power now."""
        if self._url is None:
            raise EnergyError("no Redfish controller is configured")
        t_ns, document = get_json(self._url, login=self._login)
        watts = find(document, ("PowerControl", 0, "PowerConsumedWatts"), self._url)
        return (Sample("redfish", t_ns, scaled(watts, 1000, "PowerConsumedWatts", self._url)),)
