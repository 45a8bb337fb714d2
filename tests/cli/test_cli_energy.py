"""Energy at the command line: what an estimate may not pass for, and what exit code says so."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from compressor import energy
from compressor.measurement.session import find_meters

SMOKE = Path(__file__).resolve().parents[2] / "pipelines" / "smoke.yaml"
Command = Callable[..., CompletedProcess[str]]
needs_no_meter = pytest.mark.skipif(bool(find_meters()), reason="this machine measures energy")


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The record of a window over a RAPL tree made of files, whose counter runs at 50 W."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "energy"))
    machine = importlib.import_module("fake_machine").FakeMachine(tmp_path / "machine")
    machine.add_zone("intel-rapl:0", "package-0")
    with machine.running("intel-rapl:0", 50.0), energy.measure(root=machine.root) as window:
        time.sleep(0.3)
    record: dict[str, Any] = energy.to_json(window.result)
    assert record["kind"] == "measured"
    return record


@needs_no_meter
def test_required_measurements_that_are_not_to_be_had_stop_a_run_before_any_work(
    command: Command, tmp_path: Path
) -> None:
    done = command("run", str(SMOKE), "--require", "measured", "--out", "run")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("measured energy is required, and no meter can give it: ")
    assert done.stderr.endswith("\n  -> compressor meters\n")
    assert not (tmp_path / "run").exists()


@needs_no_meter
def test_a_goal_in_joules_names_cpu_seconds_instead(command: Command, tmp_path: Path) -> None:
    goal = "goals=[{metric: j_per_token, workload: test-rows, max_ratio: 0.9}]"
    done = command("run", str(SMOKE), "--out", "run", "--set", goal)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "goals.0.metric: a goal in joules, but no meter here can measure them, and an estimated ratio is the ratio of "
        "CPU time\n  -> set the goal on cpu_s_per_token, or accept estimates: --set energy.accept=estimated\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_measured_record_verifies(command: Command, tmp_path: Path, measured: dict[str, Any]) -> None:
    (tmp_path / "record.json").write_text(json.dumps({"rows": [measured]}))
    done = command("energy", "verify", "record.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "(RAPL package)" in done.stdout
    assert "record.json: 1 records follow from their raw logs" in done.stdout
    (row,) = json.loads(command("energy", "verify", "record.json", "--json").stdout)
    assert row["energy_gross_j"] == measured["energy_gross_j"]


def test_an_edited_log_does_not_verify(command: Command, tmp_path: Path, measured: dict[str, Any]) -> None:
    samples = measured["windows"][0]["logs"][0]["samples"]
    samples[-1][1] -= 1_000_000
    (tmp_path / "record.json").write_text(json.dumps(measured))
    done = command("energy", "verify", "record.json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "log" in done.stderr and "record.json" in done.stderr


def test_edited_joules_and_an_absent_log_do_not_verify(
    command: Command, tmp_path: Path, measured: dict[str, Any]
) -> None:
    (tmp_path / "less.json").write_text(json.dumps(measured | {"energy_gross_j": measured["energy_gross_j"] / 2}))
    (tmp_path / "none.json").write_text(json.dumps(measured | {"windows": []}))
    for name in ("less.json", "none.json"):
        done = command("energy", "verify", name)
        assert (done.returncode, done.stdout) == (1, "") and name in done.stderr


def test_an_estimate_does_not_verify(command: Command, tmp_path: Path) -> None:
    record = energy.to_json(energy.estimate_energy(cpu_s=1.0, wall_s=1.0))
    (tmp_path / "record.json").write_text(json.dumps(record))
    done = command("energy", "verify", "record.json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "this is an estimate: it has no counter log from which joules could be verified" in done.stderr
