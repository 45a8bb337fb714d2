"""What Zeus says of a made-up powercap tree. Runs in an environment of its own (requirements-zeus.txt).

Zeus has no argument for the root of sysfs, so its constant RAPL_DIR is pointed at the tree; nothing else is changed.
"""

from __future__ import annotations

import time
import warnings

from fake_powercap import Tree, answer


def ask(tree: Tree) -> list[dict[str, object]]:
    import zeus.device.cpu.rapl
    from zeus.monitor import ZeusMonitor

    zeus.device.cpu.rapl.RAPL_DIR = str(tree.root / "sys/class/powercap/intel-rapl")
    said: list[dict[str, object]] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with tree.idling():
            monitor = ZeusMonitor(gpu_indices=[])
            # Its polling process starts with the first read; it gets the time to come up.
            monitor.begin_window("warm-up")
            time.sleep(3)
            monitor.end_window("warm-up")
        for number, window in enumerate(tree.scenario.windows):
            monitor.begin_window(str(number))
            tree.play(window)
            try:
                result = monitor.end_window(str(number))
            except (OSError, ValueError) as error:
                said.append({"error": f"{type(error).__name__}: {error}"})
                break
            said.append(
                {
                    "cpu_energy": result.cpu_energy,
                    "dram_energy": result.dram_energy,
                    "cpu_sum_j": None if result.cpu_energy is None else sum(result.cpu_energy.values()),
                    "total_energy_j": result.total_energy,
                    "time_s": result.time,
                }
            )
    for entry in said:
        entry["warnings"] = [str(warning.message) for warning in caught]
    return said


if __name__ == "__main__":
    answer(ask)
