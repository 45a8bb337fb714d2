"""The device that a cost table holds for."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import onnxruntime

from compressor.energy import identify_cpu


@dataclass(frozen=True)
class Device:
    """What a table holds for: the machine, and how a session uses it."""

    cpu: str
    family: str | None
    n_cpus: int
    cache_bytes: int | None
    machine: str
    threads: int
    provider: str
    onnxruntime: str

    def differences(self, other: Device) -> list[str]:
        """Where another device differs, in words."""
        mine, others = asdict(self), asdict(other)
        return [f"{name} {others[name]} there, {mine[name]} here" for name in mine if mine[name] != others[name]]


def this_device(*, threads: int, provider: str) -> Device:
    """The machine as it is now, used with so many threads."""
    cpu = identify_cpu()
    return Device(
        cpu=cpu.name,
        family=cpu.family,
        n_cpus=os.cpu_count() or 1,
        cache_bytes=last_level_cache_bytes(),
        machine=platform.machine(),
        threads=threads,
        provider=provider,
        onnxruntime=onnxruntime.__version__,
    )


def last_level_cache_bytes(root: Path = Path("/")) -> int | None:
    """Size of the largest processor cache; None where the system does not tell."""
    sizes = []
    for file in root.glob("sys/devices/system/cpu/cpu0/cache/index*/size"):
        text = file.read_text().strip()
        unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KMG")) * unit)
    return max(sizes, default=None)
