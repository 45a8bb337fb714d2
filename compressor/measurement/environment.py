"""Where it was measured: processor, memory, versions, meters, load. Read once, before the first window."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from compressor import energy
from compressor.checkpoints.fingerprint import library_versions
from compressor.energy.processor import read_cpu_flags
from compressor.measurement.guard import cpu_quota, gpu_processes

FLAGS_THAT_MATTER = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "sve")
"""Processor flags that decide how fast low precision runs (the last three are Arm's)."""


def read_environment(root: Path = Path("/")) -> dict[str, Any]:
    """The report's `environment`."""
    cpu = energy.identify_cpu(root)
    flags = read_cpu_flags(root)
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": cpu.name,
        "cpu_family": cpu.family,
        "cpu_flags": [flag for flag in FLAGS_THAT_MATTER if flag in flags],
        "hypervisor": cpu.hypervisor,
        "processors": psutil.cpu_count(logical=True),
        "cores": psutil.cpu_count(logical=False),
        "cpu_quota": cpu_quota(root),
        "gpu_processes": asdict(gpu_processes()),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": list(psutil.getloadavg()),
        "versions": library_versions(),
        "meters": [
            {"name": meter.name, "status": probe.status, "reason": probe.reason, "remedy": probe.remedy}
            for meter, probe in ((meter, meter.probe()) for meter in energy.all_meters(root))
        ],
    }
