"""A result as a notebook shows it: a table whose caption says whether it was measured or estimated."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compressor.energy.types import EnergyResult, EstimatedEnergy, MeasuredEnergy


def measured_html(result: MeasuredEnergy) -> str:
    """A measured result."""
    net = result.net_reason if result.energy_net_j is None else f"{result.energy_net_j:.4g}"
    rows = {
        "energy_gross_j": f"{result.energy_gross_j:.4g} +-{result.energy_uncertainty_j:.1g}",
        "energy_net_j": net or "",
    }
    return _table(f"measured: {result}", rows | _common(result) | {"provenance": result.provenance.value})


def estimated_html(result: EstimatedEnergy) -> str:
    """An estimate, marked in its caption and in every key of a figure."""
    rows = {
        "est_energy_gross_j": _band(result.gross_band, result.reason),
        "est_energy_net_j": _band(result.net_band, result.net_reason),
        "method": result.method,
        **{f"note {number}": note for number, note in enumerate(result.notes, 1)},
    }
    caption = f"estimated, not measured: {result}"
    return _table(caption, rows | _common(result) | {"provenance": result.provenance.value})


def invalid_html(reason: str, result: EnergyResult) -> str:
    """A window without joules: the reason, and no number."""
    return _table(str(result), {"reason": reason} | _common(result))


def _band(band: tuple[float | None, float | None, float | None], reason: str | None) -> str:
    low, value, high = band
    if low is None or value is None or high is None:
        return f"no number: {reason}"
    return f"~{value:.2g} (estimated, {low:.2g}-{high:.2g})"


def _common(result: EnergyResult) -> dict[str, str]:
    return {"wall_s": f"{result.wall_s:.4g}", "scopes": ", ".join(scope.words for scope in result.scopes) or "-"}


def _table(caption: str, rows: dict[str, str]) -> str:
    body = "".join(f"<tr><th scope='row'>{escape(key)}</th><td>{escape(text)}</td></tr>" for key, text in rows.items())
    return f"<table><caption>{escape(caption)}</caption><tbody>{body}</tbody></table>"
