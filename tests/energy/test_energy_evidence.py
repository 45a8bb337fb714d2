"""The committed comparison: its table follows from its record, and in the record we were right."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
RECORD = REPOSITORY / "eval/results/energy-peers.json"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    folder = REPOSITORY / "eval/energy"
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("peers_on_fake_rapl", folder / "peers_on_fake_rapl.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scenarios() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(RECORD.read_text(encoding="utf-8"))["scenarios"]
    return found


def test_the_table_is_that_of_the_record(script: ModuleType) -> None:
    written = RECORD.with_suffix(".md").read_text(encoding="utf-8")
    assert script.table(json.loads(RECORD.read_text(encoding="utf-8"))) == written


def test_the_record_has_every_scenario_of_the_script(script: ModuleType) -> None:
    assert [entry["name"] for entry in scenarios()] == [scenario.name for scenario in script.SCENARIOS]
    assert len(scenarios()) == 10


@pytest.mark.parametrize("entry", scenarios(), ids=lambda entry: entry["name"])
def test_we_gave_the_true_joules_or_none(entry: dict[str, Any]) -> None:
    said = entry["said"]["compressor"]
    for i, true_j in enumerate(entry["true_j"]):
        if true_j is None:
            assert "refused" in said[i] or said[i]["record"]["kind"] == "invalid"
        else:
            record = said[i]["record"]
            assert record["kind"] == "measured"
            # The files change by a step of 50 ms or not at all, so an edge leaves nothing open.
            assert record["energy_gross_j"] == pytest.approx(true_j, abs=2e-6)
