"""What a stage says it cost: nothing lost when it was cut short, no joule where there was no reading."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from compressor import energy
from compressor.errors import ProvenanceError
from compressor.schema.events import Event, Note
from compressor.stages.cost import measure_cost


def no_meter(*, require: str) -> tuple[energy.Source, ...]:
    raise ProvenanceError("none here")


def test_without_a_meter_a_stage_is_estimated_from_its_own_cpu_time_over_all_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "choose_sources", no_meter)
    for _ in range(2):
        with measure_cost(tmp_path) as meter:
            sum(range(10**6))
    cost = meter.cost
    assert meter.is_resumed and cost is not None and cost.energy is not None
    assert cost.energy["kind"] == "estimated" and cost.energy_reason is None
    assert (cost.energy["inputs"]["cpu_s"], cost.energy["wall_s"]) == (cost.cpu_s, cost.wall_s)


def test_a_calibration_of_this_machine_makes_the_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "choose_sources", no_meter)
    line = energy.Calibration(idle_w=1000.0, dynamic_w=500.0, band=0.15, n_vcpu=2, n_readings=2, cpu="x")
    with measure_cost(tmp_path, line) as meter:
        pass
    cost = meter.cost
    assert cost is not None and cost.energy is not None
    assert (cost.energy["kind"], cost.energy["provenance"]) == ("estimated", "model_calibrated")
    assert cost.energy["est_energy_gross_j"] == pytest.approx(1000.0 * cost.wall_s + 250.0 * cost.cpu_s)


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


class Meter:
    """A counter that gains 5 J a second; played, and called measured in this test only."""

    name = label = "played"

    def __init__(self) -> None:
        self.n_read = 0

    def probe(self) -> energy.Probe:
        return energy.Probe("ok", "played")

    def domains(self) -> tuple[energy.Domain, ...]:
        scope, provenance = energy.Scope.CPU_PACKAGE, energy.Provenance.DEVICE_COUNTER
        unit = Fraction(1, 1_000_000)
        return (energy.Domain("package-0", scope, provenance, energy.Quantity.ENERGY, unit, 0.001, 1000.0),)

    def read(self) -> tuple[energy.Sample, ...]:
        self.n_read += 1
        return (energy.Sample("package-0", 10**9 * self.n_read, 5_000_000 * self.n_read),)


def played(*, require: str) -> tuple[energy.Source, ...]:
    meter = Meter()
    return (energy.Source(meter, meter.domains()),)


def test_the_measured_energy_of_a_resumed_stage_is_not_a_part_passed_off_as_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "choose_sources", played)
    with measure_cost(tmp_path) as first:
        pass
    with measure_cost(tmp_path) as second:
        pass
    assert first.cost is not None and first.cost.energy is not None
    assert (first.cost.energy["kind"], first.cost.energy["energy_gross_j"]) == ("measured", 5.0)
    assert second.cost is not None and second.cost.energy is None
    assert (
        second.cost.energy_reason == "the stage was resumed, and what its earlier attempts drew was not read to the end"
    )


def test_a_window_that_gave_no_joules_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def frozen(meter: Meter) -> tuple[energy.Sample, ...]:
        meter.n_read += 1
        return (energy.Sample("package-0", 10**9 * meter.n_read, 7),)

    monkeypatch.setattr(Meter, "read", frozen)
    monkeypatch.setattr(energy, "choose_sources", played)
    with measure_cost(tmp_path) as meter:
        pass
    assert meter.cost is not None and meter.cost.energy is None
    assert meter.cost.energy_reason == "package-0: frozen, no change in 1.00 s"


def test_watching_passes_every_event_on(tmp_path: Path, events: list[Event]) -> None:
    with measure_cost(tmp_path) as meter:
        meter.watching(events.append)(Note("s", "text"))
    assert events == [Note("s", "text")]
