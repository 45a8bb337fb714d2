"""NVIDIA GPUs through NVML: the energy counter, checked against the integrated power sensor.

GPUs are known by their UUID, since their order changes between boots and with ``CUDA_VISIBLE_DEVICES``. A GPU whose
counter is missing is read by its power sensor alone. A GPU split by MIG is refused: its counter covers all instances.
Where there is no NVML there is no number; a GPU's energy is never estimated.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from compressor.energy.domain import Domain, Probe, Provenance, Quantity, Sample, Scope
from compressor.energy.meter import now_ns
from compressor.errors import EnergyError

# The sensor behind both readings is refreshed about ten times a second on data-centre boards.
PERIOD_S = 0.1
CEILING_W = 2000.0
_MILLI = Fraction(1, 1000)


@dataclass(frozen=True)
class _Gpu:
    uuid: str
    handle: Any  # NVML's opaque device
    has_counter: bool


class NvmlMeter:
    """Energy of every NVIDIA GPU that NVML shows.

    Args:
        nvml: the module ``pynvml``, or an object like it; imported when None.
    """

    name = "nvml"
    label = "NVML"

    def __init__(self, nvml: Any = None) -> None:
        self._lib = nvml
        self._gpus: tuple[_Gpu, ...] | None = None

    def probe(self) -> Probe:
        """Whether NVML is installed, finds a driver, and its GPUs can be metered."""
        if self._lib is None:
            try:
                self._lib = importlib.import_module("pynvml")
            except ImportError:
                return Probe("absent", "the package nvidia-ml-py is not installed", "pip install nvidia-ml-py")
        nvml = self._lib
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            return Probe("absent", f"no NVIDIA driver answers: {error}")
        try:
            gpus = self._find()
        except EnergyError as error:
            return Probe("unsupported", error.message, error.hint)
        except nvml.NVMLError as error:
            return Probe("error", f"NVML: {error}")
        if not gpus:
            return Probe("absent", "NVML finds no GPU")
        kinds = [f"{gpu.uuid} ({'counter and power' if gpu.has_counter else 'power only'})" for gpu in gpus]
        return Probe("ok", ", ".join(kinds))

    def domains(self) -> tuple[Domain, ...]:
        """Per GPU an energy counter with its checking sensor, or the sensor alone."""
        domains = []
        for gpu in self._all():
            if gpu.has_counter:
                domains.append(self._domain(gpu.uuid, Quantity.ENERGY, None))
            domains.append(self._domain(f"{gpu.uuid}:power", Quantity.POWER, gpu.uuid if gpu.has_counter else None))
        return tuple(domains)

    def read(self) -> tuple[Sample, ...]:
        """Millijoules and milliwatts of every GPU."""
        samples = []
        nvml = self._lib
        for gpu in self._all():
            try:
                if gpu.has_counter:
                    raw = nvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle)
                    samples.append(Sample(gpu.uuid, now_ns(), int(raw)))
                samples.append(Sample(f"{gpu.uuid}:power", now_ns(), int(nvml.nvmlDeviceGetPowerUsage(gpu.handle))))
            except nvml.NVMLError as error:
                raise EnergyError(f"GPU {gpu.uuid} cannot be read: {error}") from error
        return tuple(samples)

    def _domain(self, id: str, quantity: Quantity, checks: str | None) -> Domain:
        counted = quantity is Quantity.ENERGY
        return Domain(
            id=id,
            scope=Scope.GPU_BOARD,
            provenance=Provenance.DEVICE_COUNTER if counted else Provenance.DEVICE_POWER_INTEGRATED,
            quantity=quantity,
            unit=_MILLI,
            period_s=PERIOD_S,
            ceiling_w=CEILING_W,
            checks=checks,
        )

    def _all(self) -> tuple[_Gpu, ...]:
        if self._gpus is None:
            probe = self.probe()
            if self._gpus is None:
                raise EnergyError(f"NVML cannot be used: {probe.reason}", hint=probe.remedy)
        return self._gpus

    def _find(self) -> tuple[_Gpu, ...]:
        nvml = self._lib
        gpus = []
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = nvml.nvmlDeviceGetUUID(handle)
            uuid = uuid.decode() if isinstance(uuid, bytes) else str(uuid)
            if self._is_split(handle):
                raise EnergyError(
                    f"GPU {uuid} is in MIG mode: its counter covers all instances, not yours alone",
                    hint=f"sudo nvidia-smi -i {uuid} -mig 0",
                )
            gpus.append(_Gpu(uuid, handle, self._has_counter(handle)))
        self._gpus = tuple(sorted(gpus, key=lambda gpu: gpu.uuid))
        return self._gpus

    def _is_split(self, handle: Any) -> bool:
        try:
            current, _pending = self._lib.nvmlDeviceGetMigMode(handle)
        except self._lib.NVMLError_NotSupported:
            return False
        return bool(current)

    def _has_counter(self, handle: Any) -> bool:
        try:
            self._lib.nvmlDeviceGetTotalEnergyConsumption(handle)
        except self._lib.NVMLError_NotSupported:
            return False
        return True
