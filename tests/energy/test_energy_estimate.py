"""The estimate against its formula worked out by hand, CPU families by their numbers, and calibration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_machine import GUEST, FakeMachine, cpuinfo
from hypothesis import given
from hypothesis import strategies as st

from compressor.energy import (
    Cpu,
    EstimatedEnergy,
    PlugReading,
    Provenance,
    Scope,
    calibrate,
    estimate_calibrated,
    estimate_energy,
    estimate_with,
    find_hypervisor,
    identify_cpu,
    load_calibration,
    save_calibration,
)
from compressor.energy.host import read_cpu_seconds
from compressor.energy.spec_share import TABLE_FILE, load_power_table, power_table_source, thread_power
from compressor.errors import EnergyError

ZEN3 = "AMD EPYC 7003 (Zen 3)"
METAL = Cpu("AMD EPYC 7763", ZEN3, 2, None)
VM = Cpu("AMD EPYC 7763", ZEN3, 2, "the CPU flag 'hypervisor' is set")


def band(estimate: EstimatedEnergy) -> tuple[float, float, float]:
    low, value, high = estimate.gross_band
    assert low is not None and value is not None and high is not None
    return low, value, high


def test_the_estimate_is_its_formula() -> None:
    """Zen 3: 2 vCPU x 0.42 W x 3 s + 1.48 W x 4 s = 2.52 + 5.92 J."""
    estimate = estimate_energy(cpu_s=4.0, wall_s=3.0, cpu=METAL)
    assert estimate.est_energy_gross_j == pytest.approx(8.44)
    assert estimate.est_energy_net_j == pytest.approx(5.92)
    assert estimate.provenance is Provenance.MODEL_ESTIMATED
    assert estimate.method == "spec_share/1"
    assert estimate.scopes == (Scope.NODE_WALL_AC,)
    assert estimate_energy(cpu_s=4, wall_s=3, cpu=METAL, threads_per_vcpu=2).est_energy_gross_j == pytest.approx(16.88)


def test_the_idle_band_is_that_of_the_table() -> None:
    """With no busy time, gross is idle power alone: its 5 % and 95 % points are the table's."""
    low, value, high = band(estimate_energy(cpu_s=0.0, wall_s=1.0, n_vcpu=1, cpu=METAL))
    assert (low, value, high) == (pytest.approx(0.31, rel=0.01), pytest.approx(0.42), pytest.approx(0.68, rel=0.01))


def test_equal_inputs_give_equal_numbers() -> None:
    """These are the numbers of this version; a change of seed or method is a new version."""
    estimate = estimate_energy(cpu_s=1.0, wall_s=0.5, cpu=VM)
    assert estimate == estimate_energy(cpu_s=1.0, wall_s=0.5, cpu=VM)
    assert band(estimate) == (pytest.approx(1.51352, rel=1e-5), pytest.approx(1.9), pytest.approx(5.06936, rel=1e-5))


def test_a_guest_widens_the_band_and_says_so() -> None:
    metal, guest = estimate_energy(cpu_s=1, wall_s=0.5, cpu=METAL), estimate_energy(cpu_s=1, wall_s=0.5, cpu=VM)
    assert band(guest)[2] > 1.5 * band(metal)[2]
    assert metal.notes == ()
    assert guest.notes == ("in a guest: one vCPU may be one or two hardware threads, the band spans both",)
    assert guest.scopes == (Scope.VM_SHARE,)


def test_an_unknown_family_has_the_widest_band_and_says_so() -> None:
    unknown = estimate_energy(cpu_s=1, wall_s=0.5, cpu=Cpu("Some CPU", None, 2, None))
    assert unknown.notes == ("CPU family unknown (Some CPU): the band spans every family in the table",)
    for family in load_power_table():
        known = estimate_energy(cpu_s=1, wall_s=0.5, cpu=Cpu("", family, 2, None))
        assert band(unknown)[0] <= band(known)[0] and band(unknown)[2] >= band(known)[2]


@given(st.floats(0, 100), st.floats(1e-3, 100), st.integers(1, 64), st.sampled_from([None, *load_power_table()]))
def test_the_value_lies_in_its_band_and_net_below_gross(
    load: float, wall_s: float, n_vcpu: int, family: str | None
) -> None:
    cpu_s = load / 100 * wall_s * n_vcpu
    estimate = estimate_energy(cpu_s=cpu_s, wall_s=wall_s, n_vcpu=n_vcpu, cpu=Cpu("", family, n_vcpu, "guest"))
    low, value, high = band(estimate)
    assert 0 < low <= value <= high
    assert 0 <= (estimate.est_energy_net_j or 0.0) < value


def test_an_estimated_ratio_is_the_ratio_of_cpu_time() -> None:
    one, three = (estimate_energy(cpu_s=s, wall_s=9, cpu=VM).est_energy_net_j or 0.0 for s in (1.0, 3.0))
    assert three / one == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("cpu_s", "wall_s", "n_vcpu", "text"),
    [
        (1.0, 0.0, 2, "the window has no length: wall_s is 0"),
        (-1.0, 1.0, 2, "busy CPU time cannot be negative"),
        (float("nan"), 1.0, 2, "cpu_s is nan"),
        (9.0, 1.0, 2, r"9 busy CPU-seconds do not fit into 1 s on 2 vCPU\(s\)"),
        (1.0, 1.0, 0, "at least one processor"),
    ],
)
def test_amounts_that_cannot_be_are_refused(cpu_s: float, wall_s: float, n_vcpu: int, text: str) -> None:
    with pytest.raises(EnergyError, match=text):
        estimate_energy(cpu_s=cpu_s, wall_s=wall_s, n_vcpu=n_vcpu, cpu=VM)


def test_a_wrong_family_or_sigma_is_refused() -> None:
    with pytest.raises(EnergyError, match=r"no CPU family 'Zen 9'\n  -> use None or one of: AMD EPYC 7001"):
        thread_power("Zen 9")
    with pytest.raises(EnergyError, match="threads_per_vcpu is 4"):
        estimate_energy(cpu_s=1, wall_s=1, cpu=VM, threads_per_vcpu=4)


def test_the_table_is_shipped_with_its_source() -> None:
    table = json.loads(TABLE_FILE.read_text())
    assert len(table["families"]) == len(load_power_table()) == 9
    assert table["families"][ZEN3]["idle_w"] == [0.31, 0.42, 0.68]
    assert "SPECpower_ssj2008" in power_table_source()


@pytest.mark.parametrize(
    ("text", "family"),
    [
        (cpuinfo(), ZEN3),
        (GUEST, "AMD EPYC 9005 (Zen 5)"),
        (cpuinfo(family=23, model=1), "AMD EPYC 7001 (Zen 1)"),
        (cpuinfo(family=23, model=49), "AMD EPYC 7002 (Zen 2)"),
        (cpuinfo(family=25, model=17, name="AMD EPYC"), "AMD EPYC 9004 (Zen 4)"),
        (cpuinfo(family=25, model=160, name="AMD EPYC 9754"), "AMD EPYC 9004 (Zen 4)"),
        (cpuinfo(family=25, model=33, name="AMD Ryzen 9 5950X"), None),
        (cpuinfo(family=25, model=8, name="AMD Ryzen Threadripper PRO"), None),
        (cpuinfo("GenuineIntel", 6, 85, 4, "Intel(R) Xeon(R) Gold 6148"), "Intel Skylake-SP"),
        (cpuinfo("GenuineIntel", 6, 85, 7, "Intel(R) Xeon(R) Processor"), "Intel Cascade Lake"),
        (cpuinfo("GenuineIntel", 6, 85, 11, "Intel(R) Xeon(R) Processor"), None),
        (cpuinfo("GenuineIntel", 6, 106, 6, "Intel(R) Xeon(R) Platinum"), "Intel Ice Lake-SP"),
        (cpuinfo("GenuineIntel", 6, 143, 8, "Intel(R) Xeon(R) Platinum"), "Intel Sapphire Rapids"),
        (cpuinfo("GenuineIntel", 6, 151, 2, "12th Gen Intel(R) Core(TM) i9"), None),
        ("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n", None),
    ],
)
def test_the_family_is_told_by_its_numbers(tmp_path: Path, text: str, family: str | None) -> None:
    machine = FakeMachine(tmp_path)
    machine.write("proc/cpuinfo", text)
    assert identify_cpu(tmp_path).family == family


def test_a_cpuinfo_without_processors_is_refused(tmp_path: Path) -> None:
    FakeMachine(tmp_path).write("proc/cpuinfo", "nothing")
    with pytest.raises(EnergyError, match="lists no processor"):
        identify_cpu(tmp_path)


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("proc/cpuinfo", GUEST, "the CPU flag 'hypervisor' is set"),
        ("sys/class/dmi/id/sys_vendor", "QEMU", "DMI sys_vendor is 'QEMU'"),
        ("sys/class/dmi/id/product_name", "Google Compute Engine", "DMI product_name is 'Google Compute Engine'"),
        ("sys/hypervisor/type", "xen", "/sys/hypervisor/type is 'xen'"),
        ("sys/class/dmi/id/sys_vendor", "Dell Inc.", None),
    ],
)
def test_a_hypervisor_is_looked_for(tmp_path: Path, path: str, text: str, found: str | None) -> None:
    machine = FakeMachine(tmp_path)
    assert find_hypervisor(tmp_path) is None
    machine.write(path, text)
    assert find_hypervisor(tmp_path) == found


@pytest.mark.parametrize(("product", "guest"), [("m7g.large", True), ("m7g.metal", False)])
def test_a_cloud_guest_is_told_from_a_bare_metal_host(tmp_path: Path, product: str, guest: bool) -> None:
    machine = FakeMachine(tmp_path)
    machine.write("sys/class/dmi/id/sys_vendor", "Amazon EC2")
    machine.write("sys/class/dmi/id/product_name", product)
    assert (find_hypervisor(tmp_path) is not None) is guest


def test_cpu_seconds_come_from_the_cgroup_and_else_from_the_machine_without_steal(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    machine.write("proc/stat", "cpu  100 20 30 9000 500 4 6 7777 50 0\ncpu0 1 2 3")
    whole = read_cpu_seconds(tmp_path)
    assert (whole.raw, whole.ticks_per_s, whole.source) == (160, 100, "/proc/stat")
    machine.write("proc/self/cgroup", "1:name=systemd:/\n0::/user/job")
    machine.write("sys/fs/cgroup/user/job/cpu.stat", "usage_usec 1234567\nuser_usec 1000000")
    own = read_cpu_seconds(tmp_path)
    assert (own.raw, own.ticks_per_s, own.source) == (1_234_567, 1_000_000, "cgroup v2 cpu.stat")
    machine.write("sys/fs/cgroup/user/job/cpu.stat", "usage_usec many")
    with pytest.raises(EnergyError, match=r"cpu\.stat: holds 'many', which is not a whole number"):
        read_cpu_seconds(tmp_path)


def test_three_readings_fit_a_line_and_its_residual_is_the_band() -> None:
    readings = [PlugReading(0, 40), PlugReading(1, 100), PlugReading(0.5, 85)]
    fitted = calibrate(readings, cpu=METAL)
    assert (fitted.idle_w, fitted.dynamic_w) == (pytest.approx(45), pytest.approx(60))
    assert fitted.band == pytest.approx(10 / 75)  # 85 W read where the line says 75 W
    on_a_line = calibrate([PlugReading(0, 40), PlugReading(1, 100), PlugReading(0.5, 70)], cpu=METAL)
    assert on_a_line.band == 0.02


def test_two_readings_fix_the_line_and_one_scales_the_published_one() -> None:
    two = calibrate([PlugReading(0, 40), PlugReading(1, 100)], cpu=METAL)
    assert (two.idle_w, two.dynamic_w, two.band) == (pytest.approx(40), pytest.approx(60), 0.15)
    one = calibrate([PlugReading(1.0, 38.0)], cpu=METAL)  # published: 2 x (0.42 + 1.48) = 3.8 W
    assert (one.idle_w, one.dynamic_w, one.band) == (pytest.approx(8.4), pytest.approx(29.6), 0.15)


def test_a_calibrated_estimate_is_its_line() -> None:
    line = calibrate([PlugReading(0, 40), PlugReading(1, 100)], cpu=METAL)
    estimate = estimate_calibrated(line, cpu_s=5.0, wall_s=10.0)
    assert estimate.est_energy_gross_j == pytest.approx(40 * 10 + 60 * 5 / 2)
    assert estimate.est_energy_gross_low_j == pytest.approx(550 * 0.85)
    assert estimate.est_energy_net_j == pytest.approx(150)
    assert (estimate.provenance, estimate.scopes) == (Provenance.MODEL_CALIBRATED, (Scope.NODE_WALL_AC,))
    assert str(estimate) == "~550 J (estimated, 470-630)"


@pytest.mark.parametrize(
    ("readings", "cpu", "text"),
    [
        ([], METAL, "0 plug readings given; calibration takes one, two or three"),
        ([PlugReading(0, 40)] * 2, METAL, "two plug readings are given for the same load"),
        ([PlugReading(50, 40)], METAL, "a load of 50 is not a share between 0"),
        ([PlugReading(0, -40)], METAL, "-40 W is not a positive power"),
        ([PlugReading(0, 100), PlugReading(1, 40)], METAL, "power must rise with load"),
        ([PlugReading(0, 40)], VM, "a guest cannot be calibrated with a plug"),
    ],
)
def test_readings_that_cannot_be_are_refused(readings: list[PlugReading], cpu: Cpu, text: str) -> None:
    with pytest.raises(EnergyError, match=text):
        calibrate(readings, cpu=cpu)


def test_a_calibration_is_saved_and_belongs_to_its_machine(tmp_path: Path) -> None:
    line = calibrate([PlugReading(0, 40), PlugReading(1, 100)], cpu=METAL)
    path = tmp_path / "calibration.json"
    save_calibration(line, path)
    assert load_calibration(path, cpu=METAL) == line
    with pytest.raises(EnergyError, match="was made on 2 x 'AMD EPYC 7763'; this machine has 8 x 'Other'"):
        load_calibration(path, cpu=Cpu("Other", None, 8, None))
    with pytest.raises(EnergyError, match="holds the watts of a whole machine, and this is a guest on one"):
        load_calibration(path, cpu=VM)
    path.write_text("{}")
    with pytest.raises(EnergyError, match=r"is no energy-calibration/1 file\n  -> compressor energy calibrate"):
        load_calibration(path, cpu=METAL)


def test_work_is_estimated_by_the_calibration_where_there_is_one() -> None:
    line = calibrate([PlugReading(0, 40), PlugReading(1, 100)], cpu=METAL)
    by_plug = estimate_with(line, cpu_s=2.0, wall_s=4.0)
    assert (by_plug.est_energy_gross_j, by_plug.provenance.value) == (pytest.approx(220.0), "model_calibrated")
    assert estimate_with(None, cpu_s=2.0, wall_s=4.0).provenance.value == "model_estimated"
