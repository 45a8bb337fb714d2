"""Energy: measured where it can be, estimated where it cannot, and never one passed off as the other.

    with compressor.energy.measure() as window:
        ...
    print(window.result)        # 1.93 J +-0.04 (RAPL package)   or   ~1.9 J (estimated, 1.3-4.3)

The package imports no torch and can be used alone.
"""

from compressor.energy.calibration import (
    Calibration,
    PlugReading,
    calibrate,
    estimate_calibrated,
    estimate_with,
    load_calibration,
    save_calibration,
)
from compressor.energy.counter import minimum_window_s
from compressor.energy.domain import CounterWindow, Domain, DomainLog, Probe, Provenance, Quantity, Sample, Scope
from compressor.energy.facility import Assumed, Cooling, GridIntensity, HeatPump, Pue, carbon, facility_energy
from compressor.energy.figures import (
    EstimatedFigure,
    Figure,
    MeasuredFigure,
    Work,
    energy_figures,
    padding_ratio,
    per_unit,
    units_per_joule,
)
from compressor.energy.host import Cpu, find_hypervisor, identify_cpu
from compressor.energy.meter import Meter
from compressor.energy.meters import all_meters
from compressor.energy.meters.replay import ReplayMeter
from compressor.energy.payback import BreakEven, Interval, break_even
from compressor.energy.record import from_json, to_json, verify, verify_file
from compressor.energy.spec_share import estimate_energy
from compressor.energy.types import (
    Energy,
    EnergyResult,
    EstimatedEnergy,
    InvalidEnergy,
    MeasuredEnergy,
    measured_from,
    sum_energy,
    with_idle,
)
from compressor.energy.window import Source, Window, choose_sources, measure

__all__ = [
    "Assumed",
    "BreakEven",
    "Calibration",
    "Cooling",
    "CounterWindow",
    "Cpu",
    "Domain",
    "DomainLog",
    "Energy",
    "EnergyResult",
    "EstimatedEnergy",
    "EstimatedFigure",
    "Figure",
    "GridIntensity",
    "HeatPump",
    "Interval",
    "InvalidEnergy",
    "MeasuredEnergy",
    "MeasuredFigure",
    "Meter",
    "PlugReading",
    "Probe",
    "Provenance",
    "Pue",
    "Quantity",
    "ReplayMeter",
    "Sample",
    "Scope",
    "Source",
    "Window",
    "Work",
    "all_meters",
    "break_even",
    "calibrate",
    "carbon",
    "choose_sources",
    "energy_figures",
    "estimate_calibrated",
    "estimate_energy",
    "estimate_with",
    "facility_energy",
    "find_hypervisor",
    "from_json",
    "identify_cpu",
    "load_calibration",
    "measure",
    "measured_from",
    "minimum_window_s",
    "padding_ratio",
    "per_unit",
    "save_calibration",
    "sum_energy",
    "to_json",
    "units_per_joule",
    "verify",
    "verify_file",
    "with_idle",
]
