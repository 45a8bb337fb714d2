"""Figures as words: units, intervals, and joules that always say where they come from."""

from __future__ import annotations

from typing import Any

from compressor.schema.report import EnergyFigure, Interval, Measurement, Quality, Ratio

NONE = "-"
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
SCOPES = {
    "node_wall_ac": "wall",
    "node_dc": "node DC",
    "platform_psys": "platform",
    "cpu_package": "package",
    "dram": "DRAM",
    "gpu_board": "GPU board",
    "gpu_module": "GPU module",
    "soc": "SoC",
    "vm_share": "VM share",
}


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits; an exponent only where it is tiny."""
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if abs(float(text)) >= 10 ** (digits - 1) else _plain(float(text), digits)


def _plain(value: float, digits: int) -> str:
    decimals = max(digits - 1 - _exponent(value), 0)
    return f"{value:.{decimals}f}"


def _exponent(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def with_unit(value: float, unit: str, digits: int = 3) -> str:
    """SI prefix and unit: 0.00077 s -> 770 µs."""
    factor, prefix = _prefix(value)
    return f"{significant(value / factor, digits)} {prefix}{unit}"


def _prefix(value: float) -> tuple[float, str]:
    # Rounding to three digits may carry into the next prefix: 999.6 m is 1.00.
    return next(((f, p) for f, p in _PREFIXES if abs(value) >= 0.9995 * f), _PREFIXES[-1])


def with_interval(value: float, ci: Interval | None) -> str:
    """18.2 (17.9-18.5)."""
    if ci is None:
        return significant(value)
    return f"{significant(value)} ({span(significant(ci.low), significant(ci.high))})"


def span(low: str, high: str) -> str:
    """Two ends, with a dash where it cannot be taken for a minus."""
    return f"{low} to {high}" if "-" in low + high else f"{low}-{high}"


def ratio(value: Ratio | None) -> str:
    """0.171x (0.168-0.175)."""
    if value is None:
        return NONE
    band = f" ({span(significant(value.ci95.low), significant(value.ci95.high))})" if value.ci95 else ""
    return f"{significant(value.value)}x{band}"


def quality(row: Quality | None) -> str:
    """A metric with its interval; shares as percentages."""
    if row is None:
        return NONE
    if row.metric not in ("accuracy", "macro_f1", "top1_agreement"):
        return with_interval(row.value, row.ci95)
    band = f" ({span(f'{100 * row.ci95.low:.1f}', f'{100 * row.ci95.high:.1f}')})" if row.ci95 else ""
    return f"{100 * row.value:.1f} %{band}"


def energy_per_token(row: Measurement) -> str:
    """Joules per token of a measurement, with their provenance; a dash and the reason where there are none."""
    key = "j_per_generated_token" if row.phase == "decode" else "j_per_input_token"
    return energy(row.energy, key)


def energy(figure: EnergyFigure, key: str) -> str:
    """One of the figures of an energy record, marked measured or estimated."""
    if figure.result is None:
        return f"{NONE} ({figure.reason})"
    estimate = figure.figures.get(f"est_{key}")
    if estimate is not None:
        low, high = figure.figures[f"est_{key}_low"], figure.figures[f"est_{key}_high"]
        return estimated_joules(estimate, low, high, figure.result)
    measured = figure.figures.get(key)
    if measured is not None and figure.result["kind"] == "measured":
        return f"{with_unit(measured, 'J')} ({_meter(figure.result)})"
    return f"{NONE} ({figure.reason or figure.result.get('reason')})"


def total_energy(figure: EnergyFigure) -> str:
    """All joules of an energy record, marked measured or estimated."""
    result = figure.result
    if result is None:
        return f"{NONE} ({figure.reason})"
    if result["kind"] == "measured":
        plus_minus = with_unit(result["energy_uncertainty_j"], "J", 1)
        return f"{with_unit(result['energy_gross_j'], 'J')} +-{plus_minus} ({_meter(result)})"
    if result["kind"] == "estimated" and result["est_energy_gross_j"] is not None:
        keys = ("est_energy_gross_j", "est_energy_gross_low_j", "est_energy_gross_high_j")
        value, low, high = (float(result[key]) for key in keys)
        return estimated_joules(value, low, high, result)
    return f"{NONE} ({result['reason']})"


def estimated_joules(value: float, low: float, high: float, result: dict[str, Any]) -> str:
    """~1.9 mJ (estimated, 1.3-4.3): never without the mark and the band."""
    factor, prefix = _prefix(value)
    mark = "simulated, estimated" if result["provenance"] == "simulated" else "estimated"
    band = span(significant(low / factor, 2), significant(high / factor, 2))
    return f"~{significant(value / factor, 2)} {prefix}J ({mark}, {band})"


def _meter(result: dict[str, Any]) -> str:
    """RAPL package."""
    return f"{result['meter']} {', '.join(SCOPES[scope] for scope in result['scopes'])}"
