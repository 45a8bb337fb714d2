"""A pipeline may name the watts of its machine; those of another are refused by name, before any work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compressor import energy
from compressor.errors import UserError
from compressor.measurement.costs import energy_figure, rounds_of
from compressor.measurement.inputs import PreparedWorkload
from compressor.measurement.session import Run, Turn
from compressor.measurement.suite import calibration_of
from compressor.pipeline import run as running
from compressor.pipeline.dry_run import dry_run
from compressor.spec.evaluation import Energy, Workload

SMOKE = Path(__file__).parents[2] / "pipelines" / "smoke.yaml"
LINE = energy.Calibration(idle_w=20.0, dynamic_w=40.0, band=0.02, n_vcpu=2, n_readings=3, cpu="Some CPU")


def machine(root: Path, *, name: str = "Some CPU", flags: str = "fpu") -> Path:
    """A root whose processor has this name, twice."""
    (root / "proc").mkdir()
    block = "processor\t: {}\nmodel name\t: {}\nflags\t\t: {}\n"
    (root / "proc/cpuinfo").write_text("\n".join(block.format(i, name, flags) for i in range(2)))
    return root


def test_the_calibration_of_this_machine_is_read(tmp_path: Path) -> None:
    energy.save_calibration(LINE, tmp_path / "c.json")
    assert calibration_of(Energy(calibration=str(tmp_path / "c.json")), machine(tmp_path)) == LINE
    assert calibration_of(Energy(), tmp_path) is None


@pytest.mark.parametrize(
    ("here", "text"),
    [
        ({"name": "Other CPU"}, "c.json was made on 2 x 'Some CPU'; this machine has 2 x 'Other CPU'"),
        ({"flags": "fpu hypervisor"}, "c.json holds the watts of a whole machine, and this is a guest on one"),
    ],
)
def test_a_calibration_of_another_machine_is_refused_by_name(here: dict[str, str], text: str, tmp_path: Path) -> None:
    energy.save_calibration(LINE, tmp_path / "c.json")
    with pytest.raises(UserError) as caught:
        calibration_of(Energy(calibration=str(tmp_path / "c.json")), machine(tmp_path, **here))
    assert text in str(caught.value)
    assert (caught.value.where, caught.value.exit_code) == ("energy.calibration", 2)


def test_a_run_refuses_it_before_any_work(tmp_path: Path) -> None:
    energy.save_calibration(LINE, tmp_path / "c.json")
    with pytest.raises(UserError, match="was made on 2 x 'Some CPU'; this machine has"):
        running.run(SMOKE, out=tmp_path / "run", overrides=[f"energy.calibration={tmp_path / 'c.json'}"])
    with pytest.raises(UserError, match=r"nowhere\.json is no calibration"):
        running.run(SMOKE, out=tmp_path / "run", overrides=["energy.calibration=nowhere.json"])
    assert not (tmp_path / "run").exists()


def test_a_dry_run_tells_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    energy.save_calibration(LINE, tmp_path / "c.json")
    pipeline = running.load_pipeline(SMOKE, overrides=[f"energy.calibration={tmp_path / 'c.json'}"])

    def told() -> tuple[bool | None, str]:
        return next((one.ok, one.text) for one in dry_run(pipeline).checks if one.name == "energy.calibration")

    ok, text = told()
    assert ok is False and "c.json was made on 2 x 'Some CPU'; this machine has" in text
    monkeypatch.setattr(energy, "identify_cpu", lambda root: energy.Cpu("Some CPU", None, 2, None))
    assert told() == (True, f"{tmp_path / 'c.json'} is of this machine")


def test_stages_are_given_it(tmp_path: Path) -> None:
    pipeline = running.load_pipeline(SMOKE)
    session: Any = SimpleNamespace(pipeline=pipeline, data=None, calibration=LINE, emit=None, run_dir=tmp_path)
    assert running._context(session, "0" * 64, tmp_path).calibration is LINE


def test_what_it_estimates_is_called_calibrated_and_keeps_the_mark() -> None:
    """Ten seconds on 2 processors, of which 10 CPU-seconds: 20 W x 10 s + 40 W / 2 x 10 CPU-s = 400 J."""
    run = Run({"forward": [[Turn(0, 10, 5.0, 5.0, (0.5,), None)], [Turn(0, 10, 5.0, 5.0, (0.5,), None)]]})
    prepared = PreparedWorkload(Workload(id="rows", from_data=True), "forward", Path("x"), 2, 100, 0.0, None, ())
    figure = energy_figure(run, "forward", prepared, rounds_of(run, "forward", prepared), LINE)
    assert figure.result is not None
    assert (figure.result["kind"], figure.result["provenance"]) == ("estimated", "model_calibrated")
    assert figure.figures["est_j_per_input_token"] == pytest.approx(400 / 2000)
    assert figure.figures["est_j_per_input_token_low"] == pytest.approx(0.98 * 400 / 2000)
    without = energy_figure(run, "forward", prepared, rounds_of(run, "forward", prepared))
    assert without.result is not None and without.result["provenance"] == "model_estimated"
