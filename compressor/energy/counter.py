"""From raw integers to joules: the only place where it is done.

A counter's difference is taken modulo its range, sample by sample, and summed in integers in one process, so a wrap
can neither be missed nor counted twice, and a wrap between the last sample and the end of the window is an ordinary
difference like any other. What cannot be explained raises `CounterFault`: nothing is clamped, made absolute or
turned into zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, pairwise

from compressor.energy.domain import CounterWindow, Domain, DomainLog, Quantity
from compressor.errors import EnergyError

NS_PER_S = 1_000_000_000
# Two meters of the same joules that differ by more than this cannot both be right.
CROSS_CHECK_LIMIT = Fraction(1, 10)
# A counter that stands still for this many of its own periods is not being updated.
FROZEN_PERIODS = 200
WINDOW_PERIODS = 200
# Net energy is refused where the idle power moved by more than this share of the dynamic power.
IDLE_DRIFT_LIMIT = Fraction(5, 100)


class CounterFault(EnergyError):
    """A log from which no joule may be computed; the message is the reason."""


@dataclass(frozen=True)
class Gross:
    """Joules of one window.

    Attributes:
        energy: exact joules, in the units of the counters.
        uncertainty: joules the edges and the resolution leave open, either way.
    """

    energy: Fraction
    uncertainty: Fraction


def minimum_window_s(domain: Domain) -> float:
    """The shortest window that a domain can time: 200 of its update periods, so that an edge is worth 0.5 %."""
    return WINDOW_PERIODS * domain.period_s


def total(log: DomainLog) -> Fraction:
    """The amount that a domain saw between its first and its last sample.

    Returns:
        Joules for an energy counter and for a power sensor, CPU-seconds for CPU time; exact.

    Raises:
        CounterFault: too few samples, time or counter running backwards, a reset, a power above the ceiling, a gap
            long enough to hide a wrap, or a counter that stands still.
    """
    if len(log.samples) < 2:
        raise CounterFault(f"{log.domain.id}: {len(log.samples)} sample(s); two are needed")
    if log.samples[-1][0] <= log.samples[0][0]:
        raise CounterFault(f"{log.domain.id}: the window has no length")
    for (t0, _), (t1, _) in pairwise(log.samples):
        if t1 < t0:
            raise CounterFault(f"{log.domain.id}: the monotonic clock ran backwards by {(t0 - t1) / 1e9:.3f} s")
    if log.domain.quantity is Quantity.POWER:
        return _integrate(log)
    return _count(log)


def _count(log: DomainLog) -> Fraction:
    """Sum of the differences of a counter, each taken modulo its range."""
    domain = log.domain
    n_units = 0
    still_since_ns = log.samples[0][0]
    for (t0, raw0), (t1, raw1) in pairwise(log.samples):
        step = _difference(domain, raw0, raw1, (t1 - t0) / NS_PER_S)
        n_units += step
        if step:
            still_since_ns = t1
        elif domain.quantity is Quantity.ENERGY and t1 - still_since_ns >= _frozen_after_ns(domain):
            raise CounterFault(f"{domain.id}: frozen, no change in {(t1 - still_since_ns) / 1e9:.2f} s")
    return n_units * domain.unit


def _difference(domain: Domain, raw0: int, raw1: int, dt_s: float) -> int:
    """Raw units between two samples."""
    if domain.modulus is None:
        if raw1 < raw0:
            raise CounterFault(f"{domain.id}: the counter went backwards, from {raw0} to {raw1} (a reset?)")
        step = raw1 - raw0
    else:
        if not (0 <= raw0 < domain.modulus and 0 <= raw1 < domain.modulus):
            raise CounterFault(f"{domain.id}: a reading lies outside the counter's range 0..{domain.modulus - 1}")
        half_wrap_s = float(domain.modulus * domain.unit) / (2.0 * domain.ceiling_w)
        if dt_s > half_wrap_s:
            raise CounterFault(
                f"{domain.id}: {dt_s:.2f} s between two samples; the counter may have wrapped unseen "
                f"(half a wrap at {domain.ceiling_w:g} W is {half_wrap_s:.2f} s)"
            )
        step = (raw1 - raw0) % domain.modulus
    # The hardware updates in lumps of one period, so a short interval may hold one period too many.
    most = domain.ceiling_w * (dt_s + domain.period_s) + float(domain.unit)
    if domain.quantity is Quantity.ENERGY and float(step * domain.unit) > most:
        how = f"fell from {raw0} to {raw1}: a reset or a backwards step" if raw1 < raw0 else "jumped"
        raise CounterFault(
            f"{domain.id}: the counter {how}; taken at its word that is {float(step * domain.unit):.4g} J in "
            f"{dt_s:.3f} s, above the ceiling of {domain.ceiling_w:g} W"
        )
    return step


def _frozen_after_ns(domain: Domain) -> int:
    return round(FROZEN_PERIODS * domain.period_s * NS_PER_S)


def _integrate(log: DomainLog) -> Fraction:
    """Trapezoid over power samples, in units of (raw x ns) until the last line."""
    domain = log.domain
    longest_gap_s = max(2.0, 10.0 * domain.period_s)
    doubled = 0
    for (t0, raw0), (t1, raw1) in pairwise(log.samples):
        if (t1 - t0) / NS_PER_S > longest_gap_s:
            raise CounterFault(f"{domain.id}: no power sample for {(t1 - t0) / 1e9:.2f} s")
        doubled += (raw0 + raw1) * (t1 - t0)
    for _, raw in log.samples:
        if raw < 0:
            raise CounterFault(f"{domain.id}: a negative power reading, {raw}")
        if float(raw * domain.unit) > domain.ceiling_w:
            raise CounterFault(
                f"{domain.id}: {float(raw * domain.unit):.4g} W read, above the ceiling of {domain.ceiling_w:g} W"
            )
    if doubled == 0:
        raise CounterFault(f"{domain.id}: frozen, the sensor read 0 W throughout")
    return Fraction(doubled, 2 * NS_PER_S) * domain.unit


def uncertainty(log: DomainLog) -> Fraction:
    """Joules left open by the two edges (one update period each way) and by the resolution.

    The instrument's own accuracy is not in it: no counter tells.
    """
    domain = log.domain
    wall = Fraction(log.samples[-1][0] - log.samples[0][0], NS_PER_S)
    period = Fraction(domain.period_s).limit_denominator(1_000_000)
    mean_w = total(log) / wall
    resolution = domain.unit * wall / 2 if domain.quantity is Quantity.POWER else domain.unit
    return mean_w * period + resolution


def gross(logs: Sequence[DomainLog]) -> Gross:
    """Joules of the domains that were read together.

    Raises:
        CounterFault: overlapping domains, a domain named twice, CPU time in place of energy, or any fault of `total`.
    """
    counted = [log for log in logs if log.domain.checks is None]
    if not counted:
        raise CounterFault("the log is empty")
    clash = find_overlap([log.domain for log in counted])
    if clash is not None:
        first, second = clash
        raise CounterFault(
            f"{first.id} ({first.scope.value}) and {second.id} ({second.scope.value}) cover the same joules; "
            "they are never added"
        )
    for log in counted:
        if log.domain.quantity is Quantity.CPU_TIME:
            raise CounterFault(f"{log.domain.id} counts CPU time, which is not energy")
    energy = sum((total(log) for log in counted), Fraction(0))
    return Gross(energy, sum((uncertainty(log) for log in counted), Fraction(0)))


def find_overlap(domains: Sequence[Domain]) -> tuple[Domain, Domain] | None:
    """Two domains whose joules, added, would count twice; None where all may be added.

    Two domains of one scope are two devices (two sockets, two GPUs) unless they say that they overlap.
    """
    for first, second in combinations(domains, 2):
        named = first.id == second.id or first.id in second.overlaps or second.id in first.overlaps
        if named or (first.scope is not second.scope and first.scope.overlaps(second.scope)):
            return first, second
    return None


def cross_check(logs: Sequence[DomainLog]) -> list[tuple[DomainLog, DomainLog]]:
    """Pairs (counter, sensor) of the same joules that lie more than 10 % apart.

    Raises:
        CounterFault: any fault of `total`, in the sensor too.
    """
    by_id = {log.domain.id: log for log in logs}
    apart = []
    for log in logs:
        if log.domain.checks is None or log.domain.checks not in by_id:
            continue
        counter = by_id[log.domain.checks]
        counted, integrated = total(counter), total(log)
        if abs(counted - integrated) > CROSS_CHECK_LIMIT * max(counted, integrated):
            apart.append((counter, log))
    return apart


def net(window: CounterWindow) -> Fraction:
    """Gross less the idle power over the same time.

    Raises:
        CounterFault: an idle window is missing or covers other domains, the two idles differ by more than 5 % of the
            dynamic power, or the work drew no more than idling.
    """
    energy = gross(window.logs).energy
    wall = Fraction(*_wall_ratio(window.logs))
    idle_w = idle_powers(window)
    mean_idle_w = sum(idle_w, Fraction(0)) / 2
    dynamic_w = energy / wall - mean_idle_w
    if dynamic_w <= 0:
        raise CounterFault(
            f"the work drew no more power ({float(energy / wall):.4g} W) than idling ({float(mean_idle_w):.4g} W)"
        )
    if abs(idle_w[0] - idle_w[1]) > IDLE_DRIFT_LIMIT * dynamic_w:
        raise CounterFault(
            f"idle power moved from {float(idle_w[0]):.4g} W to {float(idle_w[1]):.4g} W, more than 5 % of the "
            f"dynamic {float(dynamic_w):.4g} W"
        )
    return energy - mean_idle_w * wall


def idle_powers(window: CounterWindow) -> tuple[Fraction, Fraction]:
    """Watts before and after the window, while nothing worked.

    Raises:
        CounterFault: an idle window is missing, covers other domains, or has any fault of `total`.
    """
    if not window.idle_before or not window.idle_after:
        raise CounterFault("no idle power was measured before and after the window")
    ids = {log.domain.id for log in window.logs}
    for idle in (window.idle_before, window.idle_after):
        if {log.domain.id for log in idle} != ids:
            raise CounterFault("the idle windows cover other domains than the window itself")
    before, after = (
        gross(idle).energy / Fraction(*_wall_ratio(idle)) for idle in (window.idle_before, window.idle_after)
    )
    return before, after


def _wall_ratio(logs: Sequence[DomainLog]) -> tuple[int, int]:
    """Nanoseconds and ns per second of the longest log, as a fraction's two halves."""
    return max(log.samples[-1][0] - log.samples[0][0] for log in logs), NS_PER_S


def refuse_short_window(logs: Sequence[DomainLog]) -> None:
    """Raise where a window is shorter than its domains can time.

    Raises:
        EnergyError: naming the domain, the length and the length that is needed.
    """
    for log in logs:
        needed_s = minimum_window_s(log.domain)
        if log.wall_s < needed_s:
            raise EnergyError(
                f"the window lasted {log.wall_s:.3g} s; {log.domain.id} updates every {log.domain.period_s:g} s and "
                f"needs at least {needed_s:g} s",
                hint="repeat the work inside the window until it lasts long enough",
            )
