"""Who else was using the machine: other processes' CPU share, steal, and the CPU quota of our control group."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """Processors that the control group allows (cgroup v2 `cpu.max`, v1 `cfs_quota`); None where it sets no limit."""
    limit_file = root / "sys/fs/cgroup/cpu.max"
    if limit_file.exists():
        quota, period = limit_file.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    quota_file = root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us"
    period_file = root / "sys/fs/cgroup/cpu/cpu.cfs_period_us"
    if quota_file.exists() and period_file.exists():
        quota_us = int(quota_file.read_text())
        return None if quota_us < 0 else quota_us / int(period_file.read_text())
    return None
