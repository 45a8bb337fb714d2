"""A window from its opening to its result: measured, estimated or invalid with a reason, never a silent zero."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
from fake_machine import GUEST, RANGE_UJ, FakeMachine, cpuinfo, domain

import compressor.energy
from compressor.energy import (
    Domain,
    EstimatedEnergy,
    InvalidEnergy,
    MeasuredEnergy,
    PlugReading,
    Probe,
    Provenance,
    Quantity,
    ReplayMeter,
    Sample,
    Scope,
    Source,
    Window,
    calibrate,
    choose_sources,
    identify_cpu,
    measure,
    to_json,
    verify,
)
from compressor.energy import window as window_module
from compressor.energy.meters.cpu_time import CpuTimeMeter
from compressor.energy.meters.rapl import RaplMeter
from compressor.errors import EnergyError, ProvenanceError

LONG_ENOUGH_S = 0.25  # 200 periods of RAPL are 0.2 s
S = 1_000_000_000


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    fake = FakeMachine(tmp_path)
    fake.add_zone("intel-rapl:0", "package-0")
    return fake


class PlayedMeter:
    """A device counter that plays readings under its own provenance; in tests only, on purpose."""

    name = "played"
    label = "played"

    def __init__(self, domains: list[Domain], readings: list[tuple[Sample, ...] | EnergyError]) -> None:
        self._domains, self._replay = tuple(domains), ReplayMeter(domains, readings)

    def probe(self) -> Probe:
        return Probe("ok", "played")

    def domains(self) -> tuple[Domain, ...]:
        return self._domains

    def read(self) -> tuple[Sample, ...]:
        return self._replay.read()


def play(*samples: tuple[float, int] | EnergyError, of: Domain | None = None) -> Window:
    """A window of two readings, at the times they carry."""
    of = of or domain()
    readings = [
        entry if isinstance(entry, EnergyError) else (Sample(of.id, round(entry[0] * S), entry[1]),)
        for entry in samples
    ]
    return Window([Source(PlayedMeter([of], readings), (of,))])


def test_a_counter_gives_a_measured_result_that_verifies(machine: FakeMachine) -> None:
    with machine.running("intel-rapl:0", power_w=100.0), measure(root=machine.root, require="measured") as window:
        time.sleep(LONG_ENOUGH_S)
    result = window.result
    assert isinstance(result, MeasuredEnergy)
    assert result.scopes == (Scope.CPU_PACKAGE,)
    assert result.provenance is Provenance.DEVICE_COUNTER
    assert result.energy_gross_j > 0 and "(RAPL package)" in str(result)
    assert verify(to_json(result)) == result


def test_the_result_is_the_difference_of_the_counter(machine: FakeMachine) -> None:
    meter = RaplMeter(machine.root)
    with Window([Source(meter, meter.domains())], root=machine.root) as window:
        time.sleep(LONG_ENOUGH_S)
        machine.set_energy("intel-rapl:0", 1_000_000 + 1_930_000)
    assert isinstance(window.result, MeasuredEnergy)
    assert window.result.energy_gross_j == 1.93


def test_a_wrap_inside_the_window_is_counted(machine: FakeMachine) -> None:
    machine.set_energy("intel-rapl:0", RANGE_UJ - 999_999)
    meter = RaplMeter(machine.root)
    with Window([Source(meter, meter.domains())], root=machine.root) as window:
        time.sleep(LONG_ENOUGH_S)
        machine.set_energy("intel-rapl:0", 500_000)
    assert isinstance(window.result, MeasuredEnergy)
    assert window.result.energy_gross_j == 1.5


def test_a_wall_clock_stepped_an_hour_back_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hour_ago = time.time() - 3600
    with play((0.0, 0), (1.0, 5_000_000)) as window:
        monkeypatch.setattr(time, "time", lambda: hour_ago)
    assert isinstance(window.result, MeasuredEnergy)
    assert (window.result.energy_gross_j, window.result.wall_s) == (5.0, 1.0)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (((0.0, 9_000_000), (1.0, 5)), "fell from 9000000 to 5: a reset or a backwards step"),
        (((0.0, 5), (1.0, 5)), "frozen, no change in 1.00 s"),
        (((0.0, 0), (1.0, 10**10)), "above the ceiling of 1000 W"),
        (((0.0, 0), (500.0, 10**6)), "may have wrapped unseen"),
        (((0.0, 5), EnergyError("cannot be read: Input/output error (EIO)")), "Input/output error (EIO)"),
        ((EnergyError("does not answer: timed out"), (1.0, 5)), "does not answer: timed out"),
    ],
)
def test_a_broken_reading_is_invalid_with_its_reason(samples: tuple[tuple[float, int], ...], reason: str) -> None:
    with play(*samples) as window:
        pass
    assert isinstance(window.result, InvalidEnergy)
    assert reason in window.result.reason
    assert not any(name.endswith("_j") for name in vars(window.result))
    assert to_json(window.result)["reason"] == window.result.reason


def test_a_domain_that_vanishes_in_mid_window_is_named() -> None:
    two = [domain("GPU-1", Scope.GPU_BOARD), domain("GPU-2", Scope.GPU_BOARD)]
    readings = [(Sample("GPU-1", 0, 5), Sample("GPU-2", 0, 5)), (Sample("GPU-1", S, 10),)]
    with Window([Source(PlayedMeter(two, readings), tuple(two))]) as window:
        pass
    assert isinstance(window.result, InvalidEnergy)
    assert "no longer reads GPU-2" in window.result.reason


def test_garbage_in_the_counter_file_is_invalid_and_the_work_goes_on(machine: FakeMachine) -> None:
    meter = RaplMeter(machine.root)
    done = False
    with Window([Source(meter, meter.domains())], root=machine.root) as window:
        time.sleep(LONG_ENOUGH_S)
        machine.write("sys/class/powercap/intel-rapl:0/energy_uj", "garbage")
        done = True
    assert done and isinstance(window.result, InvalidEnergy)
    assert "energy_uj: holds 'garbage', which is not a whole number" in window.result.reason


def test_a_suspended_machine_gives_an_invalid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    asleep_s = iter([100.0, 160.0])
    monkeypatch.setattr(window_module, "_asleep_s", lambda: next(asleep_s))
    with play((0.0, 0), (1.0, 5_000_000)) as window:
        pass
    assert isinstance(window.result, InvalidEnergy)
    assert window.result.reason == "the machine was suspended for 60.0 s"


def test_a_window_too_short_raises_and_says_how_long() -> None:
    with (
        pytest.raises(EnergyError, match=r"lasted 0\.1 s; package-0 updates every 0\.001 s and needs at least 0\.2 s"),
        play((0.0, 0), (0.1, 5_000)),
    ):
        pass


def test_an_error_in_the_work_is_not_hidden_by_a_short_window() -> None:
    window = play((0.0, 0), (0.1, 5_000))
    with pytest.raises(ZeroDivisionError), window:
        _ = 1 / 0
    assert isinstance(window.result, InvalidEnergy)


def test_a_window_is_used_once_and_has_no_result_while_open() -> None:
    window = play((0.0, 0), (1.0, 5_000_000))
    with pytest.raises(EnergyError, match="still open, or was never opened"):
        _ = window.result
    with window:
        pass
    with pytest.raises(EnergyError, match="used once"), window:
        pass


def cpu_time_machine(tmp_path: Path, cpuinfo: str = GUEST) -> FakeMachine:
    fake = FakeMachine(tmp_path)
    fake.write("proc/cpuinfo", cpuinfo)
    fake.write("proc/self/cgroup", "0::/")
    fake.write("sys/fs/cgroup/cpu.stat", "usage_usec 1000000")
    return fake


def test_without_a_counter_the_result_is_an_estimate(tmp_path: Path) -> None:
    fake = cpu_time_machine(tmp_path)
    with measure(root=tmp_path) as window:
        time.sleep(0.85)
        fake.write("sys/fs/cgroup/cpu.stat", "usage_usec 1500000")
    assert isinstance(window.result, EstimatedEnergy)
    assert window.result.inputs["cpu_s"] == 0.5
    assert window.result.inputs["cpu_family"] == "AMD EPYC 9005 (Zen 5)"
    assert "(estimated, " in str(window.result)


def test_a_calibration_makes_the_estimate_that_of_this_machine(tmp_path: Path) -> None:
    fake = cpu_time_machine(tmp_path, cpuinfo())
    line = calibrate([PlugReading(0, 40), PlugReading(1, 100)], cpu=identify_cpu(tmp_path))
    with measure(root=tmp_path, calibration=line) as window:
        time.sleep(0.85)
        fake.write("sys/fs/cgroup/cpu.stat", "usage_usec 1500000")
    result = window.result
    assert isinstance(result, EstimatedEnergy)
    assert result.provenance is Provenance.MODEL_CALIBRATED
    assert result.est_energy_net_j == pytest.approx(60 * 0.5 / 2)
    assert result.est_energy_gross_j == pytest.approx(40 * result.wall_s + 15)
    with pytest.raises(EnergyError, match="these were given as they are\n  -> pass CpuTimeMeter"):
        measure([CpuTimeMeter(tmp_path)], calibration=line)


def test_required_measured_energy_is_refused_before_the_work(tmp_path: Path) -> None:
    cpu_time_machine(tmp_path)
    with pytest.raises(ProvenanceError, match="measured energy is required, and no meter can give it: spec_share: ok"):
        measure(root=tmp_path, require="measured")


def test_required_measured_energy_is_refused_after_a_broken_window(machine: FakeMachine) -> None:
    broken = Window(
        [Source(PlayedMeter([domain()], [(Sample("package-0", 0, 9),), EnergyError("gone")]), (domain(),))],
        require="measured",
    )
    with pytest.raises(ProvenanceError, match="the window gave: not measured: gone"), broken:
        pass


def test_rapl_in_a_guest_is_passed_over_and_never_measured(machine: FakeMachine) -> None:
    machine.write("proc/cpuinfo", GUEST)
    (source,) = choose_sources(root=machine.root)
    assert isinstance(source.meter, CpuTimeMeter)
    with pytest.raises(ProvenanceError, match=r"rapl: virtualised \(a guest's RAPL is dead or made up by its host"):
        measure(root=machine.root, require="measured")
    meter = RaplMeter(machine.root)
    with machine.running("intel-rapl:0", 50.0), measure([meter], root=machine.root) as window:
        time.sleep(LONG_ENOUGH_S)
    assert isinstance(window.result, EstimatedEnergy)
    assert window.result.est_energy_gross_j is None
    assert window.result.reason == "RAPL is attributed here, and no band is known for it"
    assert len(window.result.windows[0].logs[0].samples) == 2
    assert str(window.result).startswith("no number (estimated, attributed:")


def test_psys_is_read_only_when_it_alone_is_asked_for(machine: FakeMachine) -> None:
    machine.add_zone("intel-rapl:0:0", "dram")
    machine.add_zone("intel-rapl:1", "psys")
    meter = RaplMeter(machine.root, settle_s=1.0)
    with machine.running("intel-rapl:0", 50), machine.running("intel-rapl:0:0", 5), machine.running("intel-rapl:1", 70):
        (usual,) = choose_sources([meter], root=machine.root)
        (asked,) = choose_sources([meter], root=machine.root, scopes=[Scope.PLATFORM_PSYS])
    assert [d.id for d in usual.domains] == ["package-0", "package-0-dram"]
    assert [d.id for d in asked.domains] == ["psys"]


def test_a_second_meter_of_the_same_joules_is_left_out() -> None:
    package = PlayedMeter([domain()], [])
    perf = PlayedMeter([domain("energy-pkg:cpu0")], [])
    gpu = PlayedMeter([domain("GPU-1", Scope.GPU_BOARD)], [])
    wall = PlayedMeter([domain("dcmi", Scope.NODE_WALL_AC)], [])
    sources = choose_sources([package, perf, gpu, wall])
    assert [source.meter for source in sources] == [package, gpu]


def test_a_meter_too_slow_for_the_windows_is_passed_over_and_says_so() -> None:
    slow = PlayedMeter([domain("dcmi", Scope.NODE_WALL_AC, period_s=1.0)], [])
    assert len(choose_sources([slow], window_s=200)) == 1
    with pytest.raises(ProvenanceError, match="played: needs windows of 200 s"):
        choose_sources([slow], window_s=60, require="measured")


def test_two_meters_over_one_window_share_its_time() -> None:
    package = PlayedMeter([domain()], [(Sample("package-0", 0, 0),), (Sample("package-0", S, 5_000_000),)])
    gpu_domain = domain("GPU-1", Scope.GPU_BOARD)
    gpu = PlayedMeter([gpu_domain], [(Sample("GPU-1", 0, 0),), (Sample("GPU-1", S, 100_000_000),)])
    with Window(choose_sources([package, gpu])) as window:
        pass
    assert isinstance(window.result, MeasuredEnergy)
    assert (window.result.energy_gross_j, window.result.wall_s) == (105.0, 1.0)
    assert verify(to_json(window.result)) == window.result


def checked_gpu(power_mw: int) -> Window:
    counter = domain("GPU-1", Scope.GPU_BOARD, unit=Fraction(1, 1000), modulus=None, period_s=0.01)
    sensor = domain(
        "GPU-1:power",
        Scope.GPU_BOARD,
        Provenance.DEVICE_POWER_INTEGRATED,
        Quantity.POWER,
        Fraction(1, 1000),
        0.01,
        modulus=None,
        checks="GPU-1",
    )
    readings = [(Sample("GPU-1", t * S, t * 100_000), Sample("GPU-1:power", t * S, power_mw)) for t in range(0, 4, 2)]
    return Window(choose_sources([PlayedMeter([counter, sensor], list(readings))]))


def test_counter_and_sensor_that_agree_give_the_counter() -> None:
    with checked_gpu(95_000) as window:
        pass
    assert isinstance(window.result, MeasuredEnergy)
    assert window.result.energy_gross_j == 200.0


def test_counter_and_sensor_that_disagree_are_downgraded_to_an_estimate_over_both() -> None:
    with checked_gpu(80_000) as window:
        pass
    result = window.result
    assert isinstance(result, EstimatedEnergy)
    assert result.gross_band == (160.0, 200.0, 200.0)
    assert result.provenance is Provenance.DEVICE_MODELLED
    assert "says 200 J, the integrated power 160 J; more than 10 % apart" in result.notes[0]


def test_the_replay_is_always_simulated() -> None:
    meter = ReplayMeter([domain()], [(Sample("package-0", 0, 0),), (Sample("package-0", S, 1_930_000),)])
    with measure([meter]) as window:
        pass
    assert isinstance(window.result, EstimatedEnergy)
    assert str(window.result) == "~1.9 J (simulated, estimated, 1.9-1.9)"
    with pytest.raises(ProvenanceError):
        measure([meter], require="measured")


def test_the_sampler_thread_ends_with_its_window(machine: FakeMachine) -> None:
    before = threading.active_count()
    with play((0.0, 0), (1.0, 5_000_000)):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_the_package_imports_neither_torch_nor_numpy_and_stands_alone() -> None:
    code = (
        "import sys, compressor.energy; print([m for m in ('torch', 'numpy', 'scipy', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert sorted(compressor.energy.__all__) == compressor.energy.__all__
