"""One meter per file. `all_meters` is the list that ``compressor meters`` prints."""

from __future__ import annotations

from pathlib import Path

from compressor.energy.calibration import Calibration
from compressor.energy.host import ROOT
from compressor.energy.meter import Meter
from compressor.energy.meters.battery import BatteryMeter
from compressor.energy.meters.codecarbon import CodeCarbonMeter
from compressor.energy.meters.cpu_time import CpuTimeMeter
from compressor.energy.meters.hwmon import HwmonMeter
from compressor.energy.meters.ipmi import IpmiMeter
from compressor.energy.meters.nvml import NvmlMeter
from compressor.energy.meters.perf_power import PerfPowerMeter
from compressor.energy.meters.prometheus import PrometheusMeter
from compressor.energy.meters.rapl import RaplMeter
from compressor.energy.meters.redfish import RedfishMeter
from compressor.energy.meters.shelly import ShellyMeter
from compressor.energy.meters.tasmota import TasmotaMeter
from compressor.energy.meters.zeus import ZeusMeter


def all_meters(root: Path = ROOT, calibration: Calibration | None = None) -> tuple[Meter, ...]:
    """Every meter this toolkit knows, in the order of choice, whether or not this machine has it.

    A device's own counters come before whole-node sensors, which see everything else that the machine does; a plug
    or a controller on the network is read only when it is passed to `measure` by address.
    """
    return (
        RaplMeter(root),
        PerfPowerMeter(root),
        NvmlMeter(),
        ZeusMeter(),
        HwmonMeter(root),
        BatteryMeter(root),
        IpmiMeter(root),
        RedfishMeter(),
        ShellyMeter(),
        TasmotaMeter(),
        PrometheusMeter(),
        CodeCarbonMeter(),
        CpuTimeMeter(root, calibration=calibration),
    )
