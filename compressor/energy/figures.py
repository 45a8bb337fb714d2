"""Energy per token, request or byte, and tokens per joule: measured and estimated figures stay two types.

A figure is written into a record under its own key: ``j_per_request`` where it was measured, ``est_j_per_request``
with ``..._low`` and ``..._high`` where it was estimated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from compressor.energy.types import Energy, EstimatedEnergy, MeasuredEnergy
from compressor.errors import EnergyError

J_PER_WH = 3600.0


@dataclass(frozen=True)
class MeasuredFigure:
    """A number computed from measured energy.

    Attributes:
        key: its key in a record.
        value: in the unit that the key names.
        plus_minus: the share of the measurement's uncertainty that falls on it.
    """

    key: str
    value: float
    plus_minus: float

    def to_json(self) -> dict[str, float]:
        """The record's entry."""
        return {self.key: self.value}

    def __str__(self) -> str:
        return f"{self.value:.3g} +-{self.plus_minus:.1g}"


@dataclass(frozen=True)
class EstimatedFigure:
    """A number computed from estimated energy, with its band."""

    key: str
    est_value: float
    est_low: float
    est_high: float

    def to_json(self) -> dict[str, float]:
        """The record's entries: nothing under the key of a measured figure."""
        key = f"est_{self.key}"
        return {key: self.est_value, f"{key}_low": self.est_low, f"{key}_high": self.est_high}

    def __str__(self) -> str:
        return f"~{self.est_value:.2g} (estimated, {self.est_low:.2g}-{self.est_high:.2g})"


Figure: TypeAlias = MeasuredFigure | EstimatedFigure


@dataclass(frozen=True)
class Work:
    """What was done in a window; None for what does not apply.

    Attributes:
        n_input_tokens: real token ids of the inputs; padding and rows of special tokens alone do not count.
        n_generated_tokens: token ids that the model produced.
        n_requests: requests answered.
        n_input_bytes: bytes of input text, the only denominator that compares models with different tokenizers.
    """

    n_input_tokens: int | None = None
    n_generated_tokens: int | None = None
    n_requests: int | None = None
    n_input_bytes: int | None = None


def per_unit(
    energy: Energy, n: int, key: str, *, factor: float = 1.0, which: Literal["gross", "net"] = "gross"
) -> Figure:
    """``factor`` x joules / ``n``.

    Args:
        energy: of the window in which the ``n`` were done.
        n: how many; at least one.
        key: the figure's key, such as ``j_per_request``.
        factor: conversion of the unit.
        which: gross energy, or what lies above idle.

    Raises:
        EnergyError: no or negative work, or energy without a number.
    """
    if n <= 0:
        raise EnergyError(f"{key}: energy cannot be divided by a count of {n}")
    scale = factor / n
    if isinstance(energy, MeasuredEnergy):
        joules = energy.energy_gross_j if which == "gross" else energy.energy_net_j
        if joules is None:
            raise EnergyError(f"{key}: there is no net energy: {energy.net_reason}")
        return MeasuredFigure(key, joules * scale, energy.energy_uncertainty_j * scale)
    low, value, high = _band(energy, which, key)
    return EstimatedFigure(key, value * scale, low * scale, high * scale)


def units_per_joule(energy: Energy, n: int, key: str) -> Figure:
    """Energy efficiency: useful work per joule of gross energy. Raises as `per_unit`."""
    if n <= 0:
        raise EnergyError(f"{key}: efficiency needs work; the count is {n}")
    if isinstance(energy, MeasuredEnergy):
        value = n / energy.energy_gross_j
        return MeasuredFigure(key, value, value * energy.energy_uncertainty_j / energy.energy_gross_j)
    low, value, high = _band(energy, "gross", key)
    if low <= 0:
        raise EnergyError(f"{key}: the energy's band reaches {low:.3g} J, over which nothing can be divided")
    return EstimatedFigure(key, n / value, n / high, n / low)


def energy_figures(energy: Energy, work: Work) -> list[Figure]:
    """Every figure that the work allows, from gross energy.

    Raises:
        EnergyError: a count that is zero or negative, no count at all, or energy without a number.
    """
    figures: list[Figure] = []
    if work.n_input_tokens is not None:
        figures.append(per_unit(energy, work.n_input_tokens, "j_per_input_token"))
        figures.append(units_per_joule(energy, work.n_input_tokens, "input_tokens_per_j"))
    if work.n_generated_tokens is not None:
        figures.append(per_unit(energy, work.n_generated_tokens, "j_per_generated_token"))
        figures.append(units_per_joule(energy, work.n_generated_tokens, "generated_tokens_per_j"))
    if work.n_requests is not None:
        figures.append(per_unit(energy, work.n_requests, "j_per_request"))
        figures.append(per_unit(energy, work.n_requests, "wh_per_1000_requests", factor=1000.0 / J_PER_WH))
    if work.n_input_bytes is not None:
        figures.append(per_unit(energy, work.n_input_bytes, "j_per_1000_input_bytes", factor=1000.0))
    if not figures:
        raise EnergyError("no count of tokens, requests or bytes was given to divide the energy by")
    return figures


def padding_ratio(n_real_tokens: int, n_slots: int) -> float:
    """Share of the token slots that the model worked through and that held padding.

    Raises:
        EnergyError: counts that cannot be.
    """
    if not 0 < n_real_tokens <= n_slots:
        raise EnergyError(f"{n_real_tokens} real tokens do not fit {n_slots} token slots")
    return 1.0 - n_real_tokens / n_slots


def _band(energy: EstimatedEnergy, which: Literal["gross", "net"], key: str) -> tuple[float, float, float]:
    low, value, high = energy.gross_band if which == "gross" else energy.net_band
    if low is None or value is None or high is None:
        raise EnergyError(f"{key}: no number: {energy.reason if which == 'gross' else energy.net_reason}")
    return low, value, high
