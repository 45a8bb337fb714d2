"""What the host is: CPU family, hypervisor, and how many CPU-seconds were busy.

The root of the file system is an argument, so that tests read a fake tree and never this machine.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compressor.errors import EnergyError

ROOT = Path("/")
_SERVER_NOT = ("Ryzen", "Threadripper", "Core(TM)", "Core(R)", "Athlon")
# Names that hypervisors write where a board's maker would stand.
_GUEST_VENDORS = (
    "QEMU",
    "KVM",
    "VMware",
    "innotek",
    "VirtualBox",
    "Xen",
    "Bochs",
    "Parallels",
    "OpenStack",
    "Virtual Machine",
    "Google Compute Engine",
    "Alibaba Cloud",
    "HVM domU",
)


@dataclass(frozen=True)
class Cpu:
    """The processor as the kernel shows it.

    Attributes:
        name: model name; a hypervisor may cut it down to ``AMD EPYC``.
        family: row of the power table, such as ``AMD EPYC 7003 (Zen 3)``; None when unknown.
        n_vcpu: processors that the kernel shows.
        hypervisor: how a guest was recognised; None on bare metal.
    """

    name: str
    family: str | None
    n_vcpu: int
    hypervisor: str | None


@dataclass(frozen=True)
class CpuSeconds:
    """A running total of busy CPU time.

    Attributes:
        raw: ticks so far.
        ticks_per_s: ticks in a second.
        source: the file it was read from.
    """

    raw: int
    ticks_per_s: int
    source: str


def identify_cpu(root: Path = ROOT) -> Cpu:
    """Read ``/proc/cpuinfo`` and tell the CPU family by its numbers, since guests often see no full name.

    Raises:
        EnergyError: the file cannot be read or lists no processor.
    """
    path = root / "proc/cpuinfo"
    blocks = [block for block in read_text(path).split("\n\n") if block.strip()]
    entries = [_fields(block) for block in blocks]
    processors = [entry for entry in entries if "processor" in entry]
    if not processors:
        raise EnergyError("lists no processor", where=str(path))
    first = processors[0]
    name = first.get("model name", first.get("CPU part", "unknown"))
    return Cpu(name, _family(first, name), len(processors), find_hypervisor(root))


def find_hypervisor(root: Path = ROOT) -> str | None:
    """How this host shows that it is a guest; None where nothing does.

    A counter seen in a guest may be dead, or made up by the host: it can never be called measured.
    """
    cpuinfo = root / "proc/cpuinfo"
    if cpuinfo.exists():
        for line in read_text(cpuinfo).splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "flags" and "hypervisor" in value.split():
                return "the CPU flag 'hypervisor' is set"
    for entry in ("sys_vendor", "product_name", "board_vendor"):
        path = root / "sys/class/dmi/id" / entry
        if path.exists():
            text = read_text(path).strip()
            if any(vendor.lower() in text.lower() for vendor in _GUEST_VENDORS):
                return f"DMI {entry} is {text!r}"
            if entry == "product_name" and _is_cloud_guest(root, text):
                return f"DMI product_name is {text!r} on Amazon EC2"
    for entry in ("sys/hypervisor/type", "proc/device-tree/hypervisor/compatible"):
        if (root / entry).exists():
            return f"/{entry} is {read_text(root / entry).strip(chr(0)).strip()!r}"
    return None


def read_cpu_seconds(root: Path = ROOT) -> CpuSeconds:
    """Busy CPU time of this cgroup (v2 ``cpu.stat``), else of the whole machine (``/proc/stat`` without steal).

    Raises:
        EnergyError: neither can be read.
    """
    group = _own_cgroup(root)
    if group is not None:
        for line in read_text(group).splitlines():
            key, _, value = line.partition(" ")
            if key == "usage_usec":
                return CpuSeconds(parse_int(value, group), 1_000_000, "cgroup v2 cpu.stat")
    path = root / "proc/stat"
    fields = read_text(path).split("\n", 1)[0].split()
    if len(fields) < 8 or fields[0] != "cpu":
        raise EnergyError("has no line of total CPU time", where=str(path))
    user, nice, system, _idle, _iowait, irq, softirq = (parse_int(field, path) for field in fields[1:8])
    # The kernel exports these in hundredths of a second on every platform we run on (USER_HZ).
    return CpuSeconds(user + nice + system + irq + softirq, 100, "/proc/stat")


def read_boot_id(root: Path = ROOT) -> str | None:
    """Which boot the monotonic clock counts from; None where the kernel does not say."""
    path = root / "proc/sys/kernel/random/boot_id"
    return read_text(path).strip() if path.exists() else None


def read_text(path: Path) -> str:
    """A small file of sysfs or procfs.

    Raises:
        EnergyError: naming the file and what the system said.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "error")
        raise EnergyError(f"cannot be read: {error.strerror} ({code})", where=str(path)) from error


def parse_int(text: str, path: Path) -> int:
    """A whole number as the kernel writes it.

    Raises:
        EnergyError: naming the file and what stands there.
    """
    try:
        return int(text.strip())
    except ValueError as error:
        raise EnergyError(f"holds {text.strip()[:40]!r}, which is not a whole number", where=str(path)) from error


def read_int(path: Path) -> int:
    """One whole number from a file; raises as `read_text` and `parse_int` do."""
    return parse_int(read_text(path), path)


def _is_cloud_guest(root: Path, product_name: str) -> bool:
    """EC2 names its guests and its bare-metal hosts alike; only the product tells them apart."""
    vendor = root / "sys/class/dmi/id/sys_vendor"
    return vendor.exists() and "Amazon EC2" in read_text(vendor) and "metal" not in product_name


def _own_cgroup(root: Path) -> Path | None:
    """``cpu.stat`` of the process's own cgroup v2, where that hierarchy is the one in use."""
    membership = root / "proc/self/cgroup"
    if not membership.exists():
        return None
    for line in read_text(membership).splitlines():
        hierarchy, _, path = line.partition("::")
        if hierarchy == "0":
            stat = root / "sys/fs/cgroup" / path.lstrip("/") / "cpu.stat"
            return stat if stat.exists() else None
    return None


def _fields(block: str) -> dict[str, str]:
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}


def _family(entry: Mapping[str, str], name: str) -> str | None:
    """Row of the power table: published server results say nothing of desktop parts, which stay unknown."""
    if any(word in name for word in _SERVER_NOT):
        return None
    vendor, family = entry.get("vendor_id", ""), entry.get("cpu family", "")
    if not (family.isdigit() and entry.get("model", "").isdigit()):
        return None
    model, stepping = int(entry["model"]), entry.get("stepping", "")
    if vendor == "AuthenticAMD":
        return _amd_family(int(family), model)
    if vendor == "GenuineIntel" and int(family) == 6:
        return _intel_family(model, int(stepping) if stepping.isdigit() else None)
    return None


def _amd_family(family: int, model: int) -> str | None:
    """Server models only: 0x17 is Zen 1 and 2, 0x19 Zen 3 and 4, 0x1A Zen 5."""
    if family == 0x17:
        return {0x01: "AMD EPYC 7001 (Zen 1)", 0x31: "AMD EPYC 7002 (Zen 2)"}.get(model)
    if family == 0x19:
        if model <= 0x0F:
            return "AMD EPYC 7003 (Zen 3)"
        return "AMD EPYC 9004 (Zen 4)" if 0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF else None
    if family == 0x1A:
        return "AMD EPYC 9005 (Zen 5)" if model <= 0x1F else None
    return None


def _intel_family(model: int, stepping: int | None) -> str | None:
    """Xeon models; Skylake-SP and Cascade Lake share a model number and differ in stepping."""
    if model == 0x55:
        if stepping is None:
            return None
        if stepping <= 4:
            return "Intel Skylake-SP"
        return "Intel Cascade Lake" if stepping <= 7 else None
    return {0x6A: "Intel Ice Lake-SP", 0x6C: "Intel Ice Lake-SP", 0x8F: "Intel Sapphire Rapids"}.get(model)
