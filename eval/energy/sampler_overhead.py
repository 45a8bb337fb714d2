"""What metering itself costs: CPU-seconds of the sampler thread over a window, and of importing compressor.energy.

    python eval/energy/sampler_overhead.py

The tree is made of files, four zones, read as RAPL would be. Writes eval/results/energy-overhead.json and .md.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from fake_powercap import HALF_FULL, J, Scenario, Tree, Zone

from compressor.energy import MeasuredEnergy, Source, Window, identify_cpu
from compressor.energy.meters.rapl import RaplMeter

REPOSITORY = Path(__file__).resolve().parents[2]
RECORD = REPOSITORY / "eval/results/energy-overhead.json"
WINDOW_S = 10.0
LIMIT_SHARE = 0.005
LIMIT_IMPORT_S = 0.2
N_IMPORTS = 5
ZONES = (
    Zone("intel-rapl:0", "package-0", HALF_FULL),
    Zone("intel-rapl:0:0", "dram", HALF_FULL),
    Zone("intel-rapl:1", "package-1", HALF_FULL),
    Zone("intel-rapl:1:0", "dram", HALF_FULL),
)
# Runs in a process of its own, since the counters must move meanwhile.
TICK = """
import sys, time
entries = [open(path, "r+") for path in sys.argv[2:]]
n = 0
while True:
    n += 1
    for file in entries:
        file.seek(0)
        file.write(f"{int(sys.argv[1]) + 500_000 * n:020d}\\n")
        file.flush()
    time.sleep(0.05)
"""


def sampler_cpu_s() -> tuple[float, float, int]:
    """CPU-seconds of the sampler thread, length of the window, samples taken."""
    spent: list[float] = []
    run = threading.Thread.run

    def timed(thread: threading.Thread) -> None:
        start = time.thread_time()
        run(thread)
        if thread.name.startswith("energy-"):
            spent.append(time.thread_time() - start)

    with tempfile.TemporaryDirectory() as folder:
        Tree(Path(folder), Scenario("overhead", "", ZONES, ())).build()
        files = [str(path) for path in Path(folder).glob("sys/devices/**/energy_uj")]
        ticking = subprocess.Popen([sys.executable, "-c", TICK, str(HALF_FULL - J), *files])
        try:
            time.sleep(0.5)
            meter = RaplMeter(Path(folder))
            threading.Thread.run = timed
            with Window([Source(meter, meter.domains())], root=Path(folder)) as window:
                time.sleep(WINDOW_S)
        finally:
            threading.Thread.run = run
            ticking.kill()
            ticking.wait()
    assert isinstance(window.result, MeasuredEnergy), window.result
    (log, *_others) = window.result.windows[0].logs
    assert len(window.result.windows[0].logs) == len(ZONES)
    return spent[0], window.result.wall_s, len(log.samples)


def import_cpu_s() -> list[float]:
    """CPU-seconds of the import in fresh processes, without those of starting Python."""
    code = "import time; a = time.process_time(); import compressor.energy; print(time.process_time() - a)"
    seconds = []
    for _ in range(N_IMPORTS):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
        seconds.append(float(done.stdout))
    return seconds


def main() -> None:
    cpu_s, wall_s, n_samples = sampler_cpu_s()
    imports = import_cpu_s()
    record = {
        "command": "python eval/energy/sampler_overhead.py",
        "host": {"cpu": identify_cpu().name, "python": platform.python_version()},
        "sampler": {
            "zones": len(ZONES),
            "window_s": wall_s,
            "samples_per_zone": n_samples,
            "thread_cpu_s": cpu_s,
            "share_of_window": cpu_s / wall_s,
            "limit_share": LIMIT_SHARE,
        },
        "import": {
            "process_cpu_s": imports,
            "median_s": statistics.median(imports),
            "limit_s": LIMIT_IMPORT_S,
        },
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    lines = [
        "# What metering costs",
        "",
        f"Made by `{record['command']}` on {record['host']['cpu']}, Python {record['host']['python']}; do not edit.",
        "",
        "| what | CPU-seconds | limit |",
        "|---|---|---|",
        f"| sampler thread, {len(ZONES)} zones of a made-up powercap tree, {wall_s:.1f} s window, "
        f"{n_samples} samples of each zone | {cpu_s:.5f} ({cpu_s / wall_s:.4%} of the window) | {LIMIT_SHARE:.1%} |",
        f"| `import compressor.energy`, median of {N_IMPORTS} fresh processes "
        f"({min(imports):.3f} to {max(imports):.3f}) | {statistics.median(imports):.3f} | {LIMIT_IMPORT_S} |",
    ]
    RECORD.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    if cpu_s / wall_s > LIMIT_SHARE or statistics.median(imports) > LIMIT_IMPORT_S:
        raise SystemExit("a limit is exceeded")


if __name__ == "__main__":
    main()
