"""The kernel's perf "power" PMU: RAPL as 64-bit counters that do not wrap.

The same counters as powercap, reached through ``perf_event_open``, with another right: ``CAP_PERFMON`` or a low
``perf_event_paranoid`` in place of root's files.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path

from compressor.energy.domain import Domain, Probe, Provenance, Quantity, Sample, Scope
from compressor.energy.host import ROOT, find_hypervisor, parse_int, read_int, read_text
from compressor.energy.meter import now_ns
from compressor.energy.meters.rapl import DRAM_CEILING_W, PACKAGE_CEILING_W, PERIOD_S, PSYS_CEILING_W
from compressor.errors import EnergyError

PMU = "sys/bus/event_source/devices/power"
GRANT = "sudo sysctl kernel.perf_event_paranoid=-1"
# energy-cores and energy-gpu are inside the package and are left out.
_EVENTS = {
    "energy-pkg": (Scope.CPU_PACKAGE, PACKAGE_CEILING_W),
    "energy-ram": (Scope.DRAM, DRAM_CEILING_W),
    "energy-psys": (Scope.PLATFORM_PSYS, PSYS_CEILING_W),
}
_SYSCALL = {"x86_64": 298, "aarch64": 241}
_ATTR_SIZE = 112  # PERF_ATTR_SIZE_VER5; zeros after the first three fields

# (type, config, cpu) -> a function that reads the counter
Opener = Callable[[int, int, int], Callable[[], int]]


class RefusedError(EnergyError):
    """The process may not open system-wide events."""


class PerfPowerMeter:
    """Energy events of the perf power PMU.

    Args:
        root: root of sysfs.
        opener: opens one counter and returns a function that reads it; the system call by default.
    """

    name = "perf_power"
    label = "RAPL (perf)"

    def __init__(self, root: Path = ROOT, opener: Opener | None = None) -> None:
        self._root = root
        self._opener = open_counter if opener is None else opener
        self._readers: dict[str, Callable[[], int]] = {}
        self._found: list[tuple[str, str, int]] | None = None

    def probe(self) -> Probe:
        """Whether the PMU is there and this process may open its events."""
        if not (self._root / PMU / "type").exists():
            return Probe("absent", "the kernel has no perf power PMU", "sudo modprobe intel_rapl_perf")
        try:
            domains = self.domains()
            before = {sample.domain: sample.raw for sample in self.read()}
        except RefusedError as error:
            return Probe("permission", error.message, GRANT)
        except EnergyError as error:
            return Probe("error", str(error))
        if not before:
            return Probe("unsupported", "the power PMU has no package, memory or platform event")
        hypervisor = find_hypervisor(self._root)
        if hypervisor is not None:
            return Probe("virtualised", f"a guest's RAPL is dead or made up by its host: {hypervisor}")
        return Probe("ok", ", ".join(domain.id for domain in domains))

    def domains(self) -> tuple[Domain, ...]:
        """One domain for each event and socket."""
        provenance = Provenance.DEVICE_COUNTER if find_hypervisor(self._root) is None else Provenance.ATTRIBUTED
        events = self._events()
        inner = tuple(id for id, event, _ in events if event != "energy-psys")
        return tuple(
            Domain(
                id=id,
                scope=_EVENTS[event][0],
                provenance=provenance,
                quantity=Quantity.ENERGY,
                unit=self._scale(event),
                period_s=PERIOD_S,
                ceiling_w=_EVENTS[event][1],
                overlaps=inner if event == "energy-psys" else (),
            )
            for id, event, _ in events
        )

    def read(self) -> tuple[Sample, ...]:
        """The counters, opened at the first read and kept open."""
        for id, event, cpu in self._events():
            if id not in self._readers:
                self._readers[id] = self._opener(read_int(self._root / PMU / "type"), self._config(event), cpu)
        return tuple(Sample(id, now_ns(), read()) for id, read in self._readers.items())

    def _events(self) -> list[tuple[str, str, int]]:
        """(id, event, cpu) of each event on the one CPU of each socket that the kernel names."""
        if self._found is not None:
            return self._found
        mask = read_text(self._root / PMU / "cpumask").strip()
        cpus = [parse_int(part.split("-")[0], self._root / PMU / "cpumask") for part in mask.split(",")]
        present = [event for event in _EVENTS if (self._root / PMU / "events" / event).exists()]
        found = [(f"{event}:cpu{cpu}", event, cpu) for event in present for cpu in cpus]
        # The platform has one psys counter, whichever socket is asked.
        self._found = [entry for entry in found if entry[1] != "energy-psys" or entry[2] == cpus[0]]
        return self._found

    def _config(self, event: str) -> int:
        path = self._root / PMU / "events" / event
        text = read_text(path).strip()
        if not text.startswith("event=0x"):
            raise EnergyError(f"holds {text[:40]!r}, not an event number", where=str(path))
        return int(text.removeprefix("event=0x"), 16)

    def _scale(self, event: str) -> Fraction:
        path = self._root / PMU / "events" / f"{event}.scale"
        try:
            return Fraction(Decimal(read_text(path).strip()))
        except InvalidOperation as error:
            raise EnergyError("holds no scale in joules", where=str(path)) from error


def open_counter(pmu_type: int, config: int, cpu: int) -> Callable[[], int]:
    """Open one system-wide counter.

    Raises:
        RefusedError: the right is missing.
        EnergyError: any other failure.
    """
    # Here, since it would make every import of the package slower.
    import ctypes

    architecture = os.uname().machine
    number = _SYSCALL.get(architecture)
    if number is None:
        raise EnergyError(f"perf_event_open is not known for {architecture}")
    attributes = ctypes.create_string_buffer(struct.pack("IIQ", pmu_type, _ATTR_SIZE, config), _ATTR_SIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(number, attributes, -1, cpu, -1, 0)
    if descriptor < 0:
        code = ctypes.get_errno()
        if code in (errno.EACCES, errno.EPERM):
            raise RefusedError(f"perf_event_open is refused for system-wide events: {os.strerror(code)}")
        raise EnergyError(f"perf_event_open failed: {os.strerror(code)}")

    def read() -> int:
        try:
            return int.from_bytes(os.read(descriptor, 8), "little")
        except OSError as error:
            raise EnergyError(f"the perf counter cannot be read: {error.strerror}") from error

    return read
