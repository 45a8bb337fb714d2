"""The page on energy: its code runs as it stands, and what it says of types holds for what comes out."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from compressor import energy
from compressor.energy import Calibration, choose_sources, identify_cpu, minimum_window_s, save_calibration
from compressor.spec.evaluation import Energy

PAGE = Path(__file__).resolve().parents[2] / "docs/how-energy-is-measured.md"


def blocks() -> list[str]:
    """Every Python example of the page."""
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def work() -> None:
    """Something that lasts as long as the meters of this machine ask for."""
    needed_s = max(minimum_window_s(domain) for source in choose_sources() for domain in source.domains)
    end = time.monotonic() + 1.05 * needed_s
    while time.monotonic() < end:
        time.sleep(0.01)


def test_the_page_has_its_examples() -> None:
    assert len(blocks()) == 2


def test_the_first_example_prints_joules_that_say_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    exec(blocks()[0], {"work": work})
    printed = capsys.readouterr().out.strip()
    assert re.fullmatch(r"[\d.]+ J \+-[\d.]+ \(.+\)|~[\d.]+ J \(estimated, [\d.]+-[\d.]+\)", printed), printed


def test_the_example_with_a_calibration_reads_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = replace(identify_cpu(), hypervisor=None)  # a guest is refused, and this may be one
    monkeypatch.setattr(energy, "identify_cpu", lambda: cpu)
    save_calibration(Calibration(20.0, 40.0, 0.15, cpu.n_vcpu, 2, cpu.name), tmp_path / "calibration.json")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"work": work}
    exec(blocks()[1], names)
    assert getattr(names["line"], "dynamic_w") == 40.0  # noqa: B009
    assert names["window"].result.wall_s > 0  # type: ignore[attr-defined]


def test_the_factors_of_the_page_are_a_valid_section() -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    section = Energy.model_validate(yaml.safe_load(text)["energy"])
    assert section.carbon is not None
    assert (section.pue, section.carbon.market_source) == (1.2, "supply contract")
