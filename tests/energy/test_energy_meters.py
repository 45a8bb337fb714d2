"""Every meter without its hardware: trees of files, a stand-in for NVML, plugs on the loopback."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fake_machine import GUEST, FakeMachine, log

from compressor.energy import InvalidEnergy, Meter, Provenance, Quantity, Scope, Source, Window, all_meters, counter
from compressor.energy.meters import ipmi, perf_power
from compressor.energy.meters.battery import BatteryMeter
from compressor.energy.meters.cpu_time import CpuTimeMeter
from compressor.energy.meters.http import get_json
from compressor.energy.meters.hwmon import HwmonMeter
from compressor.energy.meters.ipmi import IpmiMeter
from compressor.energy.meters.nvml import NvmlMeter
from compressor.energy.meters.perf_power import PerfPowerMeter
from compressor.energy.meters.prometheus import PrometheusMeter, Series
from compressor.energy.meters.rapl import RaplMeter
from compressor.energy.meters.redfish import RedfishMeter
from compressor.energy.meters.shelly import ShellyMeter
from compressor.energy.meters.tasmota import TasmotaMeter
from compressor.errors import EnergyError

STATUSES = {"ok", "absent", "permission", "frozen", "virtualised", "unsupported", "error"}


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    return FakeMachine(tmp_path)


def raws(meter: Meter) -> dict[str, int]:
    return {sample.domain: sample.raw for sample in meter.read()}


def test_every_meter_answers_on_a_bare_machine_and_only_cpu_time_is_there(machine: FakeMachine) -> None:
    meters = all_meters(machine.root)
    assert len({meter.name for meter in meters}) == len(meters) >= 11
    probes = {meter.name: meter.probe() for meter in meters}
    assert {probe.status for probe in probes.values()} <= STATUSES
    assert [name for name, probe in probes.items() if probe.status == "ok"] == ["spec_share"]
    assert all(probe.reason for probe in probes.values())


# RAPL


def test_rapl_counts_each_joule_once(machine: FakeMachine) -> None:
    machine.add_zone("intel-rapl:0", "package-0", 10)
    machine.add_zone("intel-rapl:0:0", "core", 20)
    machine.add_zone("intel-rapl:0:1", "uncore", 30)
    machine.add_zone("intel-rapl:0:2", "dram", 40)
    machine.add_zone("intel-rapl:1", "package-1", 50)
    machine.add_zone("intel-rapl:1:0", "dram", 60)
    machine.add_zone("intel-rapl:2", "psys", 70)
    machine.add_zone("intel-rapl-mmio:0", "package-0", 10)
    meter = RaplMeter(machine.root)
    assert raws(meter) == {
        "package-0": 10,
        "package-0-dram": 40,
        "package-1": 50,
        "package-1-dram": 60,
        "psys": 70,
    }
    domains = {domain.id: domain for domain in meter.domains()}
    assert domains["psys"].overlaps == ("package-0", "package-0-dram", "package-1", "package-1-dram")
    assert domains["package-0"].modulus == 262_143_328_851
    assert domains["package-0"].unit_j == 1e-6
    assert domains["package-0-dram"].scope is Scope.DRAM
    assert {domain.provenance for domain in domains.values()} == {Provenance.DEVICE_COUNTER}


def test_dies_that_mirror_one_socket_are_dropped(machine: FakeMachine) -> None:
    machine.add_zone("intel-rapl:0", "package-0-die-0", 5_000_000)
    machine.add_zone("intel-rapl:1", "package-0-die-1", 5_000_000)
    machine.add_zone("intel-rapl:1:0", "dram", 1)
    machine.add_zone("intel-rapl:2", "package-1-die-0", 5_000_000)
    assert list(raws(RaplMeter(machine.root))) == ["package-0-die-0", "package-1-die-0"]


def test_dies_with_counters_of_their_own_are_kept(machine: FakeMachine) -> None:
    machine.add_zone("intel-rapl:0", "package-0-die-0", 5_000_000)
    machine.add_zone("intel-rapl:1", "package-0-die-1", 4_000_000)
    assert list(raws(RaplMeter(machine.root))) == ["package-0-die-0", "package-0-die-1"]


def test_rapl_is_ok_only_where_it_moves(machine: FakeMachine) -> None:
    machine.add_zone("intel-rapl:0", "package-0")
    with machine.running("intel-rapl:0", 50.0):
        assert RaplMeter(machine.root).probe().status == "ok"
    probe = RaplMeter(machine.root).probe()
    assert (probe.status, probe.reason) == ("frozen", "package-0 does not move")


def test_rapl_under_a_hypervisor_is_at_best_attributed(machine: FakeMachine) -> None:
    machine.add_zone("intel-rapl:0", "package-0", 0)
    machine.write("proc/cpuinfo", GUEST)
    meter = RaplMeter(machine.root)
    probe = meter.probe()
    assert probe.status == "virtualised"
    assert "the CPU flag 'hypervisor' is set; the counter does not move either" in probe.reason
    assert [domain.provenance for domain in meter.domains()] == [Provenance.ATTRIBUTED]


def test_rapl_refused_names_the_command_that_grants_it(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    file = machine.add_zone("intel-rapl:0", "package-0")
    file.chmod(0)
    if os.access(file, os.R_OK):  # root may read anything, so refuse in its place
        allow = Path.open

        def refuse(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
            if self.name == "energy_uj":
                raise PermissionError(13, "Permission denied", str(self))
            return allow(self, mode, *args, **options)

        monkeypatch.setattr(Path, "open", refuse)
    probe = RaplMeter(machine.root).probe()
    assert probe.status == "permission"
    assert probe.reason.endswith("energy_uj is for root only")
    assert "cap" in (probe.remedy or "") and "chmod" not in (probe.remedy or "")


def test_garbage_and_absence_are_named(machine: FakeMachine) -> None:
    assert RaplMeter(machine.root).probe().status == "absent"
    with pytest.raises(EnergyError, match="no RAPL zone"):
        RaplMeter(machine.root).read()
    machine.add_zone("intel-rapl:0", "package-0")
    machine.write("sys/class/powercap/intel-rapl:0/energy_uj", "12 apples")
    probe = RaplMeter(machine.root).probe()
    assert probe.status == "error"
    assert "energy_uj: holds '12 apples', which is not a whole number" in probe.reason


# perf


def perf_tree(machine: FakeMachine) -> None:
    pmu = "sys/bus/event_source/devices/power"
    machine.write(f"{pmu}/type", 23)
    machine.write(f"{pmu}/cpumask", "0,16")
    for number, event in enumerate(("energy-cores", "energy-pkg", "energy-ram", "energy-gpu", "energy-psys"), 1):
        machine.write(f"{pmu}/events/{event}", f"event=0x0{number}")
        machine.write(f"{pmu}/events/{event}.scale", "2.3283064365386962890625e-10")


def test_perf_opens_each_event_once_a_socket(machine: FakeMachine) -> None:
    perf_tree(machine)
    opened: list[tuple[int, int, int]] = []

    def opener(pmu_type: int, config: int, cpu: int) -> Callable[[], int]:
        opened.append((pmu_type, config, cpu))
        return lambda: 2**32 * 7

    meter = PerfPowerMeter(machine.root, opener)
    assert meter.probe().status == "ok"
    assert list(raws(meter)) == [
        "energy-pkg:cpu0",
        "energy-pkg:cpu16",
        "energy-ram:cpu0",
        "energy-ram:cpu16",
        "energy-psys:cpu0",
    ]
    assert opened == [(23, 2, 0), (23, 2, 16), (23, 3, 0), (23, 3, 16), (23, 5, 0)]
    domains = {domain.id: domain for domain in meter.domains()}
    assert domains["energy-pkg:cpu0"].unit == Fraction(1, 2**32)
    assert domains["energy-pkg:cpu0"].modulus is None
    assert len(domains["energy-psys:cpu0"].overlaps) == 4


def test_perf_refused_and_absent(machine: FakeMachine) -> None:
    assert PerfPowerMeter(machine.root).probe().status == "absent"
    perf_tree(machine)

    def refuse(pmu_type: int, config: int, cpu: int) -> Callable[[], int]:
        raise perf_power.RefusedError("perf_event_open is refused for system-wide events: Permission denied")

    probe = PerfPowerMeter(machine.root, refuse).probe()
    assert (probe.status, probe.remedy) == ("permission", "sudo sysctl kernel.perf_event_paranoid=-1")
    machine.write("sys/bus/event_source/devices/power/events/energy-pkg", "umask=1")
    assert "not an event number" in PerfPowerMeter(machine.root, refuse).probe().reason


def test_the_kernel_refuses_a_pmu_that_it_does_not_have() -> None:
    with pytest.raises(EnergyError, match="perf_event_open"):
        perf_power.open_counter(2**31 - 1, 0, 0)


# NVML


class FakeNvml:
    """The part of pynvml that the meter uses, over GPUs given as dictionaries."""

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):
        pass

    def __init__(self, *gpus: dict[str, Any], driver: bool = True) -> None:
        self.gpus, self.driver = list(gpus), driver

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        return self.gpus[index]

    def nvmlDeviceGetUUID(self, gpu: dict[str, Any]) -> str:
        return str(gpu["uuid"])

    def nvmlDeviceGetMigMode(self, gpu: dict[str, Any]) -> list[int]:
        if "mig" not in gpu:
            raise self.NVMLError_NotSupported("Not Supported")
        return [gpu["mig"], gpu["mig"]]

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: dict[str, Any]) -> int:
        if gpu.get("lost"):
            raise self.NVMLError("GPU is lost")
        if "energy_mj" not in gpu:
            raise self.NVMLError_NotSupported("Not Supported")
        return int(gpu["energy_mj"])

    def nvmlDeviceGetPowerUsage(self, gpu: dict[str, Any]) -> int:
        if gpu.get("lost"):
            raise self.NVMLError("GPU is lost")
        return int(gpu["power_mw"])


def test_nvml_reads_the_counter_and_checks_it_with_the_sensor() -> None:
    meter = NvmlMeter(FakeNvml({"uuid": "GPU-a", "energy_mj": 7, "power_mw": 90_000, "mig": 0}))
    assert meter.probe().status == "ok"
    assert raws(meter) == {"GPU-a": 7, "GPU-a:power": 90_000}
    counter, sensor = meter.domains()
    assert (counter.provenance, counter.checks) == (Provenance.DEVICE_COUNTER, None)
    assert (sensor.provenance, sensor.checks) == (Provenance.DEVICE_POWER_INTEGRATED, "GPU-a")


def test_nvml_without_a_counter_integrates_power() -> None:
    (sensor,) = NvmlMeter(FakeNvml({"uuid": "GPU-a", "power_mw": 90_000})).domains()
    assert (sensor.quantity, sensor.checks) == (Quantity.POWER, None)


def test_two_gpus_that_change_places_keep_their_names() -> None:
    a, b = {"uuid": "GPU-a", "energy_mj": 7, "power_mw": 1}, {"uuid": "GPU-b", "energy_mj": 9, "power_mw": 2}
    nvml = FakeNvml(a, b)
    meter = NvmlMeter(nvml)
    before = raws(meter)
    nvml.gpus.reverse()
    assert raws(meter) == before == raws(NvmlMeter(nvml))
    assert [domain.id for domain in meter.domains()] == [domain.id for domain in NvmlMeter(nvml).domains()]


def test_a_lost_gpu_is_named() -> None:
    gpu = {"uuid": "GPU-a", "energy_mj": 7, "power_mw": 1}
    meter = NvmlMeter(FakeNvml(gpu))
    assert meter.probe().status == "ok"
    gpu["lost"] = True
    with pytest.raises(EnergyError, match="GPU GPU-a cannot be read: GPU is lost"):
        meter.read()


def test_a_gpu_split_by_mig_is_refused() -> None:
    probe = NvmlMeter(FakeNvml({"uuid": "GPU-a", "energy_mj": 7, "power_mw": 1, "mig": 1})).probe()
    assert probe.status == "unsupported"
    assert "its counter covers all instances" in probe.reason
    assert probe.remedy == "sudo nvidia-smi -i GPU-a -mig 0"


def test_without_a_driver_or_gpu_there_is_no_number() -> None:
    assert NvmlMeter(FakeNvml(driver=False)).probe().status == "absent"
    assert NvmlMeter(FakeNvml()).probe().reason == "NVML finds no GPU"
    with pytest.raises(EnergyError, match="NVML cannot be used: no NVIDIA driver answers: Driver Not Loaded"):
        NvmlMeter(FakeNvml(driver=False)).domains()


# hwmon and battery


def test_hwmon_reads_only_what_it_can_name(machine: FakeMachine) -> None:
    base = "sys/class/hwmon"
    machine.write(f"{base}/hwmon0/name", "power_meter")
    machine.write(f"{base}/hwmon0/power1_average", 210_000_000)
    machine.write(f"{base}/hwmon1/name", "amd_energy")
    machine.write(f"{base}/hwmon1/energy1_input", 5)
    machine.write(f"{base}/hwmon1/energy1_label", "Ecore000")
    machine.write(f"{base}/hwmon1/energy9_input", 77)
    machine.write(f"{base}/hwmon1/energy9_label", "Esocket0")
    machine.write(f"{base}/hwmon2/name", "ina3221")
    machine.write(f"{base}/hwmon2/power1_input", 5)
    machine.write(f"{base}/hwmon3/name", "amdgpu")
    machine.write(f"{base}/hwmon3/power1_cap", 300_000_000)
    machine.write(f"{base}/hwmon3/power1_average", 30_000_000)
    machine.write(f"{base}/hwmon3/power1_input", 31_000_000)
    meter = HwmonMeter(machine.root)
    assert meter.probe().status == "ok"
    assert raws(meter) == {
        "hwmon0:power_meter:power1": 210_000_000,
        "hwmon1:amd_energy:energy9": 77,
        "hwmon3:amdgpu:power1": 30_000_000,
    }
    scopes = [domain.scope for domain in meter.domains()]
    assert scopes == [Scope.NODE_WALL_AC, Scope.CPU_PACKAGE, Scope.GPU_BOARD]


def test_hwmon_sensors_of_unknown_scope_are_listed_and_left_alone(machine: FakeMachine) -> None:
    assert HwmonMeter(machine.root).probe().status == "absent"
    machine.write("sys/class/hwmon/hwmon2/name", "ina3221")
    machine.write("sys/class/hwmon/hwmon2/power1_input", 5)
    probe = HwmonMeter(machine.root).probe()
    assert (probe.status, probe.reason) == ("unsupported", "power sensors of unknown scope: ina3221")
    machine.write("sys/class/hwmon/hwmon0/name", "fam15h_power")
    machine.write("sys/class/hwmon/hwmon0/power1_input", 5)
    assert HwmonMeter(machine.root).domains()[0].provenance is Provenance.DEVICE_MODELLED


def test_an_integrated_gpu_shows_the_chip_and_is_not_taken_for_a_board(machine: FakeMachine) -> None:
    machine.write("sys/class/hwmon/hwmon0/name", "amdgpu")
    machine.write("sys/class/hwmon/hwmon0/power1_average", 15_000_000)
    assert HwmonMeter(machine.root).probe().reason == "power sensors of unknown scope: amdgpu"


def battery_tree(machine: FakeMachine, status: str = "Discharging") -> str:
    base = "sys/class/power_supply/BAT0"
    machine.write(f"{base}/type", "Battery")
    machine.write(f"{base}/status", status)
    machine.write(f"{base}/current_now", 1_500_000)
    machine.write(f"{base}/voltage_now", 12_000_000)
    machine.write("sys/class/power_supply/hid-mouse/type", "Battery")
    machine.write("sys/class/power_supply/hid-mouse/scope", "Device")
    machine.write("sys/class/power_supply/AC/type", "Mains")
    return base


def test_a_battery_gives_power_from_current_and_voltage_or_directly(machine: FakeMachine) -> None:
    base = battery_tree(machine)
    meter = BatteryMeter(machine.root)
    assert meter.probe().status == "ok"
    (domain,) = meter.domains()
    assert raws(meter)["BAT0"] * domain.unit == 18  # W
    machine.write(f"{base}/power_now", 17_000_000)
    assert raws(meter)["BAT0"] * meter.domains()[0].unit == 17


def test_a_charging_battery_is_refused_before_and_in_mid_window(machine: FakeMachine) -> None:
    assert BatteryMeter(machine.root).probe().status == "absent"
    base = battery_tree(machine, "Charging")
    probe = BatteryMeter(machine.root).probe()
    assert (probe.status, probe.remedy) == ("unsupported", "unplug the charger")
    machine.write(f"{base}/status", "Full")
    with pytest.raises(EnergyError, match="BAT0 stopped discharging: the charger was plugged in"):
        BatteryMeter(machine.root).read()


# Management controllers and plugs

DCMI = "\n    Instantaneous power reading:                   212 Watts\n    Minimum during sampling period:  34 Watts\n"


def test_ipmi_reads_the_instantaneous_power(machine: FakeMachine) -> None:
    assert IpmiMeter(machine.root, lambda: DCMI).probe().status == "absent"
    machine.write("dev/ipmi0", "")
    meter = IpmiMeter(machine.root, lambda: DCMI)
    assert meter.probe().reason == "node power, 212 W now"
    assert raws(meter) == {"dcmi": 212}
    assert meter.domains()[0].scope is Scope.NODE_WALL_AC
    with pytest.raises(EnergyError, match="ipmitool gave no power: 'DCMI request failed'"):
        IpmiMeter(machine.root, lambda: "DCMI request failed").read()

    def refuse() -> str:
        raise EnergyError("ipmitool failed: Could not open device at /dev/ipmi0: Permission denied")

    assert IpmiMeter(machine.root, refuse).probe().status == "permission"


def test_a_missing_ipmitool_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EnergyError, match="ipmitool is not installed\n  -> sudo apt-get install ipmitool"):
        ipmi.run_ipmitool()


@contextmanager
def device(answers: dict[str, Any], *, status: int = 200, delay_s: float = 0.0) -> Iterator[str]:
    """A device on the loopback: path and query -> JSON, or raw bytes; changes to ``answers`` show at once."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(delay_s)
            answer = answers.get(self.path)
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(404 if answer is None else status)
            self.end_headers()
            with suppress(ConnectionError):  # the client may have lost patience
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


SHELLY = "/rpc/Switch.GetStatus?id=0"
TASMOTA = "/cm?cmnd=Status%208"
REDFISH = "/redfish/v1/Chassis/1/Power"


def test_a_shelly_plug_measures_at_the_wall() -> None:
    with device({SHELLY: {"id": 0, "output": True, "apower": 41.7, "aenergy": {"total": 123.456}}}) as address:
        meter = ShellyMeter(address)
        assert meter.probe().reason == "41.7 W at the wall"
        assert raws(meter) == {"plug": 41_700}
        (domain,) = meter.domains()
        assert (domain.provenance, domain.scope) == (Provenance.WALL_METERED, Scope.NODE_WALL_AC)
        assert domain.unit * 41_700 == Fraction(417, 10)


def test_a_tasmota_plug_measures_at_the_wall() -> None:
    with device({TASMOTA: {"StatusSNS": {"ENERGY": {"Total": 0.001, "Power": 42}}}}) as address:
        meter = TasmotaMeter(address)
        assert raws(meter)["plug"] * meter.domains()[0].unit == 42


def test_a_shelly_counter_runs_in_milliwatt_hours_and_over_its_end() -> None:
    answers: dict[str, Any] = {SHELLY: {"apower": 41.7, "aenergy": {"total": 999.999}}}
    with device(answers) as address:
        meter = ShellyMeter(address, counter=True, rolls_over_at_wh=1000)
        assert meter.probe().status == "ok"
        (domain,) = meter.domains()
        first = raws(meter)["plug"]
        answers[SHELLY] = {"apower": 41.7, "aenergy": {"total": 0.499}}
        second = raws(meter)["plug"]
    assert (first, second, domain.modulus) == (999_999, 499, 1_000_000)
    assert counter.total(log(domain, (0, first), (1, second))) == Fraction("0.5") * 3600


def test_a_tasmota_total_that_fell_is_invalid_unless_its_end_is_known() -> None:
    answers: dict[str, Any] = {TASMOTA: {"StatusSNS": {"ENERGY": {"Total": 99999.999, "Power": 42}}}}
    with device(answers) as address:
        meter = TasmotaMeter(address, counter=True)
        (domain,) = meter.domains()
        first = raws(meter)["plug"]
        answers[TASMOTA]["StatusSNS"]["ENERGY"]["Total"] = 0.002
        second = raws(meter)["plug"]
        (known,) = TasmotaMeter(address, counter=True, rolls_over_at_wh=100_000_000).domains()
    with pytest.raises(EnergyError, match="plug: the counter went backwards, from 99999999 to 2"):
        counter.total(log(domain, (0, first), (600, second)))
    assert counter.total(log(known, (0, first), (600, second))) == 3 * 3600


def test_a_redfish_controller_gives_the_node() -> None:
    with device({REDFISH: {"PowerControl": [{"PowerConsumedWatts": 344}]}}) as address:
        assert RedfishMeter(address).probe().reason == "node power, 344 W now"
    with device({REDFISH: {}}, status=401) as address:
        probe = RedfishMeter(address).probe()
        assert probe.status == "permission"
        assert "login" in (probe.remedy or "")


def test_a_prometheus_series_is_what_its_owner_says() -> None:
    series = Series("pdu_watts", Quantity.POWER, Scope.NODE_WALL_AC, Provenance.WALL_METERED, period_s=5.0)
    path = "/api/v1/query?query=pdu_watts"
    answers: dict[str, Any] = {path: {"data": {"result": [{"value": [1.5, "212.25"]}]}}}
    with device(answers) as address:
        meter = PrometheusMeter(address, series)
        assert meter.probe().status == "ok"
        assert raws(meter)["pdu_watts"] * meter.domains()[0].unit == Fraction("212.25")
        answers[path] = {"data": {"result": []}}
        with pytest.raises(EnergyError, match="the query yields 0 series; it must yield one"):
            meter.read()
        answers[path] = {"data": {"result": [{"value": [1.5, "NaN"]}]}}
        with pytest.raises(EnergyError, match="the query yields NaN"):
            meter.read()


def test_a_stalled_plug_is_named_and_does_not_hold_the_window_up() -> None:
    with (
        device({SHELLY: {"apower": 1.0}}, delay_s=0.5) as address,
        pytest.raises(EnergyError, match="does not answer: timed out"),
    ):
        get_json(address + SHELLY, timeout_s=0.1)


def test_a_plug_that_stalls_for_five_seconds_in_mid_window_is_named_and_the_work_goes_on() -> None:
    """As long as it was asked to: the meter's own patience, a real server, and a window around work that is done."""

    class Stalling(dict[str, Any]):
        stalls_s = 0.0

        def get(self, path: str, default: Any = None) -> Any:
            time.sleep(self.stalls_s)
            return super().get(path, default)

    answers = Stalling({SHELLY: {"apower": 40.0}})
    done = []
    with device(answers) as address:
        meter = ShellyMeter(address)
        window = Window([Source(meter, meter.domains())])
        with window:
            answers.stalls_s = 5.0
            done.append("work")
    assert done == ["work"]
    assert isinstance(window.result, InvalidEnergy)
    assert "does not answer: timed out" in window.result.reason


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"<html>", "did not answer with JSON: b'<html>'"),
        ({"output": True}, "the answer has no apower"),
        ({"apower": "much"}, "apower is 'much', not a number"),
        ({"apower": True}, "apower is True, not a number"),
        ({"apower": 1.00001}, "finer than 1/1000"),
        (None, "answered 404"),
    ],
)
def test_an_answer_that_is_no_power_is_named(answer: object, text: str) -> None:
    with device({SHELLY: answer}) as address, pytest.raises(EnergyError, match=text):
        ShellyMeter(address).read()


def test_a_plug_that_is_gone_or_off_is_named() -> None:
    with device({SHELLY: {"apower": 0.0}}) as address:
        assert ShellyMeter(address).probe().status == "frozen"
    probe = ShellyMeter(address).probe()
    assert probe.status == "error"
    assert "does not answer" in probe.reason


@pytest.mark.parametrize("meter", [ShellyMeter(), TasmotaMeter(), RedfishMeter(), PrometheusMeter()])
def test_a_network_meter_without_an_address_is_absent(meter: Meter) -> None:
    assert meter.probe().status == "absent"
    with pytest.raises(EnergyError, match="is configured"):
        meter.read()


# CPU time


def test_the_process_clock_counts_this_process_alone(machine: FakeMachine) -> None:
    meter = CpuTimeMeter(machine.root, of_process=True)
    (domain,) = meter.domains()
    before = raws(meter)["cpu_time"]
    while time.process_time_ns() < before + 5_000_000:
        pass
    assert (raws(meter)["cpu_time"] - before) * domain.unit >= Fraction(5, 1000)
    assert meter.probe().reason.startswith("estimate only, from the process CPU clock: AMD EPYC 7003")


def test_an_unreadable_cpu_clock_is_absent(tmp_path: Path) -> None:
    assert CpuTimeMeter(tmp_path).probe().status == "absent"
