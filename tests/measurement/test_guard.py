"""Who else uses the machine, read from fake trees."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from compressor.measurement.environment import read_cpu_flags, read_environment
from compressor.measurement.guard import (
    CpuTimes,
    GpuProcesses,
    Load,
    cpu_quota,
    gpu_processes,
    load_between,
    mean_load,
    read_cpu_times,
)


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_totals_come_in_seconds(tmp_path: Path) -> None:
    write(tmp_path, "proc/stat", "cpu  1000 200 300 5000 50 0 50 25 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    times = read_cpu_times(tmp_path)
    assert times is not None
    assert (times.busy_s, times.idle_s, times.steal_s) == (15.5, 50.5, 0.25)
    assert times.own_s > 0


def test_no_proc_is_no_reading(tmp_path: Path) -> None:
    assert read_cpu_times(tmp_path) is None
    assert mean_load([]) is None


def test_load_is_what_neither_the_worker_nor_we_used() -> None:
    """Ten seconds on two processors: 8 s busy, of which the worker used 5 and we 1."""
    before = CpuTimes(busy_s=100.0, idle_s=100.0, steal_s=1.0, own_s=3.0)
    after = CpuTimes(busy_s=108.0, idle_s=111.8, steal_s=1.2, own_s=4.0)
    load = load_between(before, after, measured_cpu_s=5.0)
    assert load.other_share == pytest.approx(2.0 / 20.0)
    assert load.steal_share == pytest.approx(0.01)
    assert not load.is_quiet


@pytest.mark.parametrize(
    ("other", "steal", "is_quiet"), [(0.05, 0.01, True), (0.0501, 0.0, False), (0.0, 0.0101, False)]
)
def test_limits(other: float, steal: float, is_quiet: bool) -> None:
    assert Load(other, steal).is_quiet is is_quiet


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/system.slice/job\n",
                "sys/fs/cgroup/system.slice/cpu.max": "100000 100000\n",
                "sys/fs/cgroup/system.slice/job/cpu.max": "max 100000\n",
            },
            1.0,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/x\n0::/a\n",
                "sys/fs/cgroup/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a/cpu.max": "250000 100000\n",
            },
            2.5,
        ),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 0.5),
    ],
)
def test_quota_of_the_control_group(files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    for name, text in files.items():
        write(tmp_path, name, text)
    assert cpu_quota(tmp_path) == quota


def test_flags_on_intel_amd_and_arm(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "processor : 0\nflags\t\t: fpu avx2 avx512_vnni\n\nprocessor : 1\nflags : fpu\n")
    assert {"avx2", "avx512_vnni"} <= read_cpu_flags(tmp_path)
    write(tmp_path, "proc/cpuinfo", "processor : 0\nFeatures : fp asimddp i8mm\n")
    assert "i8mm" in read_cpu_flags(tmp_path)


class FakeNvml:
    """GPUs, each with the ids of the processes that compute and that draw on it."""

    class NVMLError(Exception):
        pass

    def __init__(self, *gpus: tuple[list[int], list[int]], driver: bool = True) -> None:
        self.gpus, self.driver = gpus, driver

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[list[int], list[int]]:
        return self.gpus[index]

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: tuple[list[int], list[int]]) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid) for pid in gpu[0]]

    def nvmlDeviceGetGraphicsRunningProcesses(self, gpu: tuple[list[int], list[int]]) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid) for pid in gpu[1]]


def test_processes_of_others_on_any_gpu_are_counted_once_and_we_are_not() -> None:
    me, someone, another = os.getpid(), 2**30, 2**30 + 1
    assert gpu_processes(FakeNvml(([me, someone], [someone]), ([someone], [another]))) == GpuProcesses(2, None)
    assert gpu_processes(FakeNvml(([me], []))) == GpuProcesses(0, None)


def test_where_nobody_can_say_who_is_on_the_gpu_there_is_a_reason_and_no_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_processes(FakeNvml(driver=False)) == GpuProcesses(None, "NVML: Driver Not Loaded")
    assert gpu_processes(FakeNvml()) == GpuProcesses(None, "NVML finds no GPU")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_processes() == GpuProcesses(None, "the package nvidia-ml-py is not installed")


def test_the_record_has_quota_and_gpu_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(driver=False))
    write(tmp_path, "proc/cpuinfo", "processor\t: 0\nmodel name\t: X\nflags\t\t: avx2\n")
    write(tmp_path, "proc/stat", "cpu  0 0 0 0 0 0 0 0 0 0\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "150000 100000\n")
    record = read_environment(tmp_path)
    assert record["cpu_quota"] == 1.5
    assert record["gpu_processes"] == {"others": None, "reason": "NVML: Driver Not Loaded"}
