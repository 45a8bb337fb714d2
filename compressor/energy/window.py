"""A window around work: ``with measure() as window: ...`` and then ``window.result``.

The result is measured where a counter or a power sensor can be read, estimated where only CPU time can, and invalid,
with its reason, where the reading broke. Which of the three it is shows in its type.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal

from compressor.energy import counter
from compressor.energy.calibration import Calibration
from compressor.energy.domain import CounterWindow, Domain, DomainLog, MeterLog, Probe, Provenance, Scope
from compressor.energy.host import ROOT, read_boot_id
from compressor.energy.meter import EstimatingMeter, Meter
from compressor.energy.meters import all_meters
from compressor.energy.sampler import Sampler
from compressor.energy.types import (
    Energy,
    EnergyResult,
    EstimatedEnergy,
    InvalidEnergy,
    MeasuredEnergy,
    measured_from,
)
from compressor.errors import EnergyError, ProvenanceError

# The monotonic clock stops while the machine sleeps, and the boot clock does not.
SUSPEND_LIMIT_S = 0.1


@dataclass(frozen=True)
class Source:
    """A meter and those of its domains that a window reads."""

    meter: Meter
    domains: tuple[Domain, ...]


def measure(
    meters: Sequence[Meter] | None = None,
    *,
    require: Literal["measured"] | None = None,
    scopes: Collection[Scope] | None = None,
    window_s: float | None = None,
    calibration: Calibration | None = None,
    root: Path = ROOT,
) -> Window:
    """A window over the best that this machine offers, or over the given meters.

    Args:
        meters: read these and no others, as they are; by default every meter of this machine that is ok, so that no
            joule is counted twice, and the estimate from CPU time only where nothing can be measured.
        require: ``"measured"`` refuses an estimate, before the work and after it.
        scopes: read only domains of these scopes.
        window_s: leave out what cannot time windows of this length, where it is known beforehand.
        calibration: watts of this machine for the estimate, from `calibrate` or `load_calibration`.
        root: root of sysfs and procfs.

    Raises:
        ProvenanceError: measured energy is required and only an estimate, or nothing, is to be had.
        EnergyError: nothing can be read, or not in these scopes; a calibration for meters that are given as they are.
    """
    sources = choose_sources(
        meters, require=require, scopes=scopes, window_s=window_s, calibration=calibration, root=root
    )
    return Window(sources, require=require, root=root)


def choose_sources(
    meters: Sequence[Meter] | None = None,
    *,
    require: Literal["measured"] | None = None,
    scopes: Collection[Scope] | None = None,
    window_s: float | None = None,
    calibration: Calibration | None = None,
    root: Path = ROOT,
) -> tuple[Source, ...]:
    """Decide what a window reads; a session decides once and reuses it for all its windows. Raises as `measure`."""
    if meters is not None and calibration is not None:
        raise EnergyError(
            "a calibration goes with the meters that are chosen here, and these were given as they are",
            hint="pass CpuTimeMeter(calibration=...) among them, or no meters",
        )
    found = all_meters(root, calibration) if meters is None else tuple(meters)
    probes = [(meter, meter.probe()) for meter in found]
    # A guest's RAPL can be read when it is asked for by name; what comes of it is never called measured.
    usable = ("ok",) if meters is None else ("ok", "virtualised")
    found_usable = [Source(meter, meter.domains()) for meter, probe in probes if probe.status in usable]
    offers = [source for source in found_usable if window_s is None or _needs_s(source) <= window_s]
    if meters is None or require == "measured":
        measured = _select([_measured_part(offer) for offer in offers], scopes)
        models = [offer for offer in offers if isinstance(offer.meter, EstimatingMeter)]
        sources = measured or (() if require == "measured" else _select(models[:1], scopes))
    else:
        sources = _select(offers, scopes)
    if not sources:
        too_slow = {source.meter.name: _needs_s(source) for source in found_usable if source not in offers}
        raise _nothing_to_read(probes, too_slow, require)
    return sources


class Window:
    """Reads its sources while the work inside runs; use as a context manager, once.

    Args:
        sources: from `choose_sources`.
        require: ``"measured"`` raises at the end where the result turned out not to be.
        root: root of procfs, for the boot's id.
    """

    def __init__(
        self, sources: Sequence[Source], *, require: Literal["measured"] | None = None, root: Path = ROOT
    ) -> None:
        self._sources = tuple(sources)
        self._require = require
        self._boot_id = read_boot_id(root)
        self._samplers: list[Sampler] = []
        self._asleep_s = 0.0
        self._result: EnergyResult | None = None

    @property
    def result(self) -> EnergyResult:
        """What the window gave; raises `EnergyError` while it is open."""
        if self._result is None:
            raise EnergyError("the energy window is still open, or was never opened")
        return self._result

    def __enter__(self) -> Window:
        if self._samplers:
            raise EnergyError("an energy window is used once; open another one")
        self._samplers = [Sampler(source.meter, source.domains) for source in self._sources]
        self._asleep_s = _asleep_s()
        for sampler in self._samplers:
            sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        logs = [sampler.stop() for sampler in reversed(self._samplers)][::-1]
        asleep_s = _asleep_s() - self._asleep_s
        short = None if any(log.fault for log in logs) else _too_short(logs)
        if short is not None:
            self._result = _invalid(logs, short.message, self._boot_id)
            if error is None:
                raise short
        elif asleep_s > SUSPEND_LIMIT_S:
            self._result = _invalid(logs, f"the machine was suspended for {asleep_s:.1f} s", self._boot_id)
        else:
            self._result = resolve(list(zip(self._sources, logs, strict=True)), boot_id=self._boot_id)
        if error is None and self._require == "measured" and not isinstance(self._result, MeasuredEnergy):
            raise ProvenanceError(f"measured energy is required, and the window gave: {self._result}")


def resolve(readings: Sequence[tuple[Source, MeterLog]], *, boot_id: str | None = None) -> EnergyResult:
    """Turn the logs of one window into its result."""
    logs = [log for _, log in readings]
    faults = [log.fault for log in logs if log.fault is not None]
    if faults:
        return _invalid(logs, faults[0], boot_id)
    try:
        parts = [
            _estimate(source.meter, log) if isinstance(source.meter, EstimatingMeter) else _from_counters(log, boot_id)
            for source, log in readings
        ]
        result = parts[0]
        for part in parts[1:]:
            result = result + part
    except EnergyError as error:
        return _invalid(logs, error.message, boot_id)
    return result


def _too_short(logs: Sequence[MeterLog]) -> EnergyError | None:
    """The error that a window of this length deserves, to be raised where the work itself did not fail."""
    try:
        counter.refuse_short_window([log for meter_log in logs for log in meter_log.logs])
    except EnergyError as error:
        return error
    return None


def _estimate(meter: EstimatingMeter, log: MeterLog) -> EstimatedEnergy:
    (cpu_time,) = log.logs
    estimate = meter.estimate(float(counter.total(cpu_time)), cpu_time.wall_s)
    return replace(estimate, windows=(CounterWindow(log.logs),))


def _from_counters(log: MeterLog, boot_id: str | None) -> Energy:
    """Joules of one meter's counters: measured where all of them may be called so."""
    window = CounterWindow(log.logs, boot_id=boot_id)
    domains = [entry.domain for entry in log.logs if entry.domain.checks is None]
    worst = Provenance.worst(domain.provenance for domain in domains)
    if worst.is_measured:
        apart = counter.cross_check(log.logs)
        if not apart:
            return measured_from([window], meter=log.label)
        return _downgraded(window, log.label, apart)
    joules = counter.gross(log.logs)
    scopes = tuple(scope for scope in Scope if any(domain.scope is scope for domain in domains))
    if worst is Provenance.SIMULATED:
        value = float(joules.energy)
        return _estimated(value, value, value, window, worst, scopes, f"{log.label} trace")
    reason = f"{log.label} is {worst.value} here, and no band is known for it"
    return EstimatedEnergy(
        *(None,) * 6, window.wall_s, worst, scopes, log.label, windows=(window,), reason=reason, net_reason=reason
    )


def _downgraded(window: CounterWindow, label: str, apart: Sequence[tuple[DomainLog, DomainLog]]) -> EstimatedEnergy:
    """An estimate whose band spans what the counter and the power sensor say."""
    value = float(counter.gross(window.logs).energy)
    low = high = value
    notes = []
    for counted_log, sensed_log in apart:
        counted, sensed = float(counter.total(counted_log)), float(counter.total(sensed_log))
        low, high = low + min(0.0, sensed - counted), high + max(0.0, sensed - counted)
        notes.append(
            f"{counted_log.domain.id}: the energy counter says {counted:.4g} J, the integrated power {sensed:.4g} J; "
            "more than 10 % apart, so this is not called measured"
        )
    scopes = tuple(scope for scope in Scope if any(log.domain.scope is scope for log in window.logs))
    estimate = _estimated(value, low, high, window, Provenance.DEVICE_MODELLED, scopes, f"{label} counter")
    return replace(estimate, notes=tuple(notes))


def _estimated(
    value: float,
    low: float,
    high: float,
    window: CounterWindow,
    provenance: Provenance,
    scopes: tuple[Scope, ...],
    method: str,
) -> EstimatedEnergy:
    return EstimatedEnergy(
        value,
        low,
        high,
        None,
        None,
        None,
        window.wall_s,
        provenance,
        scopes,
        method,
        windows=(window,),
        net_reason="no idle power was measured before and after the window",
    )


def _invalid(logs: Sequence[MeterLog], reason: str, boot_id: str | None) -> InvalidEnergy:
    read = tuple(log for meter_log in logs for log in meter_log.logs)
    scopes = tuple(scope for scope in Scope if any(log.domain.scope is scope for log in read))
    label = " + ".join(log.label for log in logs)
    wall_s = max((log.wall_s for log in read), default=0.0)
    return InvalidEnergy(reason, label, wall_s, scopes, (CounterWindow(read, boot_id=boot_id),))


def _nothing_to_read(
    probes: Sequence[tuple[Meter, Probe]], too_slow: Mapping[str, float], require: str | None
) -> EnergyError | ProvenanceError:
    """The error that names what each meter lacks; those that the machine does not have are only counted."""
    told = [
        f"{meter.name}: needs windows of {too_slow[meter.name]:g} s"
        if meter.name in too_slow
        else f"{meter.name}: {probe.status} ({probe.reason})"
        for meter, probe in probes
        if probe.status != "absent"
    ]
    n_absent = len(probes) - len(told)
    told += [f"{n_absent} other meter(s) absent" if told else f"all {n_absent} meter(s) absent"] if n_absent else []
    remedies = [probe.remedy for _, probe in probes if probe.remedy and probe.status not in ("ok", "absent")]
    hint = remedies[0] if remedies else "compressor meters"
    if require == "measured":
        return ProvenanceError(f"measured energy is required, and no meter can give it: {'; '.join(told)}", hint=hint)
    return EnergyError(f"no energy can be read here: {'; '.join(told) or 'no meter was given'}", hint=hint)


def _needs_s(source: Source) -> float:
    return max((counter.minimum_window_s(domain) for domain in source.domains), default=0.0)


def _measured_part(source: Source) -> Source:
    return Source(source.meter, tuple(domain for domain in source.domains if domain.provenance.is_measured))


def _select(offers: Sequence[Source], scopes: Collection[Scope] | None) -> tuple[Source, ...]:
    """Domains of each offer in turn, so that no joule counts twice; a checking sensor goes with its counter."""
    taken: list[Domain] = []
    sources = []
    for offer in offers:
        chosen: list[Domain] = []
        # Finer domains first: psys names those it overlaps, and is read only where it alone is asked for.
        for domain in sorted(offer.domains, key=lambda entry: len(entry.overlaps)):
            wanted = domain.checks is None and (scopes is None or domain.scope in scopes)
            clash = any(domain.scope.overlaps(other.scope) for other in taken)
            if wanted and not clash and counter.find_overlap([*chosen, domain]) is None:
                chosen.append(domain)
        ids = {domain.id for domain in chosen}
        domains = tuple(domain for domain in offer.domains if domain.id in ids or domain.checks in ids)
        if domains:
            taken += chosen
            sources.append(Source(offer.meter, domains))
    return tuple(sources)


def _asleep_s() -> float:
    """Seconds that the machine has slept since boot; 0 where the system has no such clock."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    if boottime is None:
        return 0.0
    return (time.clock_gettime_ns(boottime) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)) / 1e9
