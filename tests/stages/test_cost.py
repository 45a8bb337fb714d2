"""What a stage says it cost: nothing lost when it was cut short, no joule where there was no reading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compressor import energy
from compressor.schema.events import Event, Note
from compressor.stages.cost import measure_cost


def test_a_window_too_short_to_read_has_a_reason_and_no_joules(tmp_path: Path) -> None:
    with measure_cost(tmp_path) as meter:
        pass
    assert meter.cost is not None
    assert meter.cost.energy is None
    assert meter.cost.energy_reason is not None and "needs at least" in meter.cost.energy_reason


def test_an_attempt_that_was_cut_short_is_counted(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), measure_cost(tmp_path) as first:
        sum(range(10**6))
        raise ZeroDivisionError
    assert first.cost is None
    journal = json.loads((tmp_path / "cost.json").read_text())
    assert journal["wall_s"] > 0 and journal["cpu_s"] > 0
    with measure_cost(tmp_path) as second:
        pass
    assert second.is_resumed and not first.is_resumed
    assert second.cost is not None
    assert second.cost.wall_s > journal["wall_s"] and second.cost.cpu_s >= journal["cpu_s"]


class Window:
    """An energy window that read something, as it would in a longer stage."""

    result = energy.estimate_energy(cpu_s=3.0, wall_s=4.0)

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *error: object) -> None:
        return None


def test_the_energy_of_a_resumed_stage_is_not_a_part_passed_off_as_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "measure", Window)
    with measure_cost(tmp_path) as first:
        pass
    with measure_cost(tmp_path) as second:
        pass
    assert first.cost is not None and first.cost.energy is not None
    assert first.cost.energy["kind"] == "estimated" and first.cost.energy_reason is None
    assert second.cost is not None and second.cost.energy is None
    assert (
        second.cost.energy_reason == "the stage was resumed, and what its earlier attempts drew was not read to the end"
    )


def test_watching_passes_every_event_on(tmp_path: Path, events: list[Event]) -> None:
    with measure_cost(tmp_path) as meter:
        meter.watching(events.append)(Note("s", "text"))
    assert events == [Note("s", "text")]
