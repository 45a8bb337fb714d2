"""A powercap tree made of files, and what happens to its counters. Standard library only: every tool's Python runs it.

The tree has the shape that Linux gives it: zones live below ``intel-rapl``, and ``/sys/class/powercap`` shows each of
them by a link. Nobody writes to a counter while a tool reads its edges, so the true joules of a window are exactly
those that were written into it.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

RANGE_UJ = 65_532_610_987  # what 32 bits of 15.3 microjoules come to, as most machines show
J = 1_000_000
HOST = "flags\t\t: fpu sse2 avx2"
GUEST = "flags\t\t: fpu sse2 hypervisor avx2"


@dataclass(frozen=True)
class Zone:
    """One zone: its place, name, and the counter at the start of the window."""

    entry: str
    name: str
    start_uj: int


@dataclass(frozen=True)
class Step:
    """What is written after a wait: zone -> counter, or text that is no number."""

    after_s: float
    counters: dict[str, int | str]


@dataclass(frozen=True)
class Window:
    """One window of a scenario, and what really happened in it."""

    true_j: float | None
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Scenario:
    """A tree, one or two windows, and why it is hard.

    Attributes:
        name: for the table.
        truth: what a right answer is, in words.
        zones: the tree.
        windows: one after another, with the same monitor where the tool has one.
        flags: a line of /proc/cpuinfo.
        readable: whether the counters may be read.
    """

    name: str
    truth: str
    zones: tuple[Zone, ...]
    windows: tuple[Window, ...]
    flags: str = HOST
    readable: bool = True


PACKAGE = "intel-rapl:0"
SECOND = "intel-rapl:1"
HALF_FULL = 5_000 * J
NEAR_END = RANGE_UJ - J
PERIOD_S = 0.05


def grow(seconds: float, starts_uj: dict[str, int], joules: dict[str, float]) -> tuple[Step, ...]:
    """Counters that grow evenly, in steps of 50 ms, and go on from 0 at the end of their range."""
    n = round(seconds / PERIOD_S)
    return tuple(
        Step(
            PERIOD_S,
            {entry: (start + round(joules[entry] * J * i / n)) % (RANGE_UJ + 1) for entry, start in starts_uj.items()},
        )
        for i in range(1, n + 1)
    )


def alone(seconds: float, start_uj: int, joules: float) -> tuple[Step, ...]:
    """One package that grows."""
    return grow(seconds, {PACKAGE: start_uj}, {PACKAGE: joules})


def package(start_uj: int) -> tuple[Zone, ...]:
    """A tree of one package."""
    return (Zone(PACKAGE, "package-0", start_uj),)


SCENARIOS = (
    Scenario(
        "an ordinary window",
        "100 J",
        package(HALF_FULL),
        (Window(100.0, alone(2, HALF_FULL, 100)),),
    ),
    Scenario(
        "a wrap in mid-window",
        "5 J",
        package(NEAR_END),
        (Window(5.0, alone(4, NEAR_END, 5)),),
    ),
    Scenario(
        "a wrap between the last sample and the end, then a quiet window",
        "1.5 J, then 0.1 J",
        package(NEAR_END),
        (
            Window(1.5, (*alone(2, NEAR_END, 0.5), Step(0.01, {PACKAGE: J // 2 - 1}))),
            Window(0.1, alone(2, J // 2 - 1, 0.1)),
        ),
    ),
    Scenario(
        "a counter that stands still",
        "unknown, so no number",
        package(HALF_FULL),
        (Window(None, (Step(2.0, {}),)),),
    ),
    Scenario(
        "psys beside the package it covers",
        "100 J in the package, 150 J in the platform, 250 J nowhere",
        (*package(HALF_FULL), Zone(SECOND, "psys", 9_000 * J)),
        (Window(100.0, grow(2, {PACKAGE: HALF_FULL, SECOND: 9_000 * J}, {PACKAGE: 100, SECOND: 150})),),
    ),
    Scenario(
        "two dies that show one counter",
        "100 J",
        (Zone(PACKAGE, "package-0-die-0", HALF_FULL), Zone(SECOND, "package-0-die-1", HALF_FULL)),
        (Window(100.0, grow(2, dict.fromkeys((PACKAGE, SECOND), HALF_FULL), dict.fromkeys((PACKAGE, SECOND), 100))),),
    ),
    Scenario(
        "permission refused",
        "unknown, so no number",
        package(HALF_FULL),
        (Window(None, (Step(2.0, {}),)),),
        readable=False,
    ),
    Scenario(
        "a reset to zero in mid-window",
        "unknown, so no number",
        package(HALF_FULL),
        (Window(None, (*alone(1, HALF_FULL, 10), Step(0.05, {PACKAGE: 0}), *alone(3, 0, 10))),),
    ),
    Scenario(
        "garbage in the counter file at the end",
        "unknown, so no number",
        package(HALF_FULL),
        (Window(None, (*alone(2, HALF_FULL, 100), Step(0.01, {PACKAGE: "garbage"}))),),
    ),
    Scenario(
        "a counter inside a guest",
        "unknown: the host may have made it up",
        package(HALF_FULL),
        (Window(None, alone(2, HALF_FULL, 100)),),
        flags=GUEST,
    ),
)


class Tree:
    """The files of one scenario below a root."""

    def __init__(self, root: Path, scenario: Scenario) -> None:
        self.root, self.scenario = root, scenario
        self._zones = {zone.entry: self._folder(zone.entry) for zone in scenario.zones}

    def _folder(self, entry: str) -> Path:
        # intel-rapl:0:1 lies inside intel-rapl:0
        parts = entry.split(":")
        nested = [":".join(parts[: i + 1]) for i in range(1, len(parts))]
        return self.root.joinpath("sys/devices/virtual/powercap/intel-rapl", *nested)

    def build(self) -> None:
        """Write every file."""
        shown = self.root / "sys/class/powercap"
        shown.mkdir(parents=True)
        for zone in self.scenario.zones:
            folder = self._zones[zone.entry]
            folder.mkdir(parents=True)
            (folder / "name").write_text(f"{zone.name}\n")
            (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
            (folder / "energy_uj").write_text(f"{zone.start_uj - J:020d}\n")
            (folder / "energy_uj").chmod(0o644 if self.scenario.readable else 0o000)
            (shown / zone.entry).symlink_to(folder)
        base = self.root / "sys/devices/virtual/powercap/intel-rapl"
        (base / "enabled").write_text("1\n")
        (base / "subsystem").symlink_to(shown)
        (shown / "intel-rapl").symlink_to(base)
        (self.root / "proc").mkdir()
        entry = (
            "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC 7763\n"
        )
        (self.root / "proc/cpuinfo").write_text(entry + self.scenario.flags + "\n")
        (self.root / "proc/stat").write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")

    @contextmanager
    def idling(self) -> Iterator[None]:
        """Let every counter crawl towards its start, as a live one does while tools look for it; set it at the end."""
        if not self.scenario.readable:
            yield
            return
        stopping = threading.Event()

        def run() -> None:
            crawled = 0
            while not stopping.wait(0.001):
                crawled = min(crawled + 20, J - 1)
                for zone in self.scenario.zones:
                    self._write(zone.entry, zone.start_uj - J + crawled)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()
            for zone in self.scenario.zones:
                self._write(zone.entry, zone.start_uj)

    def play(self, window: Window) -> None:
        """What happens inside a window."""
        for step in window.steps:
            time.sleep(step.after_s)
            for entry, value in step.counters.items():
                self._write(entry, value)

    def _write(self, entry: str, value: int | str) -> None:
        # In place and of one width: a reader sees the old value or the new one, never half of it.
        with (self._zones[entry] / "energy_uj").open("r+") as file:
            file.write(f"{value:020d}\n" if isinstance(value, int) else f"{value:<20}\n")


def answer(ask: Callable[[Tree], list[dict[str, object]]]) -> None:
    """Run one tool over one tree: ``ask_<tool>.py ROOT NUMBER``; its answer is the last line of stdout."""
    root, number = Path(sys.argv[1]), int(sys.argv[2])
    print(json.dumps(ask(Tree(root, SCENARIOS[number]))), flush=True)


def describe(scenario: Scenario) -> dict[str, object]:
    """For the record."""
    return {"name": scenario.name, "truth": scenario.truth, "zones": [asdict(zone) for zone in scenario.zones]}
