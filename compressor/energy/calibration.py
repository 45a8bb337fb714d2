"""Watts of this machine, from one, two or three readings of a plug meter.

The model is a line, watts = idle_w + dynamic_w x load. Two readings fix it, three fit it and show by their residual
how far from a line the machine is; one reading only scales the published line of the CPU's family. The band is
15 % either way until a third reading says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from compressor.energy.domain import Provenance, Scope
from compressor.energy.host import Cpu
from compressor.energy.spec_share import estimate_energy, thread_power
from compressor.energy.types import EstimatedEnergy
from compressor.errors import EnergyError

SCHEMA = "energy-calibration/1"
METHOD = "calibrated_spec/1"
DEFAULT_BAND = 0.15
# A household plug meter is good to one or two per cent; no residual makes the band smaller than that.
PLUG_ACCURACY = 0.02


@dataclass(frozen=True)
class PlugReading:
    """Watts at the wall while the CPU was kept at one load.

    Attributes:
        load: share of all hardware threads kept busy, 0 to 1.
        power_w: the plug's reading.
    """

    load: float
    power_w: float


@dataclass(frozen=True)
class Calibration:
    """The fitted line and its band.

    Attributes:
        idle_w: wall watts of the machine at idle.
        dynamic_w: wall watts between idle and full load.
        band: relative half-width.
        n_vcpu: processors the machine had.
        n_readings: one, two or three.
        cpu: the processor's name, so that a saved file is not used on another machine.
    """

    idle_w: float
    dynamic_w: float
    band: float
    n_vcpu: int
    n_readings: int
    cpu: str


def calibrate(readings: Sequence[PlugReading], *, cpu: Cpu) -> Calibration:
    """Fit the machine's watts.

    Args:
        readings: one, two or three, at different loads (idle, full and half are the ones to take).
        cpu: the processor of the machine that was plugged in.

    Raises:
        EnergyError: no or too many readings, equal loads, a load outside 0..1, watts that do not rise with load, or a
            guest, whose plug nobody can read.
    """
    _check(readings, cpu)
    if len(readings) == 1:
        power = thread_power(cpu.family)
        idle_w, dynamic_w = cpu.n_vcpu * power.idle_w[1], cpu.n_vcpu * power.dynamic_w[1]
        scale = readings[0].power_w / (idle_w + dynamic_w * readings[0].load)
        return Calibration(scale * idle_w, scale * dynamic_w, DEFAULT_BAND, cpu.n_vcpu, 1, cpu.name)
    mean_load = sum(r.load for r in readings) / len(readings)
    mean_w = sum(r.power_w for r in readings) / len(readings)
    spread = sum((r.load - mean_load) ** 2 for r in readings)
    dynamic_w = sum((r.load - mean_load) * (r.power_w - mean_w) for r in readings) / spread
    idle_w = mean_w - dynamic_w * mean_load
    if dynamic_w <= 0 or idle_w <= 0:
        raise EnergyError(
            f"the readings give {idle_w:.3g} W at idle and {dynamic_w:.3g} W more at full load; power must rise with "
            "load from an idle above zero",
            hint="check that each reading was taken at the load it is given for",
        )
    band = DEFAULT_BAND
    if len(readings) == 3:
        band = max(PLUG_ACCURACY, *(abs(r.power_w / (idle_w + dynamic_w * r.load) - 1.0) for r in readings))
    return Calibration(idle_w, dynamic_w, band, cpu.n_vcpu, len(readings), cpu.name)


def estimate_calibrated(calibration: Calibration, *, cpu_s: float, wall_s: float) -> EstimatedEnergy:
    """Energy of a window on the calibrated machine: the whole machine at the wall.

    The band of the net figure is as wide in joules as that of the gross one: taking idle away removes no error.

    Raises:
        EnergyError: no length, or impossible CPU time.
    """
    if not wall_s > 0:
        raise EnergyError(f"the window has no length: wall_s is {wall_s}")
    if not 0 <= cpu_s <= calibration.n_vcpu * wall_s * 1.02 + 0.1:
        raise EnergyError(f"{cpu_s:g} busy CPU-seconds do not fit into {wall_s:g} s on {calibration.n_vcpu} processors")
    net_j = calibration.dynamic_w * cpu_s / calibration.n_vcpu
    gross_j = calibration.idle_w * wall_s + net_j
    half_j = calibration.band * gross_j
    return EstimatedEnergy(
        est_energy_gross_j=gross_j,
        est_energy_gross_low_j=gross_j - half_j,
        est_energy_gross_high_j=gross_j + half_j,
        est_energy_net_j=net_j,
        est_energy_net_low_j=net_j - half_j,
        est_energy_net_high_j=net_j + half_j,
        wall_s=wall_s,
        provenance=Provenance.MODEL_CALIBRATED,
        scopes=(Scope.NODE_WALL_AC,),
        method=METHOD,
        inputs={
            "cpu_s": cpu_s,
            "wall_s": wall_s,
            "n_vcpu": calibration.n_vcpu,
            "idle_w": calibration.idle_w,
            "dynamic_w": calibration.dynamic_w,
            "band": calibration.band,
            "n_readings": calibration.n_readings,
        },
    )


def estimate_with(calibration: Calibration | None, *, cpu_s: float, wall_s: float) -> EstimatedEnergy:
    """Energy of work on this machine: by its calibration, or from published watts of its CPU family where None.

    Raises:
        EnergyError: no length, or impossible CPU time.
    """
    if calibration is None:
        return estimate_energy(cpu_s=cpu_s, wall_s=wall_s)
    return estimate_calibrated(calibration, cpu_s=cpu_s, wall_s=wall_s)


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write a calibration as JSON."""
    text = json.dumps({"schema": SCHEMA} | asdict(calibration), indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def load_calibration(path: Path, *, cpu: Cpu) -> Calibration:
    """Read a calibration that was made on this machine.

    Raises:
        EnergyError: not such a file, one made on another processor, or a guest, which is a share of a machine.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EnergyError(f"is no calibration: {error}", where=str(path), hint="compressor energy calibrate") from error
    if not isinstance(document, dict) or document.pop("schema", None) != SCHEMA:
        raise EnergyError(f"is no {SCHEMA} file", where=str(path), hint="compressor energy calibrate")
    try:
        calibration = Calibration(**document)
    except TypeError as error:
        raise EnergyError(f"is no complete {SCHEMA} file: {error}", where=str(path)) from error
    if (calibration.cpu, calibration.n_vcpu) != (cpu.name, cpu.n_vcpu):
        raise EnergyError(
            f"was made on {calibration.n_vcpu} x {calibration.cpu!r}; this machine has {cpu.n_vcpu} x {cpu.name!r}",
            where=str(path),
            hint="compressor energy calibrate",
        )
    if cpu.hypervisor is not None:
        raise EnergyError(
            f"holds the watts of a whole machine, and this is a guest on one ({cpu.hypervisor})",
            where=str(path),
            hint="leave the calibration out: the published watts of the CPU family are used",
        )
    return calibration


def _check(readings: Sequence[PlugReading], cpu: Cpu) -> None:
    if cpu.hypervisor is not None:
        raise EnergyError(
            f"a guest cannot be calibrated with a plug ({cpu.hypervisor}): other guests draw from the same plug",
            hint="calibrate on the host, with no guest running",
        )
    if not 1 <= len(readings) <= 3:
        raise EnergyError(f"{len(readings)} plug readings given; calibration takes one, two or three")
    for reading in readings:
        if not 0 <= reading.load <= 1:
            raise EnergyError(f"a load of {reading.load} is not a share between 0 (idle) and 1 (all threads busy)")
        if not reading.power_w > 0:
            raise EnergyError(f"a plug reading of {reading.power_w} W is not a positive power")
    if len({reading.load for reading in readings}) < len(readings):
        raise EnergyError("two plug readings are given for the same load; take them at different loads")
