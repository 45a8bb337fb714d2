"""What smart plugs have in common: a power sensor that suits windows, and an energy counter that suits hours."""

from __future__ import annotations

from fractions import Fraction

from compressor.energy.domain import Domain, Provenance, Quantity, Scope

POWER_PERIOD_S = 1.0
COUNTER_PERIOD_S = 60.0
CEILING_W = 4000.0
J_PER_WH = 3600


def power_domain() -> Domain:
    """The plug's power, in milliwatts."""
    return _domain(Quantity.POWER, Fraction(1, 1000), POWER_PERIOD_S, None)


def counter_domain(steps_per_wh: int, rolls_over_at_wh: int | None) -> Domain:
    """The plug's energy counter.

    Args:
        steps_per_wh: its resolution.
        rolls_over_at_wh: where it starts again at 0; None where nobody knows, and then a counter that fell gives an
            invalid reading.
    """
    modulus = None if rolls_over_at_wh is None else rolls_over_at_wh * steps_per_wh
    return _domain(Quantity.ENERGY, Fraction(J_PER_WH, steps_per_wh), COUNTER_PERIOD_S, modulus)


def _domain(quantity: Quantity, unit: Fraction, period_s: float, modulus: int | None) -> Domain:
    return Domain(
        id="plug",
        scope=Scope.NODE_WALL_AC,
        provenance=Provenance.WALL_METERED,
        quantity=quantity,
        unit=unit,
        period_s=period_s,
        ceiling_w=CEILING_W,
        modulus=modulus,
    )
