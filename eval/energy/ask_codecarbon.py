"""What CodeCarbon says of a made-up powercap tree. Runs in an environment of its own (requirements-codecarbon.txt).

CodeCarbon looks for RAPL in fixed folders, so the function that lists them and the default folder of its RAPL reader
are pointed at the tree; nothing else is changed.
"""

from __future__ import annotations

import logging
from dataclasses import asdict

from fake_powercap import Tree, answer


def redirect(tree: Tree) -> None:
    import codecarbon.core.cpu as cpu

    powercap = tree.root / "sys/class/powercap"
    cpu._get_candidate_bases = lambda rapl_dir: [str(powercap)]
    setup = cpu.IntelRAPL.__init__

    def set_up(self: object, rapl_dir: str, rapl_include_dram: bool = False, rapl_prefer_psys: bool = False) -> None:
        setup(self, str(powercap), rapl_include_dram, rapl_prefer_psys)

    cpu.IntelRAPL.__init__ = set_up


class Heard(logging.Handler):
    """Keeps what is logged at warning level or above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage().strip())


def ask(tree: Tree) -> list[dict[str, object]]:
    from codecarbon import OfflineEmissionsTracker

    redirect(tree)
    said: list[dict[str, object]] = []
    for number, window in enumerate(tree.scenario.windows):
        tracker = OfflineEmissionsTracker(
            country_iso_code="USA", save_to_file=False, log_level="warning", allow_multiple_runs=True
        )
        heard = Heard()
        logging.getLogger("codecarbon").addHandler(heard)
        if number == 0:
            with tree.idling():
                tracker._ensure_hardware_ready()
        tracker.start()
        tree.play(window)
        tracker.stop()
        data = asdict(tracker.final_emissions_data)
        said.append(
            {
                "cpu_j": data["cpu_energy"] * 3.6e6,
                "ram_j": data["ram_energy"] * 3.6e6,
                "total_j": data["energy_consumed"] * 3.6e6,
                "cpu_mode": [getattr(part, "_mode", type(part).__name__) for part in tracker._hardware],
                "fields_of_the_record": sorted(data),
                "warnings": heard.lines,
            }
        )
    return said


if __name__ == "__main__":
    answer(ask)
