"""Measured and estimated energy: two types that share no joule attribute.

Code that reads ``energy_gross_j`` cannot be handed an estimate by mistake: the attribute does not exist there, and
neither do the JSON keys. Adding the two gives an estimate. A window that gave no valid reading is a third type with a
reason and no number at all.

Adding joins windows one after another where the scopes are equal (wall time adds up), and parts of one machine over
the same time where the scopes are disjoint (the longer wall time stands). Scopes that overlap are never added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TypeAlias

from compressor.energy import counter
from compressor.energy.domain import CounterWindow, DomainLog, Provenance, Scope
from compressor.energy.notebook import estimated_html, invalid_html, measured_html
from compressor.errors import EnergyError


@dataclass(frozen=True)
class MeasuredEnergy:
    """Joules from a wall meter, a device counter or an integrated power sensor, with the raw log they come from.

    Build it with `measured_from`, which computes every joule from the log.

    Attributes:
        energy_gross_j: joules over the window.
        energy_uncertainty_j: what edges and resolution leave open, either way; not the instrument's accuracy.
        energy_net_j: gross less idle power x time; None where `net_reason` says why.
        wall_s: length of the window(s).
        provenance: one of the three that may be called measured.
        scopes: what the number covers, in the enum's order.
        meter: the meter's name for readers, such as ``RAPL``.
        windows: the raw integer logs.
        net_reason: why there is no net energy.
        notes: what a reader should know.
    """

    energy_gross_j: float
    energy_uncertainty_j: float
    energy_net_j: float | None
    wall_s: float
    provenance: Provenance
    scopes: tuple[Scope, ...]
    meter: str
    windows: tuple[CounterWindow, ...]
    net_reason: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.provenance.is_measured:
            raise EnergyError(f"energy of provenance {self.provenance.value} may not be called measured")
        if not self.windows or not all(window.logs for window in self.windows):
            raise EnergyError("a measured result must carry its raw counter log; this one has none")
        if self.energy_net_j is None and not self.net_reason:
            raise EnergyError("a missing net energy needs its reason")

    @property
    def mean_power_w(self) -> float:
        """Gross energy over wall time."""
        return self.energy_gross_j / self.wall_s

    def __add__(self, other: MeasuredEnergy | EstimatedEnergy) -> MeasuredEnergy | EstimatedEnergy:
        if isinstance(other, EstimatedEnergy):
            return _as_estimate(self) + other
        _refuse_double_counting(self, other)
        return measured_from(
            self.windows + other.windows,
            meter=_join_names(self.meter, other.meter),
            notes=_join(self.notes, other.notes),
            wall_s=_joint_wall_s(self, other),
        )

    def __str__(self) -> str:
        where = ", ".join(scope.words for scope in self.scopes)
        number = _to_uncertainty(self.energy_gross_j, self.energy_uncertainty_j)
        return f"{number} J +-{_significant(self.energy_uncertainty_j, 1)} ({self.meter} {where})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return measured_html(self)


@dataclass(frozen=True)
class EstimatedEnergy:
    """Joules from a model, with the band they may lie in.

    Counter readings that may not be called measured (attributed or modelled by the device) are of this type too: they
    keep their log in `windows`, and have no number where no band is known.

    Attributes:
        est_energy_gross_j: joules over the window; None where `reason` says why.
        est_energy_gross_low_j: 5 % point of the band.
        est_energy_gross_high_j: 95 % point of the band.
        est_energy_net_j: above idle; None where `net_reason` says why.
        est_energy_net_low_j: 5 % point of the band.
        est_energy_net_high_j: 95 % point of the band.
        wall_s: length of the window(s).
        provenance: where the number comes from.
        scopes: what the number covers.
        method: name and version of the model, such as ``spec_share/1``.
        inputs: what went into the model.
        windows: raw logs, where counters were read.
        reason: why there is no number.
        net_reason: why there is no net number.
        notes: what a reader should know; shown with the number.
    """

    est_energy_gross_j: float | None
    est_energy_gross_low_j: float | None
    est_energy_gross_high_j: float | None
    est_energy_net_j: float | None
    est_energy_net_low_j: float | None
    est_energy_net_high_j: float | None
    wall_s: float
    provenance: Provenance
    scopes: tuple[Scope, ...]
    method: str
    inputs: Mapping[str, float | str] = field(default_factory=dict)
    windows: tuple[CounterWindow, ...] = ()
    reason: str | None = None
    net_reason: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_band("gross", self.gross_band, self.reason)
        _check_band("net", self.net_band, self.net_reason)

    @property
    def gross_band(self) -> tuple[float | None, float | None, float | None]:
        """Gross: (low, value, high), all None where `reason` says why."""
        return self.est_energy_gross_low_j, self.est_energy_gross_j, self.est_energy_gross_high_j

    @property
    def net_band(self) -> tuple[float | None, float | None, float | None]:
        """Net: (low, value, high), all None where `net_reason` says why."""
        return self.est_energy_net_low_j, self.est_energy_net_j, self.est_energy_net_high_j

    def __add__(self, other: MeasuredEnergy | EstimatedEnergy) -> EstimatedEnergy:
        if isinstance(other, MeasuredEnergy):
            other = _as_estimate(other)
        _refuse_double_counting(self, other)
        low, value, high = _add_bands(self.gross_band, other.gross_band)
        net_low, net_value, net_high = _add_bands(self.net_band, other.net_band)
        return EstimatedEnergy(
            est_energy_gross_j=value,
            est_energy_gross_low_j=low,
            est_energy_gross_high_j=high,
            est_energy_net_j=net_value,
            est_energy_net_low_j=net_low,
            est_energy_net_high_j=net_high,
            wall_s=_joint_wall_s(self, other),
            provenance=Provenance.worst([self.provenance, other.provenance]),
            scopes=_join_scopes(self.scopes, other.scopes),
            method=_join_names(self.method, other.method),
            inputs=_add_inputs(self.inputs, other.inputs),
            windows=self.windows + other.windows,
            reason=None if value is not None else self.reason or other.reason,
            net_reason=None if net_value is not None else self.net_reason or other.net_reason,
            notes=_join(self.notes, other.notes),
        )

    def __str__(self) -> str:
        low, value, high = self.gross_band
        if value is None or low is None or high is None:
            return f"no number (estimated, {self.provenance.value}: {self.reason})"
        band = f"{_significant(low, 2)}-{_significant(high, 2)}"
        mark = "simulated, estimated" if self.provenance is Provenance.SIMULATED else "estimated"
        return f"~{_significant(value, 2)} J ({mark}, {band})"

    def _repr_html_(self) -> str:
        """What a notebook shows, marked as an estimate."""
        return estimated_html(self)


@dataclass(frozen=True)
class InvalidEnergy:
    """A window without a valid reading: no joules, a reason, and the log as far as it goes."""

    reason: str
    meter: str
    wall_s: float
    scopes: tuple[Scope, ...] = ()
    windows: tuple[CounterWindow, ...] = ()

    def __str__(self) -> str:
        return f"not measured: {self.reason} ({self.meter})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return invalid_html(self.reason, self)


Energy: TypeAlias = MeasuredEnergy | EstimatedEnergy
EnergyResult: TypeAlias = MeasuredEnergy | EstimatedEnergy | InvalidEnergy


def measured_from(
    windows: Sequence[CounterWindow], *, meter: str, notes: tuple[str, ...] = (), wall_s: float | None = None
) -> MeasuredEnergy:
    """Compute a measured result from its raw log; nothing else may make one.

    Args:
        windows: the logs; joules of all windows add up.
        meter: name for readers.
        notes: what a reader should know.
        wall_s: wall time where windows cover the same time; by default that of the windows, added.

    Raises:
        CounterFault: a log from which no joule may be computed.
        EnergyError: a domain that may not be called measured.
    """
    energy = uncertainty = Fraction(0)
    for window in windows:
        part = counter.gross(window.logs)
        energy, uncertainty = energy + part.energy, uncertainty + part.uncertainty
    try:
        net_j: float | None = float(sum((counter.net(window) for window in windows), Fraction(0)))
        net_reason = None
    except counter.CounterFault as fault:
        net_j, net_reason = None, fault.message
    domains = [log.domain for window in windows for log in window.logs if log.domain.checks is None]
    return MeasuredEnergy(
        energy_gross_j=float(energy),
        energy_uncertainty_j=float(uncertainty),
        energy_net_j=net_j,
        wall_s=sum(window.wall_s for window in windows) if wall_s is None else wall_s,
        provenance=Provenance.worst(domain.provenance for domain in domains),
        scopes=_join_scopes(tuple(domain.scope for domain in domains), ()),
        meter=meter,
        windows=tuple(windows),
        net_reason=net_reason,
        notes=notes,
    )


def with_idle(
    energy: MeasuredEnergy, idle_before: Sequence[DomainLog], idle_after: Sequence[DomainLog]
) -> MeasuredEnergy:
    """The same single-window result with its net energy, from idle windows measured before and after it.

    Net is refused, with the reason in `net_reason`, where the two idles differ by more than 5 % of the dynamic power.

    Raises:
        EnergyError: the result is a sum of several windows, which have idles of their own.
    """
    if len(energy.windows) != 1:
        raise EnergyError(f"idle power belongs to one window; this result is a sum of {len(energy.windows)}")
    window = replace(energy.windows[0], idle_before=tuple(idle_before), idle_after=tuple(idle_after))
    return measured_from([window], meter=energy.meter, notes=energy.notes)


def sum_energy(parts: Sequence[EnergyResult]) -> EnergyResult:
    """Add results one after another; one invalid part makes the sum invalid, since missing is not zero.

    Raises:
        EnergyError: nothing to add, or scopes that may not be added.
    """
    if not parts:
        raise EnergyError("no energy to add: the list of results is empty")
    result = parts[0]
    for part in parts[1:]:
        if isinstance(result, InvalidEnergy):
            return result
        if isinstance(part, InvalidEnergy):
            return part
        result = result + part
    return result


def _as_estimate(measured: MeasuredEnergy) -> EstimatedEnergy:
    """A measured part of a sum that is an estimate as a whole."""
    value, half = measured.energy_gross_j, measured.energy_uncertainty_j
    net_j = measured.energy_net_j
    return EstimatedEnergy(
        est_energy_gross_j=value,
        est_energy_gross_low_j=value - half,
        est_energy_gross_high_j=value + half,
        est_energy_net_j=net_j,
        est_energy_net_low_j=None if net_j is None else net_j - half,
        est_energy_net_high_j=None if net_j is None else net_j + half,
        wall_s=measured.wall_s,
        provenance=measured.provenance,
        scopes=measured.scopes,
        method=measured.meter,
        windows=measured.windows,
        net_reason=measured.net_reason,
        notes=measured.notes,
    )


def _refuse_double_counting(a: Energy, b: Energy) -> None:
    """Raise where adding would count a joule twice, or put together what covers different things."""
    if a.scopes != b.scopes:
        clashes = [(one, two) for one in a.scopes for two in b.scopes if one.overlaps(two)]
        if clashes:
            one, two = clashes[0]
            raise EnergyError(
                f"scopes {one.value} and {two.value} overlap and are never added",
                hint="compare results of one scope, or add only parts that cover different devices",
            )
    for first in (w for w in a.windows if w.boot_id is not None):
        for second in (w for w in b.windows if w.boot_id == first.boot_id):
            shared = _overlapping_domain(first, second)
            if shared is not None:
                raise EnergyError(f"{shared} was read in both windows at the same time; its joules would count twice")


def _overlapping_domain(a: CounterWindow, b: CounterWindow) -> str | None:
    for one in a.logs:
        for two in b.logs:
            same = one.domain.id == two.domain.id and one.samples and two.samples
            if same and one.samples[0][0] < two.samples[-1][0] and two.samples[0][0] < one.samples[-1][0]:
                return one.domain.id
    return None


def _joint_wall_s(a: Energy, b: Energy) -> float:
    return a.wall_s + b.wall_s if a.scopes == b.scopes else max(a.wall_s, b.wall_s)


def _check_band(name: str, band: tuple[float | None, float | None, float | None], reason: str | None) -> None:
    low, value, high = band
    if value is None and low is None and high is None:
        if not reason:
            raise EnergyError(f"a missing {name} estimate needs its reason")
    elif value is None or low is None or high is None:
        raise EnergyError(f"a {name} estimate needs its band: low {low}, value {value}, high {high}")
    elif not low <= value <= high:
        raise EnergyError(f"the {name} estimate {value} J lies outside its band {low} to {high} J")


def _add_bands(
    a: tuple[float | None, float | None, float | None], b: tuple[float | None, float | None, float | None]
) -> tuple[float | None, float | None, float | None]:
    """Edge to edge: the parts share their errors (one machine, one model), which do not average out."""
    low, value, high = (None if x is None or y is None else x + y for x, y in zip(a, b, strict=True))
    return low, value, high


def _add_inputs(a: Mapping[str, float | str], b: Mapping[str, float | str]) -> Mapping[str, float | str]:
    """Amounts (seconds) add up; anything else is kept where both parts agree."""
    joined: dict[str, float | str] = {}
    for key in (key for key in a if key in b):
        one, two = a[key], b[key]
        if key.endswith("_s") and not isinstance(one, str) and not isinstance(two, str):
            joined[key] = one + two
        elif one == two:
            joined[key] = one
    return joined


def _join_scopes(a: tuple[Scope, ...], b: tuple[Scope, ...]) -> tuple[Scope, ...]:
    return tuple(scope for scope in Scope if scope in a or scope in b)


def _join(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    return a + tuple(note for note in b if note not in a)


def _join_names(a: str, b: str) -> str:
    return " + ".join(dict.fromkeys(a.split(" + ") + b.split(" + ")))


def _significant(value: float, n_digits: int) -> str:
    """``value`` to a number of significant digits, never in exponent form."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{n_digits - 1}e}")
    exponent = int(f"{rounded:e}".split("e")[1])
    return f"{rounded:.{max(0, n_digits - 1 - exponent)}f}"


def _to_uncertainty(value: float, half_width: float) -> str:
    """``value`` to the decimals that its uncertainty can bear, three digits at least."""
    if half_width <= 0:
        return _significant(value, 3)
    exponent = int(f"{half_width:e}".split("e")[1])
    return f"{value:.{max(0, -exponent)}f}"
