"""Zeus and CodeCarbon as meters: their totals, our labels, and never a number that nobody stands for."""

from __future__ import annotations

import queue
from types import SimpleNamespace
from typing import Any

import pytest

from compressor.energy import EstimatedEnergy, Provenance, Quantity, Scope, all_meters, measure, to_json
from compressor.energy import counter as counter_module
from compressor.energy.meters import codecarbon as codecarbon_module
from compressor.energy.meters import zeus as zeus_module
from compressor.energy.meters.codecarbon import CodeCarbonMeter
from compressor.energy.meters.zeus import Library, ZeusMeter
from compressor.errors import EnergyError, ProvenanceError


class FakeZeusError(Exception):
    pass


def refuse() -> Any:
    raise FakeZeusError("none here")


class AMDGPU:
    def __init__(self, uuid: str, *, energy_mj: int | None, power_mw: int = 0) -> None:
        self.uuid, self.energy_mj, self.power_mw = uuid, energy_mj, power_mw
        self.lost = False

    def supports_get_total_energy_consumption(self) -> bool:
        return self.energy_mj is not None

    def get_total_energy_consumption(self) -> int:
        if self.lost:
            raise FakeZeusError("GPU is lost")
        assert self.energy_mj is not None
        return self.energy_mj

    def get_instant_power_usage(self) -> int:
        return self.power_mw


class AMDGPUs:
    def __init__(self, *gpus: AMDGPU) -> None:
        self.gpus = gpus


class NVIDIAGPUs(AMDGPUs):
    pass


class AppleSilicon:
    def __init__(self, **parts: int | None) -> None:
        self.parts = dict.fromkeys(("cpu_total_mj", "gpu_mj", "gpu_sram_mj", "dram_mj", "ane_mj")) | parts

    def get_total_energy_consumption(self) -> SimpleNamespace:
        return SimpleNamespace(**self.parts)


class Jetson:
    def __init__(self, total_mj: float | None) -> None:
        self.total_mj = total_mj

    def get_total_energy_consumption(self) -> SimpleNamespace:
        return SimpleNamespace(total_energy_mj=self.total_mj)


def zeus(gpus: Any = None, soc: Any = None) -> ZeusMeter:
    return ZeusMeter(
        Library(
            get_gpus=refuse if gpus is None else lambda: gpus,
            get_soc=refuse if soc is None else lambda: soc,
            gpu_uuid=lambda gpu: str(gpu.uuid),
            error=FakeZeusError,
        )
    )


def test_a_missing_package_is_absent_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (zeus_module, codecarbon_module):
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    for meter, command in ((ZeusMeter(), "pip install zeus"), (CodeCarbonMeter(), "pip install codecarbon")):
        assert (meter.probe().status, meter.probe().remedy) == ("absent", command)
    with pytest.raises(EnergyError, match="Zeus cannot be used: the package zeus is not installed"):
        ZeusMeter().domains()


def test_both_are_among_all_meters() -> None:
    assert {"zeus", "codecarbon"} <= {meter.name for meter in all_meters()}


def test_amd_gpus_are_named_by_uuid_and_read_by_counter_or_power() -> None:
    meter = zeus(AMDGPUs(AMDGPU("GPU-b", energy_mj=7_000), AMDGPU("GPU-a", energy_mj=None, power_mw=300_000)))
    assert meter.probe().reason == "GPU-a (device_power_integrated), GPU-b (device_counter)"
    power, energy = meter.domains()
    assert (power.id, power.quantity, power.scope) == ("GPU-a", Quantity.POWER, Scope.GPU_BOARD)
    assert (energy.id, energy.quantity, energy.provenance) == ("GPU-b", Quantity.ENERGY, Provenance.DEVICE_COUNTER)
    assert [sample.raw for sample in meter.read()] == [300_000, 7_000]


def test_nvidia_gpus_are_left_to_our_own_meter() -> None:
    meter = zeus(NVIDIAGPUs(AMDGPU("GPU-a", energy_mj=7)))
    assert meter.probe().reason == "Zeus finds no AMD GPU, Apple chip or Jetson module"


def test_a_lost_amd_gpu_is_named() -> None:
    gpu = AMDGPU("GPU-a", energy_mj=7)
    meter = zeus(AMDGPUs(gpu))
    assert meter.probe().status == "ok"
    gpu.lost = True
    with pytest.raises(EnergyError, match="GPU-a cannot be read: GPU is lost"):
        meter.read()


def test_an_apple_chip_is_modelled_so_it_gives_a_log_and_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    soc = AppleSilicon(cpu_total_mj=5_000, gpu_mj=1_000, dram_mj=500)
    meter = zeus(soc=soc)
    assert [sample.raw for sample in meter.read()] == [6_500]
    monkeypatch.setattr(counter_module, "WINDOW_PERIODS", 0)
    with measure([meter]) as window:
        soc.parts["cpu_total_mj"] = 5_010
    assert isinstance(window.result, EstimatedEnergy)
    assert window.result.est_energy_gross_j is None
    assert window.result.reason == "Zeus is device_modelled here, and no band is known for it"
    with pytest.raises(ProvenanceError):
        measure([meter], require="measured")


def test_a_jetson_is_integrated_power_and_needs_a_total_rail() -> None:
    meter = zeus(soc=Jetson(1234.9))
    assert [sample.raw for sample in meter.read()] == [1234]
    assert meter.domains()[0].provenance is Provenance.DEVICE_POWER_INTEGRATED
    probe = zeus(soc=Jetson(None)).probe()
    assert (probe.status, probe.reason) == (
        "unsupported",
        "this Jetson shows no total power rail, and its parts do not add up to one",
    )


def test_a_jetson_whose_polling_process_died_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    soc = Jetson(1.0)
    meter = zeus(soc=soc)
    assert meter.probe().status == "ok"

    def stall() -> SimpleNamespace:
        raise queue.Empty

    monkeypatch.setattr(soc, "get_total_energy_consumption", stall)
    with pytest.raises(EnergyError, match="jetson-module cannot be read: Zeus's polling process does not answer"):
        meter.read()


class Tracker:
    """The part of a CodeCarbon tracker that is used; each flush adds 3.6 J."""

    def __init__(self) -> None:
        self.n_started = 0
        self._total_energy = SimpleNamespace(kWh=0.0)

    def start(self) -> None:
        self.n_started += 1

    def flush(self) -> None:
        self._total_energy.kWh += 1e-6


def test_codecarbon_gives_a_log_and_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter_module, "WINDOW_PERIODS", 0)
    tracker = Tracker()
    with measure([CodeCarbonMeter(lambda: tracker)]) as window:
        pass
    result = window.result
    assert tracker.n_started == 1
    assert isinstance(result, EstimatedEnergy)
    assert result.provenance is Provenance.MODEL_ESTIMATED
    assert result.est_energy_gross_j is None
    assert result.reason == "CodeCarbon is model_estimated here, and no band is known for it"
    (log,) = to_json(result)["windows"][0]["logs"]
    assert [raw for _, raw in log["samples"]] == [3600, 7200]


def test_codecarbon_is_never_chosen_as_measured_and_never_by_default() -> None:
    meter = CodeCarbonMeter(Tracker)
    with pytest.raises(ProvenanceError, match="codecarbon: ok"):
        measure([meter], require="measured")


def test_a_codecarbon_without_a_running_total_is_named() -> None:
    meter = CodeCarbonMeter(lambda: SimpleNamespace(start=lambda: None, flush=lambda: None))
    with pytest.raises(EnergyError, match="keeps no running total"):
        meter.read()
