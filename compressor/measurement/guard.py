"""Who else was using the machine: other processes' CPU share, steal, CPU quota, and processes on the GPUs."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

OTHER_CPU_LIMIT = 0.05
STEAL_LIMIT = 0.01
USER_HZ = 100
"""/proc/stat counts hundredths of a second on every platform that we run on."""


@dataclass(frozen=True)
class CpuTimes:
    """Totals of the whole machine since boot, in CPU-seconds, and of ourselves (this process)."""

    busy_s: float
    idle_s: float
    steal_s: float
    own_s: float


@dataclass(frozen=True)
class Load:
    """Use of the machine by others during a window, as shares of all its processors.

    Attributes:
        other_share: busy CPU time that was neither the measured process's nor ours.
        steal_share: time in which the hypervisor ran somebody else.
    """

    other_share: float
    steal_share: float

    @property
    def is_quiet(self) -> bool:
        """Whether a measured claim may be made: at most 5 % others and 1 % steal."""
        return self.other_share <= OTHER_CPU_LIMIT and self.steal_share <= STEAL_LIMIT


def read_cpu_times(root: Path = Path("/")) -> CpuTimes | None:
    """Totals from /proc/stat; None where there is no such file (not Linux)."""
    path = root / "proc/stat"
    if not path.exists():
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = (
        int(field) / USER_HZ for field in path.read_text().split("\n", 1)[0].split()[1:9]
    )
    times = os.times()
    return CpuTimes(
        busy_s=user + nice + system + irq + softirq,
        idle_s=idle + iowait,
        steal_s=steal,
        own_s=times.user + times.system,
    )


def load_between(before: CpuTimes, after: CpuTimes, *, measured_cpu_s: float) -> Load:
    """What others used between two readings.

    /proc/stat ticks in hundredths, so a short window can show a little less busy time than the worker's own clock
    counted; that is no load by others.
    """
    steal_s = after.steal_s - before.steal_s
    total_s = (after.busy_s - before.busy_s) + (after.idle_s - before.idle_s) + steal_s
    if total_s <= 0:
        return Load(0.0, 0.0)
    other_s = (after.busy_s - before.busy_s) - measured_cpu_s - (after.own_s - before.own_s)
    return Load(max(other_s, 0.0) / total_s, steal_s / total_s)


def mean_load(loads: Sequence[Load]) -> Load | None:
    """Mean over the windows of a session; None where none could be read."""
    if not loads:
        return None
    n = len(loads)
    return Load(sum(load.other_share for load in loads) / n, sum(load.steal_share for load in loads) / n)


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processors that the control groups allow (cgroup v2 `cpu.max`, v1 `cfs_quota`); None where none sets a limit.

    With v2 the tightest of the process's own group and of those above it.
    """
    limits = [_read_limit(group / "cpu.max") for group in _groups(root)]
    found = [limit for limit in limits if limit is not None]
    if found:
        return min(found)
    quota_file = root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us"
    period_file = root / "sys/fs/cgroup/cpu/cpu.cfs_period_us"
    if quota_file.exists() and period_file.exists():
        quota_us = int(quota_file.read_text())
        return None if quota_us < 0 else quota_us / int(period_file.read_text())
    return None


def _groups(root: Path) -> list[Path]:
    """Folders of the process's own cgroup v2 and of those above it, up to the root of the hierarchy."""
    top = root / "sys/fs/cgroup"
    membership = root / "proc/self/cgroup"
    lines = membership.read_text().splitlines() if membership.exists() else []
    own = next((line.removeprefix("0::").lstrip("/") for line in lines if line.startswith("0::")), "")
    return [top, *(top.joinpath(*Path(own).parts[:depth]) for depth in range(1, len(Path(own).parts) + 1))]


def _read_limit(path: Path) -> float | None:
    if not path.exists():
        return None
    quota, period = path.read_text().split()
    return None if quota == "max" else int(quota) / int(period)


@dataclass(frozen=True)
class GpuProcesses:
    """Processes of others that hold a context on one of the machine's NVIDIA GPUs.

    Attributes:
        others: how many; None where nobody can say.
        reason: why not.
    """

    others: int | None
    reason: str | None


def gpu_processes(nvml: Any = None) -> GpuProcesses:
    """Who else is on the GPUs, by NVML; ourselves and our children are not counted.

    Args:
        nvml: the module `pynvml`, or an object like it; imported when None.
    """
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return GpuProcesses(None, "the package nvidia-ml-py is not installed")
    me = psutil.Process()
    own = {me.pid, *(child.pid for child in me.children(recursive=True))}
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        if not handles:
            return GpuProcesses(None, "NVML finds no GPU")
        running = {
            process.pid
            for handle in handles
            for list_running in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses)
            for process in list_running(handle)
        }
    except nvml.NVMLError as error:
        return GpuProcesses(None, f"NVML: {error}")
    return GpuProcesses(len(running - own), None)
