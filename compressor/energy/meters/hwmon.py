"""Power and energy sensors of the kernel's hwmon tree, where we know what they cover.

Most hwmon sensors sit on a rail whose scope only the board's maker knows. Those are listed and left alone: a joule
without a scope is worth nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from compressor.energy.domain import Domain, Probe, Provenance, Quantity, Sample, Scope
from compressor.energy.host import ROOT, find_hypervisor, read_int, read_text
from compressor.energy.meter import now_ns
from compressor.errors import EnergyError

_MICRO = Fraction(1, 1_000_000)


@dataclass(frozen=True)
class _Known:
    file: str  # pattern of the sensor's file
    label: str | None  # pattern of its label; None when it has none
    scope: Scope
    provenance: Provenance
    period_s: float
    ceiling_w: float
    beside: str | None = None  # a file that must stand beside it


# Driver -> the sensors of it that we can name.
_KNOWN = {
    # ACPI power meter: what the board's supply delivers; it updates about once a second.
    "power_meter": _Known(
        r"power\d+_average", None, Scope.NODE_WALL_AC, Provenance.DEVICE_POWER_INTEGRATED, 1.0, 10_000.0
    ),
    # AMD's energy registers; the per-core ones lie inside the socket's.
    "amd_energy": _Known(
        r"energy\d+_input", r"Esocket\d+", Scope.CPU_PACKAGE, Provenance.DEVICE_COUNTER, 0.001, 1500.0
    ),
    # An integrated GPU shows the whole chip's power here; only a board of its own has a power cap.
    "amdgpu": _Known(
        r"power\d+_(average|input)",
        None,
        Scope.GPU_BOARD,
        Provenance.DEVICE_POWER_INTEGRATED,
        0.1,
        2000.0,
        beside="power1_cap",
    ),
    # Computed by the CPU from its own model, not sensed.
    "fam15h_power": _Known(r"power1_input", None, Scope.CPU_PACKAGE, Provenance.DEVICE_MODELLED, 0.1, 1500.0),
}


@dataclass(frozen=True)
class _Sensor:
    id: str
    file: Path
    known: _Known


class HwmonMeter:
    """Sensors under ``/sys/class/hwmon``.

    Args:
        root: root of sysfs.
    """

    name = "hwmon"
    label = "hwmon"

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._sensors: list[_Sensor] | None = None

    def probe(self) -> Probe:
        """Whether a sensor of known scope is there and readable."""
        try:
            sensors, unknown = _find_sensors(self._root)
            for sensor in sensors:
                sensor.file.open("rb").close()
            self.read()
        except PermissionError as error:
            return Probe("permission", f"{error.filename} is for root only")
        except OSError as error:
            return Probe("error", f"{error.filename}: {error.strerror}")
        except EnergyError as error:
            return Probe("error", str(error))
        if sensors:
            return Probe("ok", ", ".join(sensor.id for sensor in sensors))
        if unknown:
            return Probe("unsupported", f"power sensors of unknown scope: {', '.join(unknown)}")
        return Probe("absent", "no power or energy sensor under /sys/class/hwmon")

    def domains(self) -> tuple[Domain, ...]:
        """One domain for each sensor of known scope."""
        guest = find_hypervisor(self._root) is not None
        return tuple(
            Domain(
                id=sensor.id,
                scope=sensor.known.scope,
                # A CPU sensor in a guest is the host's invention; a board handed through whole is not.
                provenance=Provenance.ATTRIBUTED
                if guest and sensor.known.scope is not Scope.GPU_BOARD
                else sensor.known.provenance,
                quantity=Quantity.ENERGY if "energy" in sensor.file.name else Quantity.POWER,
                unit=_MICRO,
                period_s=sensor.known.period_s,
                ceiling_w=sensor.known.ceiling_w,
            )
            for sensor in self._found()
        )

    def read(self) -> tuple[Sample, ...]:
        """Microwatts or microjoules of each sensor."""
        return tuple(Sample(sensor.id, now_ns(), read_int(sensor.file)) for sensor in self._found())

    def _found(self) -> list[_Sensor]:
        """Looked for once: a window needs the same sensors throughout."""
        if self._sensors is None:
            self._sensors, _ = _find_sensors(self._root)
        return self._sensors


def _find_sensors(root: Path) -> tuple[list[_Sensor], list[str]]:
    """Sensors of known scope, and the names of drivers with power sensors that are not."""
    base = root / "sys/class/hwmon"
    sensors: list[_Sensor] = []
    unknown = []
    for folder in sorted(base.iterdir()) if base.is_dir() else []:
        if not (folder / "name").exists():
            continue
        driver = read_text(folder / "name").strip()
        files = [
            file for file in sorted(folder.iterdir()) if re.fullmatch(r"(power|energy)\d+_(input|average)", file.name)
        ]
        known = _KNOWN.get(driver)
        if known is None or (known.beside is not None and not (folder / known.beside).exists()):
            unknown += [driver] if files else []
            continue
        matching = [file for file in files if re.fullmatch(known.file, file.name) and _has_label(file, known)]
        seen: set[str] = set()
        for file in matching:
            channel = file.name.split("_")[0]
            if channel not in seen:  # an average and an input of one channel are the same watts
                seen.add(channel)
                sensors.append(_Sensor(f"{folder.name}:{driver}:{channel}", file, known))
    return sensors, unknown


def _has_label(file: Path, known: _Known) -> bool:
    if known.label is None:
        return True
    label = file.with_name(file.name.split("_")[0] + "_label")
    return label.exists() and re.fullmatch(known.label, read_text(label).strip()) is not None
