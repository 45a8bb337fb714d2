"""From the energy of a machine to that of its building, and to carbon. Nothing here is stored in a reading.

Both are products of a reading with a number that somebody else published, so each result carries that number and its
source in words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from compressor.energy.figures import Figure, per_unit
from compressor.energy.types import Energy
from compressor.errors import EnergyError

J_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Pue:
    """Power usage effectiveness: energy of the building over that of its machines, cooling and distribution together.

    Attributes:
        ratio: 1 or more.
        source: who says so.
    """

    ratio: float
    source: str

    @property
    def factor(self) -> float:
        """What the machine's energy is multiplied by."""
        if not self.ratio >= 1:
            raise EnergyError(f"a PUE of {self.ratio} would mean that the building uses less than its machines")
        return self.ratio

    @property
    def assumption(self) -> str:
        """For the reader."""
        return f"PUE {self.ratio:g} ({self.source})"


@dataclass(frozen=True)
class HeatPump:
    """Cooling from physics: each joule used becomes heat, and carrying it out takes 1 / COP joules more.

    Power distribution is not in it.

    Attributes:
        cop: heat removed per joule of work.
        source: who says so.
        heat_share: share of the heat that the cooling must remove; less than 1 where some leaves by itself.
    """

    cop: float
    source: str
    heat_share: float = 1.0

    @property
    def factor(self) -> float:
        """What the machine's energy is multiplied by."""
        if not self.cop > 0:
            raise EnergyError(f"a coefficient of performance of {self.cop} removes no heat")
        if not 0 <= self.heat_share <= 1:
            raise EnergyError(f"heat_share {self.heat_share} is not a share between 0 and 1")
        return 1.0 + self.heat_share / self.cop

    @property
    def assumption(self) -> str:
        """For the reader."""
        return f"{self.heat_share:.0%} of the heat removed at COP {self.cop:g}, no distribution losses ({self.source})"


Cooling: TypeAlias = Pue | HeatPump


@dataclass(frozen=True)
class GridIntensity:
    """Grams of CO2 equivalent per kilowatt-hour.

    Attributes:
        g_per_kwh: the factor.
        region: which grid.
        year: of the data.
        source: who published it.
        kind: average of all generation, or of the marginal plant.
        basis: the grid at the place, or the contracts bought.
    """

    g_per_kwh: float
    region: str
    year: int
    source: str
    kind: Literal["average", "marginal"] = "average"
    basis: Literal["location", "market"] = "location"

    @property
    def assumption(self) -> str:
        """For the reader."""
        return (
            f"{self.g_per_kwh:g} gCO2e/kWh, {self.region} {self.year}, {self.kind}, {self.basis}-based ({self.source})"
        )


@dataclass(frozen=True)
class Assumed:
    """A figure and the assumptions it rests on."""

    figure: Figure
    assumptions: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.figure} [{'; '.join(self.assumptions)}]"


def facility_energy(energy: Energy, cooling: Cooling, *, share: float = 1.0, unit: str | None = None) -> Assumed:
    """``facility_j``: the machine's energy with cooling (and distribution, in a PUE).

    Args:
        energy: of a window.
        cooling: what to multiply by.
        share: of the energy that falls on one unit of work.
        unit: that unit, for the key: ``facility_j_per_request``.

    Raises:
        EnergyError: an impossible cooling figure, or energy without a number.
    """
    key = _key("facility_j", unit)
    return Assumed(per_unit(energy, 1, key, factor=share * cooling.factor), (cooling.assumption,))


def carbon(
    energy: Energy,
    intensity: GridIntensity,
    cooling: Cooling | None = None,
    *,
    share: float = 1.0,
    unit: str | None = None,
) -> Assumed:
    """``gco2e_location`` or ``gco2e_market``; call it once for each, since they are never mixed.

    Args:
        energy: of a window.
        intensity: grams for a kilowatt-hour.
        cooling: what to multiply by before.
        share: of the energy that falls on one unit of work.
        unit: that unit, for the key.

    Raises:
        EnergyError: a negative factor, an impossible cooling figure, or energy without a number.
    """
    if not intensity.g_per_kwh >= 0:
        raise EnergyError(f"a grid intensity of {intensity.g_per_kwh} g/kWh cannot be")
    factor = share * (1.0 if cooling is None else cooling.factor) * intensity.g_per_kwh / J_PER_KWH
    assumptions = (intensity.assumption, "no cooling counted" if cooling is None else cooling.assumption)
    return Assumed(per_unit(energy, 1, _key(f"gco2e_{intensity.basis}", unit), factor=factor), assumptions)


def _key(name: str, unit: str | None) -> str:
    return name if unit is None else f"{name}_per_{unit}"
