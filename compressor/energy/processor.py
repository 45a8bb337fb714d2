"""What the processor can multiply, read from its flags: files tuned for one instruction set may be wrong on another."""

from __future__ import annotations

from pathlib import Path

INT8_SETS = ("amx_int8", "avx512_vnni", "avx_vnni", "avx512f", "avx2", "i8mm", "asimddp")
"""Flags that choose the INT8 kernels of a runtime, the widest first of x86 and of Arm."""


def read_cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """Flags of the first processor as the kernel lists them; empty where it lists none."""
    path = root / "proc/cpuinfo"
    if not path.exists():
        return frozenset()
    for line in path.read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def instruction_set(flags: frozenset[str]) -> str:
    """The widest INT8 instruction set among the flags; `unknown` where none of ours is."""
    return next((name for name in INT8_SETS if name in flags), "unknown")
