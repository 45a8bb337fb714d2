"""What this machine and this installation can do, and what would help. Reads; changes, imports and fetches nothing big.

Every finding is `ok` or `warn`: nothing here is an error, since each part works without some of the others.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil

from compressor.energy import choose_sources
from compressor.energy.processor import read_cpu_flags
from compressor.errors import EnergyError, ProvenanceError
from compressor.integrations.shipped import pinned_versions
from compressor.measurement.environment import FLAGS_THAT_MATTER

REQUIRED = (
    "datasets",
    "huggingface_hub",
    "numpy",
    "onnxruntime",
    "pydantic",
    "safetensors",
    "scipy",
    "transformers",
    "typer",
)
TORCH_EXTRA = ("torch", "accelerate", "onnx", "onnxscript", "onnx-ir")
INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
FREE_GB = 10.0
BUSY_SHARE = 0.05


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's.

    Attributes:
        remedy: what would help; None where nothing needs to.
    """

    name: str
    status: Literal["ok", "warn"]
    text: str
    remedy: str | None = None


def examine(folder: Path = Path(), root: Path = Path("/")) -> tuple[Finding, ...]:
    """Everything, in the order in which it matters.

    Args:
        folder: where runs would be written.
        root: of the file system that describes the machine.
    """
    return (
        python_version(sys.version_info[:2]),
        system(platform.system(), platform.machine()),
        *packages(REQUIRED, None),
        *packages(TORCH_EXTRA, "torch"),
        processor_int8(read_cpu_flags(root)),
        processor_bf16(read_cpu_flags(root)),
        cores(os.getloadavg()[0] if hasattr(os, "getloadavg") else None, psutil.cpu_count() or 1),
        energy_meters(root),
        disk(folder),
        model_cache(os.environ),
        network(os.environ),
    )


def python_version(found: tuple[int, int]) -> Finding:
    """Python itself."""
    text = f"{found[0]}.{found[1]}"
    return (
        Finding("python", "ok", text) if found >= (3, 11) else Finding("python", "warn", text, "Python 3.11 or newer")
    )


def system(name: str, machine: str) -> Finding:
    """Where the toolkit runs, and where it can measure."""
    if name == "Linux":
        return Finding("system", "ok", f"{name} {machine}")
    return Finding(
        "system", "warn", f"{name} {machine}: it runs here, but energy is metered on Linux only", "use Linux to measure"
    )


def packages(names: tuple[str, ...], extra: str | None, installed: Callable[[str], str] = version) -> list[Finding]:
    """Installed versions against those that were tested together."""
    tested = pinned_versions()
    findings = []
    for name in names:
        try:
            found = installed(name).partition("+")[0]
        except PackageNotFoundError:
            what = "needed" if extra is None else "only ONNX checkpoints can be used without it"
            bring = "joule-compressor" if extra is None else f"'joule-compressor[{extra}]'"
            findings.append(Finding(name, "warn", f"not installed: {what}", f"pip install {bring}"))
            continue
        pin = tested.get(name)
        if pin in (None, found):
            findings.append(Finding(name, "ok", found))
        else:
            findings.append(Finding(name, "warn", f"{found}; tested with {pin}", f"pip install '{name}=={pin}'"))
    return findings


def processor_int8(flags: frozenset[str]) -> Finding:
    """Whether eight-bit products are summed without saturation."""
    found = [flag for flag in INT8_FLAGS if flag in flags]
    if found:
        return Finding("int8 instructions", "ok", ", ".join(found))
    if not flags:
        return Finding(
            "int8 instructions", "warn", "the system lists no CPU flags", "measure before you trust a speed-up"
        )
    others = ", ".join(flag for flag in FLAGS_THAT_MATTER if flag in flags) or "none that matter"
    text = f"none (there are: {others}): INT8 is slower here, and 8-bit sums can saturate"
    return Finding("int8 instructions", "warn", text, "set arithmetic: auto on w8a8-dynamic stages, and measure")


def processor_bf16(flags: frozenset[str]) -> Finding:
    """Whether training in bfloat16 can be faster."""
    found = [flag for flag in BF16_FLAGS if flag in flags]
    if found:
        return Finding("bf16 instructions", "ok", ", ".join(found))
    return Finding("bf16 instructions", "warn", "none: bf16 training is emulated", "keep training.precision: fp32")


def cores(load: float | None, n: int) -> Finding:
    """Whether others use the machine: noise in every figure."""
    if load is None or load <= n * BUSY_SHARE:
        return Finding("processors", "ok", f"{n}, idle" if load is not None else f"{n}, load unknown")
    return Finding("processors", "warn", f"{n}, load {load:.1f}: others are at work", "measure on an idle machine")


def energy_meters(root: Path) -> Finding:
    """Whether a window here would be measured."""
    try:
        sources = choose_sources(require="measured", root=root)
    except (EnergyError, ProvenanceError) as error:
        text = "none can be read: energy will be an estimate from CPU time, and is called one everywhere"
        return Finding("energy meters", "warn", text, error.hint or "compressor meters")
    return Finding("energy meters", "ok", ", ".join(source.meter.label for source in sources))


def disk(folder: Path) -> Finding:
    """Room for runs."""
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb >= FREE_GB:
        return Finding("disk", "ok", f"{free_gb:.0f} GB free here")
    return Finding("disk", "warn", f"{free_gb:.1f} GB free here", "compressor clean RUN, or --out on another disk")


def model_cache(environment: Mapping[str, str]) -> Finding:
    """Where downloads are kept."""
    home = environment.get("HF_HOME")
    folder = Path(home) if home else Path.home() / ".cache" / "huggingface"
    place = folder
    while not place.exists():
        place = place.parent
    if os.access(place, os.W_OK):
        return Finding("model cache", "ok", f"{folder}{'' if folder.exists() else ' (not there yet)'}")
    return Finding("model cache", "warn", f"{folder} cannot be written", "export HF_HOME=/a/folder/of/yours")


def network(environment: Mapping[str, str]) -> Finding:
    """Never needed by itself: only models and data named by `hub:` are fetched."""
    if environment.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return Finding("network", "ok", "not used (HF_HUB_OFFLINE); hub models must be in the cache")
    return Finding("network", "ok", "not needed, except to fetch models and data named by `hub:`")
