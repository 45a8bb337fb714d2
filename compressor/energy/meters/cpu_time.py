"""Busy CPU time, from which energy is estimated where no counter can be read."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path

from compressor.energy.calibration import Calibration, estimate_calibrated
from compressor.energy.domain import Domain, Probe, Provenance, Quantity, Sample, Scope
from compressor.energy.host import ROOT, Cpu, identify_cpu, read_cpu_seconds
from compressor.energy.meter import now_ns
from compressor.energy.spec_share import estimate_energy
from compressor.energy.types import EstimatedEnergy
from compressor.errors import EnergyError


class CpuTimeMeter:
    """CPU-seconds of this cgroup, of the machine, or of this process alone, with the model that makes joules of them.

    Args:
        root: root of sysfs and procfs.
        of_process: count only this process, by its own CPU clock, which has no ticks.
        calibration: watts from plug readings on this machine; published watts of its CPU family when None.
    """

    def __init__(self, root: Path = ROOT, *, of_process: bool = False, calibration: Calibration | None = None) -> None:
        self._root = root
        self._of_process = of_process
        self._calibration = calibration
        self.name = "spec_share" if calibration is None else "calibrated_spec"
        self.label = "CPU-time model" if calibration is None else "calibrated CPU-time model"

    def probe(self) -> Probe:
        """Ok wherever the kernel counts CPU time; says aloud that the result is an estimate."""
        try:
            source = "the process CPU clock" if self._of_process else read_cpu_seconds(self._root).source
            cpu = self._cpu()
        except EnergyError as error:
            return Probe("absent", str(error))
        if self._calibration is not None:
            return Probe("ok", f"estimate from {source} and {self._calibration.n_readings} plug reading(s)")
        family = cpu.family or f"unknown CPU family ({cpu.name}), widest band"
        return Probe(
            "ok",
            f"estimate only, from {source}: {family}",
            None if cpu.hypervisor else "read a plug meter and run: compressor energy calibrate",
        )

    def domains(self) -> tuple[Domain, ...]:
        """One domain, in CPU-seconds."""
        if self._of_process:
            unit, period_s = Fraction(1, 1_000_000_000), 1e-6
        else:
            unit = Fraction(1, read_cpu_seconds(self._root).ticks_per_s)
            # The scheduler books a running task's time at its ticks, which come every 1 to 10 ms.
            period_s = max(float(unit), 0.004)
        cpu = self._cpu()
        calibrated = self._calibration is not None
        return (
            Domain(
                id="cpu_time",
                scope=Scope.NODE_WALL_AC if calibrated or cpu.hypervisor is None else Scope.VM_SHARE,
                provenance=Provenance.MODEL_CALIBRATED if calibrated else Provenance.MODEL_ESTIMATED,
                quantity=Quantity.CPU_TIME,
                unit=unit,
                period_s=period_s,
                ceiling_w=10.0 * cpu.n_vcpu,
            ),
        )

    def read(self) -> tuple[Sample, ...]:
        """Ticks of CPU time so far."""
        raw = time.process_time_ns() if self._of_process else read_cpu_seconds(self._root).raw
        return (Sample("cpu_time", now_ns(), raw),)

    def estimate(self, cpu_s: float, wall_s: float) -> EstimatedEnergy:
        """Energy of a window by ``spec_share/1``, or by the calibration."""
        if self._calibration is not None:
            return estimate_calibrated(self._calibration, cpu_s=cpu_s, wall_s=wall_s)
        return estimate_energy(cpu_s=cpu_s, wall_s=wall_s, cpu=self._cpu())

    def _cpu(self) -> Cpu:
        return identify_cpu(self._root)
