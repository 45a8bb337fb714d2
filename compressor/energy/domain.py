"""What a meter reads: domains, scopes, provenance, and the raw integer log.

Nothing here converts to joules. The log is kept as the integers the meter gave, so that every joule can be
recomputed later from the record alone (`compressor.energy.counter`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction

from compressor.errors import EnergyError


class Provenance(Enum):
    """Where a joule comes from, best first. A result is as good as its worst part."""

    WALL_METERED = "wall_metered"
    DEVICE_COUNTER = "device_counter"
    DEVICE_POWER_INTEGRATED = "device_power_integrated"
    DEVICE_MODELLED = "device_modelled"
    ATTRIBUTED = "attributed"
    MODEL_CALIBRATED = "model_calibrated"
    MODEL_ESTIMATED = "model_estimated"
    SIMULATED = "simulated"

    @property
    def rank(self) -> int:
        """0 for the best; larger is worse."""
        return list(Provenance).index(self)

    @property
    def is_measured(self) -> bool:
        """Only the first three may be called measured."""
        return self.rank <= Provenance.DEVICE_POWER_INTEGRATED.rank

    @staticmethod
    def worst(parts: Iterable[Provenance]) -> Provenance:
        """The provenance of a sum: that of its worst part."""
        return max(parts, key=lambda part: part.rank)


class Scope(Enum):
    """What a number covers."""

    NODE_WALL_AC = "node_wall_ac"
    NODE_DC = "node_dc"
    PLATFORM_PSYS = "platform_psys"
    CPU_PACKAGE = "cpu_package"
    DRAM = "dram"
    GPU_BOARD = "gpu_board"
    GPU_MODULE = "gpu_module"
    SOC = "soc"
    VM_SHARE = "vm_share"

    @property
    def words(self) -> str:
        """How a reader is told: ``RAPL package`` rather than ``RAPL cpu_package``."""
        return _SCOPE_WORDS[self]

    def overlaps(self, other: Scope) -> bool:
        """Whether joules of the two scopes, over the same time, would be counted twice."""
        return self is other or self in _COVERED_BY[other] or other in _COVERED_BY[self]


_SCOPE_WORDS = {
    Scope.NODE_WALL_AC: "wall",
    Scope.NODE_DC: "node DC",
    Scope.PLATFORM_PSYS: "platform",
    Scope.CPU_PACKAGE: "package",
    Scope.DRAM: "DRAM",
    Scope.GPU_BOARD: "GPU board",
    Scope.GPU_MODULE: "GPU module",
    Scope.SOC: "SoC",
    Scope.VM_SHARE: "VM share",
}
_CHIP_SCOPES = frozenset({Scope.CPU_PACKAGE, Scope.DRAM, Scope.SOC, Scope.VM_SHARE})
_EVERYTHING = frozenset(Scope)
# What each scope contains. A VM's share of its server's wall power holds package, DRAM and power supply, but no GPU.
_COVERED_BY: dict[Scope, frozenset[Scope]] = {
    Scope.NODE_WALL_AC: _EVERYTHING,
    Scope.NODE_DC: _EVERYTHING,
    Scope.PLATFORM_PSYS: _EVERYTHING,
    Scope.VM_SHARE: _CHIP_SCOPES,
    Scope.SOC: _CHIP_SCOPES | {Scope.GPU_MODULE},
    Scope.CPU_PACKAGE: frozenset({Scope.CPU_PACKAGE}),
    Scope.DRAM: frozenset({Scope.DRAM}),
    Scope.GPU_BOARD: frozenset({Scope.GPU_BOARD, Scope.GPU_MODULE}),
    Scope.GPU_MODULE: frozenset({Scope.GPU_MODULE}),
}


class Quantity(Enum):
    """What one raw unit is a multiple of."""

    ENERGY = "energy"  # joules: a counter that only grows, until it wraps
    POWER = "power"  # watts: a sensor, integrated over the samples
    CPU_TIME = "cpu_time"  # seconds of busy CPU: the input of an estimate


@dataclass(frozen=True)
class Domain:
    """One counter or sensor of a meter.

    Attributes:
        id: unique within the meter, and stable (a GPU's UUID, never its index).
        scope: what it covers.
        provenance: the best that may be said of it.
        quantity: energy counter, power sensor or CPU time.
        unit: joules, watts or CPU-seconds per raw unit, exact.
        modulus: the counter returns to 0 at this raw value; None for one that never wraps.
        period_s: how often the hardware updates it.
        ceiling_w: no honest reading lies above this power.
        overlaps: ids of domains that cover some of the same joules.
        checks: id of the domain that this one only cross-checks; its joules are never added.
    """

    id: str
    scope: Scope
    provenance: Provenance
    quantity: Quantity
    unit: Fraction
    period_s: float
    ceiling_w: float
    modulus: int | None = None
    overlaps: tuple[str, ...] = ()
    checks: str | None = None

    @property
    def unit_j(self) -> float:
        """Joules per raw unit of an energy counter."""
        if self.quantity is not Quantity.ENERGY:
            raise EnergyError(f"domain {self.id} counts {self.quantity.value}, it has no joules per unit")
        return float(self.unit)

    @property
    def modulus_j(self) -> float | None:
        """Joules until the counter wraps; None when it never does."""
        return None if self.modulus is None else float(self.modulus * self.unit)

    @property
    def sampling_period_s(self) -> float:
        """How often the sampler must look: every second, and four times before the fastest possible wrap."""
        if self.quantity is Quantity.POWER:
            return min(1.0, self.period_s)
        if self.modulus is None or self.quantity is Quantity.CPU_TIME:
            return 1.0
        return min(1.0, float(self.modulus * self.unit) / (4.0 * self.ceiling_w))


@dataclass(frozen=True)
class Sample:
    """One reading: the raw integer and the monotonic time at which it was taken."""

    domain: str
    t_ns: int
    raw: int


@dataclass(frozen=True)
class Probe:
    """Whether a meter can be used here, why not, and the one thing to do about it.

    Attributes:
        status: ``ok | absent | permission | frozen | virtualised | unsupported | error``.
        reason: one sentence.
        remedy: a command or an action; None when there is nothing to do.
    """

    status: str
    reason: str
    remedy: str | None = None


@dataclass(frozen=True)
class DomainLog:
    """Every raw sample of one domain in one window, in the order they were read: ``(t_ns, raw)``."""

    domain: Domain
    samples: tuple[tuple[int, int], ...]

    @property
    def wall_s(self) -> float:
        """Seconds from the first sample to the last."""
        return (self.samples[-1][0] - self.samples[0][0]) / 1e9 if self.samples else 0.0


@dataclass(frozen=True)
class CounterWindow:
    """The logs of one window, and of the idle windows that belong to it.

    Attributes:
        logs: one per domain, all over the same time.
        idle_before: the same domains while the machine was idle, before the window; empty when not taken.
        idle_after: likewise after it.
        boot_id: which boot the monotonic times count from; None when unknown.
    """

    logs: tuple[DomainLog, ...]
    idle_before: tuple[DomainLog, ...] = ()
    idle_after: tuple[DomainLog, ...] = ()
    boot_id: str | None = None

    @property
    def wall_s(self) -> float:
        """Length of the window, from its longest log."""
        return max((log.wall_s for log in self.logs), default=0.0)


@dataclass(frozen=True)
class MeterLog:
    """What one meter gave during one window.

    Attributes:
        label: the meter's name for readers, such as ``RAPL``.
        logs: one per domain.
        fault: why the reading is invalid, when the meter failed while it ran.
    """

    label: str
    logs: tuple[DomainLog, ...]
    fault: str | None = None
    notes: tuple[str, ...] = field(default=())
