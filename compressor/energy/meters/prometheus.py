"""A power or energy series in Prometheus, such as a rack's PDU.

Prometheus does not know what a series covers or where it comes from, so whoever names the series says both.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from compressor.energy.domain import Domain, Probe, Provenance, Quantity, Sample, Scope
from compressor.energy.meters.http import find, get_json, unconfigured
from compressor.errors import EnergyError

CEILING_W = 20_000.0
_PER_UNIT = 1_000_000


@dataclass(frozen=True)
class Series:
    """What a query gives.

    Attributes:
        query: PromQL that yields exactly one value.
        quantity: joules of a counter, or watts.
        scope: what it covers.
        provenance: what stands behind it.
        period_s: scrape interval.
    """

    query: str
    quantity: Quantity
    scope: Scope
    provenance: Provenance
    period_s: float


class PrometheusMeter:
    """One series of a Prometheus server.

    Args:
        address: of the server, such as ``http://prometheus:9090``; None when there is none.
        series: what to ask for.
    """

    name = "prometheus"
    label = "Prometheus"

    def __init__(self, address: str | None = None, series: Series | None = None) -> None:
        self._series = series
        self._address = address

    def probe(self) -> Probe:
        """Whether the query yields one number."""
        if self._series is None or self._address is None:
            return unconfigured("Prometheus series", "give it: meters=[PrometheusMeter('http://...', Series(...))]")
        try:
            self.read()
        except EnergyError as error:
            return Probe("error", str(error))
        return Probe("ok", f"{self._series.query} ({self._series.scope.value}, {self._series.provenance.value})")

    def domains(self) -> tuple[Domain, ...]:
        """The series, in millionths of its unit."""
        series = self._given()[1]
        return (
            Domain(
                id=series.query,
                scope=series.scope,
                provenance=series.provenance,
                quantity=series.quantity,
                unit=Fraction(1, _PER_UNIT),
                period_s=series.period_s,
                ceiling_w=CEILING_W,
            ),
        )

    def read(self) -> tuple[Sample, ...]:
        """The value now, to a millionth of its unit (a floating-point series has no exact integer)."""
        from urllib.parse import quote

        address, series = self._given()
        url = f"{address.rstrip('/')}/api/v1/query?query={quote(series.query)}"
        t_ns, document = get_json(url)
        result = find(document, ("data", "result"), url)
        if not isinstance(result, list) or len(result) != 1:
            n_found = len(result) if isinstance(result, list) else 0
            raise EnergyError(f"the query yields {n_found} series; it must yield one", where=url)
        text = find(result[0], ("value", 1), url)
        try:
            value = Decimal(text)
        except (InvalidOperation, TypeError) as error:
            raise EnergyError(f"the query yields {text!r}, which is not a number", where=url) from error
        if not value.is_finite():
            raise EnergyError(f"the query yields {text}", where=url)
        return (Sample(series.query, t_ns, int((value * _PER_UNIT).to_integral_value())),)

    def _given(self) -> tuple[str, Series]:
        if self._series is None or self._address is None:
            raise EnergyError("no Prometheus series is configured")
        return self._address, self._series
