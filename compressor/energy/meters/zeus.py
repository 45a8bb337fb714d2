"""AMD GPUs, Apple chips and Jetson modules through Zeus, where that package is installed; labelled by our rules.

Zeus is asked for running totals only, from which `compressor.energy.counter` makes joules as from any other counter.
Its RAPL windows and its NVIDIA GPUs are not used: our own meters read those. Apple's totals are a model inside the
chip, by Apple's own account, so there is no band for them and no number, only the log. A Jetson's total is power that
Zeus integrates ten times a second in a process of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import queue
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from compressor.energy.domain import Domain, Probe, Provenance, Quantity, Sample, Scope
from compressor.energy.meter import now_ns
from compressor.errors import EnergyError

PERIOD_S = 0.1
GPU_CEILING_W = 2000.0
SOC_CEILING_W = 500.0
_APPLE_PARTS = ("cpu_total_mj", "gpu_mj", "gpu_sram_mj", "dram_mj", "ane_mj")


@dataclass(frozen=True)
class Library:
    """The part of Zeus that is used.

    Attributes:
        get_gpus: all GPUs; raises `error` where there are none.
        get_soc: the chip; raises `error` where there is none that it knows.
        gpu_uuid: a GPU's name that survives a change of order.
        error: base of everything that Zeus raises.
    """

    get_gpus: Callable[[], Any]
    get_soc: Callable[[], Any]
    gpu_uuid: Callable[[Any], str]
    error: type[Exception]


@dataclass(frozen=True)
class _Part:
    """One thing that can be read, and how."""

    domain: Domain
    read: Callable[[], int]


class ZeusMeter:
    """What Zeus can read here and our own meters cannot.

    Args:
        library: Zeus, or something like it; imported when None.
    """

    name = "zeus"
    label = "Zeus"

    def __init__(self, library: Library | None = None) -> None:
        self._library = library
        self._parts: tuple[_Part, ...] | None = None

    def probe(self) -> Probe:
        """Whether Zeus is installed and finds one of the devices that it is asked for."""
        if self._library is None:
            if importlib.util.find_spec("zeus") is None:
                return Probe("absent", "the package zeus is not installed", "pip install zeus")
            try:
                self._library = _import_zeus()
            except ImportError as error:
                return Probe("unsupported", f"this zeus cannot be used: {error}", "pip install zeus==0.16.0")
        try:
            parts = self._find(self._library)
        except EnergyError as error:
            return Probe("unsupported", error.message)
        except self._library.error as error:
            return Probe("error", f"Zeus: {error}")
        if not parts:
            return Probe("absent", "Zeus finds no AMD GPU, Apple chip or Jetson module")
        kinds = [f"{part.domain.id} ({part.domain.provenance.value})" for part in parts]
        return Probe("ok", ", ".join(kinds))

    def domains(self) -> tuple[Domain, ...]:
        """One domain for each GPU, or for the chip."""
        return tuple(part.domain for part in self._all())

    def read(self) -> tuple[Sample, ...]:
        """Whole millijoules or milliwatts of each."""
        samples = []
        for part in self._all():
            try:
                raw = part.read()
            except queue.Empty as error:
                raise EnergyError(f"{part.domain.id} cannot be read: Zeus's polling process does not answer") from error
            except self._error() as error:
                raise EnergyError(f"{part.domain.id} cannot be read: {error}") from error
            samples.append(Sample(part.domain.id, now_ns(), raw))
        return tuple(samples)

    def _error(self) -> type[Exception]:
        assert self._library is not None
        return self._library.error

    def _all(self) -> tuple[_Part, ...]:
        if self._parts is None:
            probe = self.probe()
            if not self._parts:
                raise EnergyError(f"Zeus cannot be used: {probe.reason}", hint=probe.remedy)
        return self._parts

    def _find(self, library: Library) -> tuple[_Part, ...]:
        parts = (*_find_gpus(library), *_find_soc(library))
        self._parts = tuple(sorted(parts, key=lambda part: part.domain.id))
        return self._parts


def _import_zeus() -> Library:
    device = importlib.import_module("zeus.device")
    error: type[Exception] = importlib.import_module("zeus.exception").ZeusBaseError

    def gpu_uuid(gpu: Any) -> str:
        return str(importlib.import_module("amdsmi").amdsmi_get_gpu_device_uuid(gpu.handle))

    return Library(device.get_gpus, device.get_soc, gpu_uuid, error)


def _find_gpus(library: Library) -> list[_Part]:
    try:
        found = library.get_gpus()
    except library.error:
        return []
    if type(found).__name__ != "AMDGPUs":
        return []  # NVIDIA, which our own meter reads with a cross-check
    parts = []
    for gpu in found.gpus:
        has_counter = bool(gpu.supports_get_total_energy_consumption())
        domain = Domain(
            id=library.gpu_uuid(gpu),
            scope=Scope.GPU_BOARD,
            provenance=Provenance.DEVICE_COUNTER if has_counter else Provenance.DEVICE_POWER_INTEGRATED,
            quantity=Quantity.ENERGY if has_counter else Quantity.POWER,
            unit=Fraction(1, 1000),
            period_s=PERIOD_S,
            ceiling_w=GPU_CEILING_W,
        )
        read = gpu.get_total_energy_consumption if has_counter else gpu.get_instant_power_usage
        parts.append(_Part(domain, read))
    return parts


def _find_soc(library: Library) -> list[_Part]:
    try:
        soc = library.get_soc()
    except library.error:
        return []
    kind = type(soc).__name__
    if kind == "AppleSilicon":
        return [_Part(_soc_domain("apple-soc", Provenance.DEVICE_MODELLED), lambda: _apple_mj(soc))]
    if kind == "Jetson":
        if soc.get_total_energy_consumption().total_energy_mj is None:
            raise EnergyError("this Jetson shows no total power rail, and its parts do not add up to one")
        return [_Part(_soc_domain("jetson-module", Provenance.DEVICE_POWER_INTEGRATED), lambda: _jetson_mj(soc))]
    return []


def _soc_domain(id: str, provenance: Provenance) -> Domain:
    return Domain(
        id=id,
        scope=Scope.SOC,
        provenance=provenance,
        quantity=Quantity.ENERGY,
        unit=Fraction(1, 1000),
        period_s=PERIOD_S,
        ceiling_w=SOC_CEILING_W,
    )


def _apple_mj(soc: Any) -> int:
    measurement = soc.get_total_energy_consumption()
    values = {part: getattr(measurement, part) for part in _APPLE_PARTS}
    if values["cpu_total_mj"] is None:
        raise EnergyError("apple-soc cannot be read: Zeus shows no CPU total")
    return sum(value for value in values.values() if value is not None)


def _jetson_mj(soc: Any) -> int:
    return int(soc.get_total_energy_consumption().total_energy_mj)
