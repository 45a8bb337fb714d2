"""When the energy spent on compressing has come back: N* = E_compress / (e_base - e_compressed)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from compressor.energy.types import Energy, MeasuredEnergy
from compressor.errors import EnergyError


@dataclass(frozen=True)
class Interval:
    """A value and its interval."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise EnergyError(f"the value {self.value} lies outside its interval {self.low} to {self.high}")


@dataclass(frozen=True)
class BreakEven:
    """After how many requests or tokens compression has paid for itself.

    Attributes:
        unit: ``requests``, ``input tokens`` or ``generated tokens``.
        against: what the compressed model is compared with.
        n: the number; None where none is shown, with `reason`.
        n_low: the earliest that cost and saving allow.
        n_high: the latest.
        is_estimated: whether cost or saving is an estimate; then the text and the keys say so.
        reason: why there is no number.
    """

    unit: str
    against: str
    n: int | None
    n_low: int | None
    n_high: int | None
    is_estimated: bool
    reason: str | None = None

    def to_json(self) -> dict[str, int | str | None]:
        """The record's entries; an estimate never stands under the key of a measured one."""
        key = f"{'est_' if self.is_estimated else ''}break_even_{self.unit.replace(' ', '_')}"
        numbers = {key: self.n, f"{key}_low": self.n_low, f"{key}_high": self.n_high}
        return numbers | {"break_even_against": self.against, "break_even_reason": self.reason}

    def __str__(self) -> str:
        mark = " (estimated)" if self.is_estimated else ""
        if self.n is None:
            return f"no break-even shown{mark} against {self.against}: {self.reason}"
        return f"after {self.n:,} {self.unit}{mark} against {self.against}, {self.n_low:,} to {self.n_high:,}"


def break_even(cost: Energy, saving_j: Interval, *, unit: str, against: str, saving_is_estimated: bool) -> BreakEven:
    """Requests or tokens until the saving has covered what compressing cost.

    Args:
        cost: gross energy of every stage, added up.
        saving_j: joules that one request or token saves, paired, with its confidence interval.
        unit: ``requests``, ``input tokens`` or ``generated tokens``.
        against: the baseline, or the cheapest alternative candidate.
        saving_is_estimated: whether the saving rests on estimates.

    Raises:
        EnergyError: a cost without a number.
    """
    if isinstance(cost, MeasuredEnergy):
        half = cost.energy_uncertainty_j
        low_j, cost_j, high_j = cost.energy_gross_j - half, cost.energy_gross_j, cost.energy_gross_j + half
        is_estimated = saving_is_estimated
    else:
        if (
            cost.est_energy_gross_j is None
            or cost.est_energy_gross_low_j is None
            or cost.est_energy_gross_high_j is None
        ):
            raise EnergyError(f"the cost of compressing has no number: {cost.reason}")
        low_j, cost_j, high_j = cost.est_energy_gross_low_j, cost.est_energy_gross_j, cost.est_energy_gross_high_j
        is_estimated = True
    reason = None
    if saving_j.high <= 0:
        reason = f"it uses more energy, {-saving_j.value:.3g} J more for each of the {unit}"
    elif saving_j.low <= 0:
        reason = f"the interval of the saving, {saving_j.low:.3g} to {saving_j.high:.3g} J, includes zero"
    if reason is not None:
        return BreakEven(unit, against, None, None, None, is_estimated, reason)
    return BreakEven(
        unit,
        against,
        n=ceil(cost_j / saving_j.value),
        n_low=ceil(low_j / saving_j.high),
        n_high=ceil(high_j / saving_j.low),
        is_estimated=is_estimated,
    )
