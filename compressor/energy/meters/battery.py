"""A laptop's battery: the whole machine's DC power, while it runs from the battery alone."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from compressor.energy.domain import Domain, Probe, Provenance, Quantity, Sample, Scope
from compressor.energy.host import ROOT, read_int, read_text
from compressor.energy.meter import now_ns
from compressor.errors import EnergyError

PERIOD_S = 1.0  # fuel gauges refresh about every second, some only every few
CEILING_W = 400.0


class BatteryMeter:
    """Discharge power under ``/sys/class/power_supply``.

    Args:
        root: root of sysfs.
    """

    name = "battery"
    label = "battery gauge"

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root

    def probe(self) -> Probe:
        """Ok only while discharging: at the charger the gauge shows the battery's power, not the machine's."""
        batteries = self._batteries()
        if not batteries:
            return Probe("absent", "no battery under /sys/class/power_supply")
        try:
            charging = [folder.name for folder in batteries if not _is_discharging(folder)]
            if charging:
                return Probe("unsupported", f"{', '.join(charging)} is not discharging", "unplug the charger")
            self.read()
        except EnergyError as error:
            return Probe("error", str(error))
        return Probe("ok", ", ".join(folder.name for folder in batteries))

    def domains(self) -> tuple[Domain, ...]:
        """One power sensor for each battery; together they feed the machine."""
        return tuple(
            Domain(
                id=folder.name,
                scope=Scope.NODE_DC,
                provenance=Provenance.DEVICE_POWER_INTEGRATED,
                quantity=Quantity.POWER,
                # Microwatts, or microamperes times microvolts where the gauge knows no power.
                unit=Fraction(1, 10**6) if (folder / "power_now").exists() else Fraction(1, 10**12),
                period_s=PERIOD_S,
                ceiling_w=CEILING_W,
            )
            for folder in self._batteries()
        )

    def read(self) -> tuple[Sample, ...]:
        """Raw power of each battery; raises when the charger came back."""
        samples = []
        for folder in self._batteries():
            if not _is_discharging(folder):
                raise EnergyError(f"{folder.name} stopped discharging: the charger was plugged in during the window")
            if (folder / "power_now").exists():
                raw = read_int(folder / "power_now")
            else:
                raw = read_int(folder / "current_now") * read_int(folder / "voltage_now")
            samples.append(Sample(folder.name, now_ns(), raw))
        return tuple(samples)

    def _batteries(self) -> list[Path]:
        base = self._root / "sys/class/power_supply"
        folders = sorted(base.iterdir()) if base.is_dir() else []
        # A mouse or a pen has a battery too, of scope "Device".
        return [
            folder
            for folder in folders
            if (folder / "type").exists()
            and read_text(folder / "type").strip() == "Battery"
            and not ((folder / "scope").exists() and read_text(folder / "scope").strip() == "Device")
        ]


def _is_discharging(folder: Path) -> bool:
    return read_text(folder / "status").strip() == "Discharging"
