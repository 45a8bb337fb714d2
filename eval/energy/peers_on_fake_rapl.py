"""Ask Zeus, CodeCarbon and compressor.energy for the joules of made-up powercap trees whose true joules are known.

    python3.11 -m venv ZEUS_ENV && ZEUS_ENV/bin/pip install -r eval/energy/requirements-zeus.txt
    python3.11 -m venv CODECARBON_ENV && CODECARBON_ENV/bin/pip install -r eval/energy/requirements-codecarbon.txt
    .venv/bin/python eval/energy/peers_on_fake_rapl.py \\
        --zeus ZEUS_ENV/bin/python --codecarbon CODECARBON_ENV/bin/python

The counter that may not be read has mode 000; run by root, the tools get no capability to read it nevertheless.
Writes eval/results/energy-peers.json and, from that, energy-peers.md; `--table` only writes the table anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fake_powercap import SCENARIOS, Tree, describe

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
RECORD = REPOSITORY / "eval/results/energy-peers.json"
LIKE_A_USER = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
COMMAND = "python eval/energy/peers_on_fake_rapl.py --zeus ZEUS_ENV/bin/python --codecarbon CODECARBON_ENV/bin/python"
REDIRECTED = {
    "zeus": "the constant zeus.device.cpu.rapl.RAPL_DIR points at the tree",
    "codecarbon": "codecarbon.core.cpu._get_candidate_bases and the rapl_dir of IntelRAPL point at the tree",
    "compressor": "choose_sources(root=...) and Window(root=...)",
}
VERSIONS = {"zeus": "zeus", "codecarbon": "codecarbon", "compressor": "joule-compressor"}


def ask(tool: str, python: str, number: int) -> list[dict[str, Any]]:
    """One tool, one tree, in a process of its own, with no right to read what is closed."""
    script = HERE / {"zeus": "ask_zeus.py", "codecarbon": "ask_codecarbon.py", "compressor": "ask_ours.py"}[tool]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        Tree(root, SCENARIOS[number]).build()
        done = subprocess.run(
            [*LIKE_A_USER, python, str(script), folder, str(number)],
            capture_output=True,
            text=True,
            timeout=120,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(REPOSITORY),
                "HOME": folder,
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            cwd=folder,
        )
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1].replace(folder, "ROOT")
            return [{"error": last}]
        said: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1].replace(folder, "ROOT"))
        return said


def version(tool: str, python: str) -> str:
    """Of the installed distribution."""
    code = f"from importlib.metadata import version; print(version({VERSIONS[tool]!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def joules(value: float | None) -> str:
    """As a cell: enough digits to see what is wrong."""
    return "none" if value is None else f"{value:,.4g} J" if abs(value) < 1000 else f"{value:,.0f} J"


def zeus_cell(said: list[dict[str, Any]]) -> str:
    """What a Zeus user reads."""
    return "; then ".join(
        entry.get("error") or f"CPU {joules(entry['cpu_sum_j'])}, `total_energy` {joules(entry['total_energy_j'])}"
        for entry in said
    )


def codecarbon_cell(said: list[dict[str, Any]]) -> str:
    """What a CodeCarbon user reads, and by which method it came about (which its record does not hold)."""
    cells = []
    for entry in said:
        if "error" in entry:
            cells.append(entry["error"])
            continue
        mode = ", ".join(part for part in entry["cpu_mode"] if part != "RAM")
        warned = "; its log warns" if any("denied" in line for line in entry["warnings"]) else ""
        figures = f"RAM {joules(entry['ram_j'])}, sum {joules(entry['total_j'])}"
        cells.append(f"CPU {joules(entry['cpu_j'])} ({mode}), {figures}{warned}")
    return "; then ".join(cells)


def our_cell(said: list[dict[str, Any]]) -> str:
    """What our user reads."""
    return "; then ".join(entry.get("text") or entry.get("error") or f"refused: {entry['refused']}" for entry in said)


def table(record: dict[str, Any]) -> str:
    """The Markdown of a record."""
    versions = record["versions"]
    lines = [
        "# What three tools say of made-up RAPL counters",
        "",
        f"Made by `{record['command']}`; do not edit.",
        "",
        "The counters are files in a tree like that of Linux, written every 50 ms, so the true joules are known; no",
        "power was measured here. Every tool runs in a process of its own. Zeus: the sum of `cpu_energy`, and",
        "`total_energy`. CodeCarbon: CPU, memory (modelled, in every mode) and their sum; the word in brackets is an",
        "attribute inside the tracker, and no field of its output record says how a figure came about.",
        "compressor.energy was asked for measured energy.",
        "",
        f"| scenario | true | Zeus {versions['zeus']} | CodeCarbon {versions['codecarbon']} | compressor.energy |",
        "|---|---|---|---|---|",
    ]
    for entry in record["scenarios"]:
        said = entry["said"]
        cells = (
            entry["name"],
            entry["truth"],
            zeus_cell(said["zeus"]),
            codecarbon_cell(said["codecarbon"]),
            our_cell(said["compressor"]),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    lines += ["", "How each tool was pointed at the tree:", ""]
    lines += [f"- {tool}: {how}" for tool, how in record["redirected"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zeus", help="python of an environment with Zeus")
    parser.add_argument("--codecarbon", help="python of an environment with CodeCarbon")
    parser.add_argument("--table", action="store_true", help="only write the table from the committed record")
    given = parser.parse_args()
    if not given.table:
        if not (given.zeus and given.codecarbon):
            parser.error("give --zeus and --codecarbon, or --table")
        pythons = {"zeus": given.zeus, "codecarbon": given.codecarbon, "compressor": sys.executable}
        scenarios = []
        for number, scenario in enumerate(SCENARIOS):
            print(scenario.name, file=sys.stderr)
            said = {tool: ask(tool, python, number) for tool, python in pythons.items()}
            true_j = [window.true_j for window in scenario.windows]
            scenarios.append(describe(scenario) | {"true_j": true_j, "said": said})
        record = {
            "command": COMMAND,
            "versions": {tool: version(tool, python) for tool, python in pythons.items()},
            "redirected": REDIRECTED,
            "scenarios": scenarios,
        }
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    RECORD.with_suffix(".md").write_text(table(json.loads(RECORD.read_text())))


if __name__ == "__main__":
    main()
