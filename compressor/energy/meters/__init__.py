"""One meter per file. `all_meters` is the list that ``compressor meters`` prints."""

from __future__ import annotations

from pathlib import Path

from compressor.energy.host import ROOT
from compressor.energy.meter import Meter
from compressor.energy.meters.cpu_time import CpuTimeMeter
from compressor.energy.meters.rapl import RaplMeter


def all_meters(root: Path = ROOT) -> tuple[Meter, ...]:
    """Every meter this toolkit knows, best first, whether or not this machine has it."""
    return (RaplMeter(root), CpuTimeMeter(root))
