"""Measured and estimated energy cannot be mistaken for each other, in Python, in text or in JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fake_machine import domain, log

from compressor.energy import (
    CounterWindow,
    Cpu,
    Domain,
    EnergyResult,
    EstimatedEnergy,
    InvalidEnergy,
    MeasuredEnergy,
    Provenance,
    Scope,
    estimate_energy,
    from_json,
    measured_from,
    sum_energy,
    to_json,
    verify,
    verify_file,
    with_idle,
)
from compressor.energy.record import SCHEMA_FILE
from compressor.errors import EnergyError

ZEN3 = Cpu("AMD EPYC 7763", "AMD EPYC 7003 (Zen 3)", 2, "the CPU flag 'hypervisor' is set")
SCHEMA = json.loads(SCHEMA_FILE.read_text())


def measured(joules: float = 1.93, start_s: float = 0.0, of: Domain | None = None, boot: str = "b") -> MeasuredEnergy:
    samples = ((start_s, 5), (start_s + 1.0, 5 + round(joules * 1e6)))
    return measured_from([CounterWindow((log(of or domain(), *samples),), boot_id=boot)], meter="RAPL")


def estimated(cpu_s: float = 1.0) -> EstimatedEnergy:
    return estimate_energy(cpu_s=cpu_s, wall_s=1.0, cpu=ZEN3)


GPU = domain("GPU-1", Scope.GPU_BOARD)
INVALID = InvalidEnergy("the counter was reset", "RAPL", 1.0, (Scope.CPU_PACKAGE,))


def test_the_two_types_share_no_joule_attribute() -> None:
    joules = [
        {field.name for field in dataclasses.fields(type) if field.name.endswith("_j")}
        for type in (MeasuredEnergy, EstimatedEnergy, InvalidEnergy)
    ]
    assert joules[0] == {"energy_gross_j", "energy_uncertainty_j", "energy_net_j"}
    assert len(joules[1]) == 6
    assert joules[0] & joules[1] == joules[2] == set()


def test_provenance_is_ordered_and_only_the_first_three_are_measured() -> None:
    names = "wall_metered device_counter device_power_integrated device_modelled attributed model_calibrated"
    assert [p.value for p in Provenance] == [*names.split(), "model_estimated", "simulated"]
    assert [p.is_measured for p in Provenance] == [True] * 3 + [False] * 5
    assert Provenance.worst([Provenance.ATTRIBUTED, Provenance.WALL_METERED]) is Provenance.ATTRIBUTED


@pytest.mark.parametrize("provenance", [p for p in Provenance if not p.is_measured])
def test_a_counter_of_lower_provenance_cannot_become_a_measured_result(provenance: Provenance) -> None:
    with pytest.raises(EnergyError, match=f"provenance {provenance.value} may not be called measured"):
        measured(of=domain(provenance=provenance))


def test_a_measured_result_without_a_log_cannot_be_made() -> None:
    with pytest.raises(EnergyError, match="must carry its raw counter log"):
        dataclasses.replace(measured(), windows=())


def test_printing_shows_which_is_which() -> None:
    assert str(measured()) == "1.930 J +-0.002 (RAPL package)"
    wide = dataclasses.replace(measured(), energy_uncertainty_j=0.04)
    assert str(wide) == f"{wide}" == "1.93 J +-0.04 (RAPL package)"
    made = dataclasses.replace(
        estimated(), est_energy_gross_j=1.91, est_energy_gross_low_j=1.33, est_energy_gross_high_j=4.28
    )
    assert str(made) == f"{made}" == "~1.9 J (estimated, 1.3-4.3)"
    assert str(INVALID) == "not measured: the counter was reset (RAPL)"


def test_windows_of_one_scope_add_up_in_time() -> None:
    both = measured(1.5) + measured(2.5, start_s=3.0)
    assert isinstance(both, MeasuredEnergy)
    assert (both.energy_gross_j, both.wall_s, len(both.windows)) == (4.0, 2.0, 2)
    assert verify(to_json(both)) == both


def test_parts_of_one_machine_share_their_time() -> None:
    both = measured(1.5) + measured(100.0, of=GPU)
    assert (both.wall_s, both.scopes) == (1.0, (Scope.CPU_PACKAGE, Scope.GPU_BOARD))
    assert isinstance(both, MeasuredEnergy) and verify(to_json(both)) == both


def test_measured_and_estimated_add_up_to_an_estimate_from_either_side() -> None:
    gpu, cpu = measured(100.0, of=GPU), estimated()
    for total in (gpu + cpu, cpu + gpu):
        assert isinstance(total, EstimatedEnergy)
        assert total.est_energy_gross_j == pytest.approx(100.0 + (cpu.est_energy_gross_j or 0.0))
        assert total.est_energy_gross_high_j == pytest.approx(100.100001 + (cpu.est_energy_gross_high_j or 0), abs=1e-5)
        assert total.provenance is Provenance.MODEL_ESTIMATED
        with pytest.raises(EnergyError, match="this is an estimate"):
            verify(to_json(total))


def test_scopes_that_overlap_are_never_added() -> None:
    with pytest.raises(EnergyError, match="scopes cpu_package and vm_share overlap and are never added"):
        measured() + estimated()
    with pytest.raises(EnergyError, match="scopes cpu_package and platform_psys overlap"):
        measured() + measured(of=domain("psys", Scope.PLATFORM_PSYS))


def test_the_same_counter_over_the_same_time_is_not_added_twice() -> None:
    with pytest.raises(EnergyError, match="package-0 was read in both windows at the same time"):
        measured() + measured(start_s=0.5)
    assert (measured() + measured(start_s=0.5, boot="another")).wall_s == 2.0


def test_one_invalid_part_makes_the_sum_invalid() -> None:
    for parts in ([measured(), INVALID, measured(start_s=5)], [INVALID, measured()]):
        assert sum_energy(parts) is INVALID
    with pytest.raises(EnergyError, match="the list of results is empty"):
        sum_energy([])


def test_an_estimate_needs_a_band_around_its_value() -> None:
    with pytest.raises(EnergyError, match="a gross estimate needs its band"):
        dataclasses.replace(estimated(), est_energy_gross_low_j=None)
    with pytest.raises(EnergyError, match="lies outside its band"):
        dataclasses.replace(estimated(), est_energy_gross_low_j=1e9)
    with pytest.raises(EnergyError, match="a missing net estimate needs its reason"):
        dataclasses.replace(estimated(), est_energy_net_j=None, est_energy_net_low_j=None, est_energy_net_high_j=None)


def test_net_energy_comes_from_idle_windows_and_verifies() -> None:
    idle = [(log(domain(), (t, 0), (t + 1, 40_000_000)),) for t in (0, 9)]
    result = with_idle(measured(100.0), *idle)
    assert result.energy_net_j == pytest.approx(60.0)
    assert verify(to_json(result)) == result
    refused = with_idle(measured(100.0), idle[0], (log(domain(), (9, 0), (10, 60_000_000)),))
    assert refused.energy_net_j is None
    assert "idle power moved from 40 W to 60 W" in (refused.net_reason or "")


@pytest.mark.parametrize("result", [measured(), estimated(), INVALID], ids=lambda result: type(result).__name__)
def test_a_record_survives_json_and_fits_its_schema(result: EnergyResult) -> None:
    record = json.loads(json.dumps(to_json(result)))
    jsonschema.validate(record, SCHEMA)
    assert from_json(record) == result


def test_measured_and_estimated_records_share_no_joule_key() -> None:
    keys = [{key for key in to_json(result) if key.endswith("_j")} for result in (measured(), estimated(), INVALID)]
    assert keys[0] & keys[1] == keys[2] == set()


def edited(result: EnergyResult, **changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(to_json(result))) | changes


@pytest.mark.parametrize(
    "record",
    [
        {key: value for key, value in to_json(estimated()).items() if not key.endswith("gross_low_j")},
        edited(estimated(), est_energy_gross_low_j=None),
        edited(estimated(), est_energy_gross_j=None),
        edited(estimated(), energy_gross_j=1.0),
        edited(estimated(), kind="measured"),
        edited(measured(), windows=[]),
        edited(measured(), windows=[{"boot_id": None, "logs": [], "idle_before": [], "idle_after": []}]),
        edited(measured(), provenance="attributed"),
        {key: value for key, value in to_json(measured()).items() if key != "windows"},
        edited(INVALID, reason=""),
    ],
)
def test_the_schema_and_the_reader_reject_what_must_not_pass(record: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record, SCHEMA)
    if record["kind"] == "measured":
        with pytest.raises(EnergyError):
            verify(record)


def with_sample(index: int, raw: object) -> dict[str, Any]:
    record = edited(measured_from([CounterWindow((log(domain(), (0, 0), (1, 1000), (2, 2_000_000)),))], meter="RAPL"))
    record["windows"][0]["logs"][0]["samples"][index][1] = raw
    return record


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (edited(measured(), energy_gross_j=0.5), r"energy_gross_j says 0\.5, but the raw log gives 1\.93"),
        (edited(measured(), energy_net_j=0.5), r"energy_net_j says 0\.5, but the raw log gives None"),
        (edited(measured(), wall_s=9.0), r"wall_s says 9\.0, but the raw log spans 1\.0"),
        (edited(measured(), windows=[]), "the raw counter log is absent"),
        (with_sample(2, 1_000_000), "the raw counter log has been edited"),
        # A counter's middle samples do not change its sum; the digest still sees it.
        (with_sample(1, 1001), "the raw counter log has been edited"),
        (with_sample(1, 1000.5), "raw samples are integers"),
        (edited(measured(), scopes=["node_wall_ac"]), "provenance or scope differ"),
        (edited(measured(), schema="energy-result/9"), "expected schema 'energy-result/1', found 'energy-result/9'"),
        (edited(estimated()), "this is an estimate"),
        (edited(INVALID), "kind is 'invalid', not 'measured'"),
        ({"kind": "measured", "schema": "energy-result/1"}, "not a complete energy-result/1 record: KeyError"),
    ],
)
def test_verify_recomputes_and_refuses(record: dict[str, Any], text: str) -> None:
    with pytest.raises(EnergyError, match=text):
        verify(record)


def test_a_file_is_verified_at_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"a": [{"energy": to_json(measured())}], "b": to_json(measured(2.0))}))
    assert [result.energy_gross_j for result in verify_file(path)] == [1.93, 2.0]
    path.write_text(json.dumps({"a": [{"energy": to_json(estimated())}]}))
    with pytest.raises(EnergyError, match=r"report\.json:a\[0\]\.energy: this is an estimate"):
        verify_file(path)
    path.write_text("{}")
    with pytest.raises(EnergyError, match="holds no energy-result/1 record"):
        verify_file(path)
    path.write_text("{")
    with pytest.raises(EnergyError, match="is not JSON"):
        verify_file(path)
    with pytest.raises(EnergyError, match="cannot be read: No such file"):
        verify_file(tmp_path / "none.json")


# Notebooks


def test_a_notebook_shows_a_measurement_as_one_and_an_estimate_marked() -> None:
    of_counter, of_model = measured()._repr_html_(), estimated()._repr_html_()
    assert "<caption>measured: 1.93" in of_counter and "J +-0.002 (RAPL package)</caption>" in of_counter
    assert "<th scope='row'>energy_gross_j</th>" in of_counter and "estimated" not in of_counter
    assert f"<caption>estimated, not measured: {estimated()}</caption>" in of_model
    assert "<th scope='row'>est_energy_gross_j</th><td>~" in of_model and "(estimated, " in of_model
    assert ">energy_gross_j<" not in of_model and "model_estimated" in of_model
    assert "one vCPU may be one or two hardware threads" in of_model


def test_a_notebook_shows_a_reason_where_there_is_no_number() -> None:
    shown = dataclasses.replace(INVALID, reason="<b>lost</b>")._repr_html_()
    assert "<caption>not measured: &lt;b&gt;lost&lt;/b&gt; (RAPL)</caption>" in shown
    assert "_j<" not in shown and "<b>" not in shown
    assert "no idle power was measured before and after the window" in measured()._repr_html_()
