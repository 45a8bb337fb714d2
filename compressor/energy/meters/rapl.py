"""RAPL through the kernel's powercap tree (Intel and AMD).

Zones are counted once: ``package-*`` and ``dram``. ``psys`` covers the packages and is kept apart, core and uncore
are inside the package, ``intel-rapl-mmio`` mirrors the MSR zones, and on some machines every die of a socket shows
the socket's one counter. Under a hypervisor the counter may be dead or made up, so it is at best `attributed`.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from compressor.energy.domain import Domain, Probe, Provenance, Quantity, Sample, Scope
from compressor.energy.host import ROOT, find_hypervisor, read_int, read_text
from compressor.energy.meter import now_ns
from compressor.errors import EnergyError

PERIOD_S = 0.001  # the counters are updated about every millisecond
# No socket in use draws more; it bounds how long one round of the counter takes, and what a reset can look like.
PACKAGE_CEILING_W = 1500.0
DRAM_CEILING_W = 600.0
PSYS_CEILING_W = 4000.0
GRANT = (
    "sudo setpriv --reuid=$USER --regid=$(id -g) --init-groups --inh-caps=+dac_read_search "
    "--ambient-caps=+dac_read_search -- $SHELL"
)


@dataclass(frozen=True)
class _Zone:
    id: str
    path: Path
    scope: Scope
    ceiling_w: float
    parent: str | None  # id of the package a DRAM zone belongs to


class RaplMeter:
    """Energy counters under ``/sys/class/powercap``.

    Args:
        root: root of sysfs and procfs.
        settle_s: how long `probe` waits for a counter to move before it is called frozen.
    """

    name = "rapl"
    label = "RAPL"

    def __init__(self, root: Path = ROOT, *, settle_s: float = 0.25) -> None:
        self._root = root
        self._settle_s = settle_s
        self._zones: tuple[_Zone, ...] | None = None

    def probe(self) -> Probe:
        """Whether the counters are there, readable, moving and real."""
        try:
            zones = _find_zones(self._root)
            if not zones:
                return Probe(
                    "absent", "no package or psys zone under /sys/class/powercap", "sudo modprobe intel_rapl_msr"
                )
            refused = [zone for zone in zones if not _is_readable(zone.path / "energy_uj")]
            if refused:
                return Probe("permission", f"{refused[0].path}/energy_uj is for root only", GRANT)
            frozen = self._find_frozen(zones)
            hypervisor = find_hypervisor(self._root)
        except EnergyError as error:
            return Probe("error", str(error))
        if hypervisor is not None:
            dead = "; the counter does not move either" if frozen else ""
            return Probe("virtualised", f"a guest's RAPL is dead or made up by its host: {hypervisor}{dead}")
        if frozen:
            return Probe("frozen", f"{frozen[0].id} does not move")
        return Probe("ok", ", ".join(zone.id for zone in self._usable_zones()))

    def domains(self) -> tuple[Domain, ...]:
        """One domain for each zone that is counted once; psys names the packages it covers."""
        zones = self._usable_zones()
        provenance = Provenance.DEVICE_COUNTER if find_hypervisor(self._root) is None else Provenance.ATTRIBUTED
        inner = tuple(zone.id for zone in zones if zone.scope is not Scope.PLATFORM_PSYS)
        return tuple(
            Domain(
                id=zone.id,
                scope=zone.scope,
                provenance=provenance,
                quantity=Quantity.ENERGY,
                unit=Fraction(1, 1_000_000),
                # The file's range is the largest value it shows; the next step is 0.
                modulus=read_int(zone.path / "max_energy_range_uj") + 1,
                period_s=PERIOD_S,
                ceiling_w=zone.ceiling_w,
                overlaps=inner if zone.scope is Scope.PLATFORM_PSYS else (),
            )
            for zone in zones
        )

    def read(self) -> tuple[Sample, ...]:
        """Microjoules of every zone."""
        return tuple(Sample(zone.id, now_ns(), read_int(zone.path / "energy_uj")) for zone in self._usable_zones())

    def _usable_zones(self) -> tuple[_Zone, ...]:
        """The zones of this boot, without mirrors; found once, since a window needs the same zones throughout."""
        if self._zones is None:
            zones = _drop_mirrors(_find_zones(self._root))
            if not zones:
                raise EnergyError("no RAPL zone under /sys/class/powercap")
            self._zones = tuple(zones)
        return self._zones

    def _find_frozen(self, zones: list[_Zone]) -> list[_Zone]:
        before = {zone.id: read_int(zone.path / "energy_uj") for zone in zones}
        deadline = time.monotonic() + self._settle_s
        still = zones
        while still and time.monotonic() < deadline:
            time.sleep(min(0.005, self._settle_s))
            still = [zone for zone in still if read_int(zone.path / "energy_uj") == before[zone.id]]
        return still


def _find_zones(root: Path) -> list[_Zone]:
    """Package, DRAM and psys zones of the MSR (or TPMI) tree, in order of their ids."""
    base = root / "sys/class/powercap"
    if not base.is_dir():
        return []
    zones: list[_Zone] = []
    packages: dict[str, str] = {}
    entries = [path for path in base.iterdir() if re.fullmatch(r"intel-rapl(-tpmi)?(:\d+){1,2}", path.name)]
    for path in sorted(entries, key=lambda entry: [int(part) for part in entry.name.split(":")[1:]]):
        name = read_text(path / "name").strip()
        parent = packages.get(path.name.rsplit(":", 1)[0])
        if name.startswith("package"):
            packages[path.name] = name
            zones.append(_Zone(name, path, Scope.CPU_PACKAGE, PACKAGE_CEILING_W, None))
        elif name == "dram":
            zones.append(_Zone(f"{parent or path.name}-dram", path, Scope.DRAM, DRAM_CEILING_W, parent))
        elif name == "psys":
            zones.append(_Zone("psys", path, Scope.PLATFORM_PSYS, PSYS_CEILING_W, None))
    unique = {zone.id: zone for zone in reversed(zones)}
    return [zone for zone in zones if unique[zone.id] is zone]


def _drop_mirrors(zones: list[_Zone]) -> list[_Zone]:
    """Leave out dies that show another die's counter.

    A mirror lies between two readings of its original; two real counters that have run since boot do not, twice.
    """
    kept: list[_Zone] = []
    for zone in zones:
        socket = zone.id.split("-die-")[0]
        siblings = [other for other in kept if other.id.split("-die-")[0] == socket and other.scope is zone.scope]
        if zone.scope is Scope.CPU_PACKAGE and any(_is_mirror(zone, other) for other in siblings):
            continue
        kept.append(zone)
    names = {zone.id for zone in kept}
    return [zone for zone in kept if zone.parent is None or zone.parent in names]


def _is_mirror(zone: _Zone, original: _Zone) -> bool:
    for _ in range(2):
        before = read_int(original.path / "energy_uj")
        value = read_int(zone.path / "energy_uj")
        after = read_int(original.path / "energy_uj")
        modulus = read_int(original.path / "max_energy_range_uj") + 1
        if (value - before) % modulus > (after - before) % modulus:
            return False
        time.sleep(0.002)
    return True


def _is_readable(path: Path) -> bool:
    """Whether this process may read a file that exists; any fault but a refusal is the caller's to see."""
    try:
        path.open("rb").close()
    except PermissionError:
        return False
    except OSError as error:
        raise EnergyError(f"cannot be opened: {error.strerror}", where=str(path)) from error
    return True
