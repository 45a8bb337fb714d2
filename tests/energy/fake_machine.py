"""A machine made of files: a root with powercap, hwmon, battery and CPU entries that tests write themselves."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

from compressor.energy import Domain, DomainLog, Provenance, Quantity, Scope

RANGE_UJ = 262_143_328_850


class FakeMachine:
    """Writes the files that meters read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/cpuinfo", cpuinfo())
        self.write("proc/stat", "cpu  0 0 0 0 0 0 0 0 0 0\n")

    def write(self, path: str, text: object) -> Path:
        """Write one file of the tree."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n", encoding="utf-8")
        return file

    def add_zone(self, entry: str, name: str, energy_uj: int = 1_000_000, range_uj: int = RANGE_UJ) -> Path:
        """One powercap zone, such as ``intel-rapl:0``."""
        zone = f"sys/class/powercap/{entry}"
        self.write(f"{zone}/name", name)
        self.write(f"{zone}/max_energy_range_uj", range_uj)
        return self.set_energy(entry, energy_uj)

    def set_energy(self, entry: str, energy_uj: int) -> Path:
        """Set a zone's counter."""
        return self.write(f"sys/class/powercap/{entry}/energy_uj", f"{energy_uj:020d}")

    @contextmanager
    def running(self, entry: str, power_w: float) -> Iterator[None]:
        """Let a zone's counter run, updated about every millisecond as the hardware does."""
        file = self.root / f"sys/class/powercap/{entry}/energy_uj"
        first_uj = int(file.read_text())
        range_uj = int((file.parent / "max_energy_range_uj").read_text()) + 1
        stopping = threading.Event()
        start = time.monotonic()

        def run() -> None:
            descriptor = os.open(file, os.O_WRONLY)
            while not stopping.wait(0.001):
                energy_uj = (first_uj + round(power_w * (time.monotonic() - start) * 1e6)) % range_uj
                os.pwrite(descriptor, f"{energy_uj:020d}".encode(), 0)
            os.close(descriptor)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()


def cpuinfo(
    vendor: str = "AuthenticAMD",
    family: int = 25,
    model: int = 1,
    stepping: int = 1,
    name: str = "AMD EPYC 7763 64-Core Processor",
    flags: str = "fpu sse2 avx2",
    n_vcpu: int = 2,
) -> str:
    """The text of /proc/cpuinfo."""
    block = (
        "processor\t: {i}\nvendor_id\t: {v}\ncpu family\t: {f}\nmodel\t\t: {m}\nmodel name\t: {n}\n"
        "stepping\t: {s}\nflags\t\t: {flags}\n"
    )
    entry = {"v": vendor, "f": family, "m": model, "n": name, "s": stepping, "flags": flags}
    return "\n".join(block.format(i=i, **entry) for i in range(n_vcpu))


GUEST = cpuinfo(family=26, model=2, name="AMD EPYC", flags="fpu sse2 hypervisor avx2")


def domain(
    id: str = "package-0",
    scope: Scope = Scope.CPU_PACKAGE,
    provenance: Provenance = Provenance.DEVICE_COUNTER,
    quantity: Quantity = Quantity.ENERGY,
    unit: Fraction = Fraction(1, 1_000_000),
    period_s: float = 0.001,
    ceiling_w: float = 1000.0,
    modulus: int | None = RANGE_UJ + 1,
    overlaps: tuple[str, ...] = (),
    checks: str | None = None,
) -> Domain:
    """A RAPL package unless told otherwise."""
    return Domain(id, scope, provenance, quantity, unit, period_s, ceiling_w, modulus, overlaps, checks)


def log(of: Domain, *samples: tuple[float, int]) -> DomainLog:
    """A log from (seconds, raw) pairs."""
    return DomainLog(of, tuple((round(t_s * 1e9), raw) for t_s, raw in samples))
