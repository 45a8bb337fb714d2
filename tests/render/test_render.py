"""Reports as text: golden files, and no joule without its provenance."""

from __future__ import annotations

import copy
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from compressor.render import markdown, terminal_table, words
from compressor.schema.report import EnergyFigure, Interval, Quality, Ratio, Report, read_report

HERE = Path(__file__).parent
REPORT = read_report(HERE / "report.json")

JOULES = re.compile(r"[\d.,]+ [GMkmµn]?J\b(?! /)")
MARKED = re.compile(r"~[\d.,]+ [GMkmµn]?J \((simulated, )?estimated, [\d.,]+(-| to )[\d.,]+\)")
METERED = re.compile(
    r"[\d.,]+ [GMkmµn]?J( \+-[\d.,]+ [GMkmµn]?J)? \([A-Za-z][\w ]+ (package|DRAM|wall|GPU board|SoC)[^)]*\)"
)


def as_terminal(report: Report, width: int = 170) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False, legacy_windows=False)
    console.print(terminal_table(report), highlight=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


def unmarked_joules(text: str) -> list[str]:
    """Figures in joules that do not say where they come from."""
    return JOULES.findall(METERED.sub("", MARKED.sub("", text.replace("\\~", "~"))))


def changed(change: dict[str, Any]) -> Report:
    """The report with one measurement's energy replaced."""
    values = json.loads(REPORT.model_dump_json(by_alias=True))
    values["candidates"][0]["measurements"][0]["energy"] = change
    return Report.model_validate(values)


def test_markdown_is_the_golden_file() -> None:
    """Regenerate on purpose only: print(markdown(REPORT))."""
    assert markdown(REPORT) == (HERE / "report.md").read_text(encoding="utf-8")


def test_the_terminal_is_the_golden_file() -> None:
    lines = [line.rstrip() for line in as_terminal(REPORT).splitlines()]
    assert lines == (HERE / "report.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("text", [markdown(REPORT), as_terminal(REPORT, 400)], ids=["markdown", "terminal"])
def test_every_joule_says_where_it_comes_from(text: str) -> None:
    assert len(JOULES.findall(text)) >= 5
    assert unmarked_joules(text) == []


def test_that_check_can_fail() -> None:
    assert unmarked_joules("| int8 | 1.9 mJ |") == ["1.9 mJ"]
    assert unmarked_joules("~1.9 mJ") == ["1.9 mJ"]
    assert unmarked_joules("~1.9 mJ (estimated, 1.3-4.3) and 2.00 J +-0.04 J (RAPL package)") == []


def test_a_measured_figure_names_its_meter_and_has_no_tilde() -> None:
    result = {"kind": "measured", "meter": "RAPL", "scopes": ["cpu_package", "dram"], "provenance": "device_counter"}
    report = changed({"result": result, "reason": None, "figures": {"j_per_input_token": 0.00193}})
    assert "1.93 mJ (RAPL package, DRAM)" in markdown(report)
    assert unmarked_joules(markdown(report)) == []


def test_a_simulated_figure_says_that_it_is() -> None:
    figures = {"est_j_per_input_token": 1e-3, "est_j_per_input_token_low": 1e-3, "est_j_per_input_token_high": 1e-3}
    report = changed({"result": {"kind": "estimated", "provenance": "simulated"}, "reason": None, "figures": figures})
    assert "1.0 mJ (simulated, estimated, 1.0-1.0)" in markdown(report)


def test_no_figure_gives_its_reason_and_no_number() -> None:
    for result in (None, {"kind": "invalid", "reason": "unused"}):
        report = changed({"result": result, "reason": "the counter stood still", "figures": {}})
        assert "- (the counter stood still)" in markdown(report)


def test_an_invalid_measurement_is_marked() -> None:
    values = json.loads(REPORT.model_dump_json(by_alias=True))
    values["candidates"][0]["measurements"][0]["valid"] = False
    assert "(not valid)" in markdown(Report.model_validate(values))


def test_estimate_mode_leads_with_cpu_seconds_and_says_what_joules_show() -> None:
    header = next(line for line in markdown(REPORT).splitlines() if line.startswith("| candidate | runs as"))
    columns = [cell.strip() for cell in header.strip("|").split("|")]
    assert columns.index("CPU-s / input token") < columns.index("J / input token (estimated)")
    assert "they show no more than those two do" in markdown(REPORT)
    assert "energy saved" not in markdown(REPORT)


def test_text_from_outside_cannot_break_a_table_or_become_markup() -> None:
    values = json.loads(REPORT.model_dump_json(by_alias=True))
    values["candidates"][0]["quality"][0]["dataset"] = "a|b"
    values["failures"] = [{"where": "[red]x", "error": "E", "text": "two\nlines | [bold]"}]
    report = Report.model_validate(values)
    assert "E: two lines \\| [bold]" in markdown(report)
    assert "[red]x: E: two" in as_terminal(report)


def test_an_empty_report_renders() -> None:
    empty = REPORT.model_copy(update={"candidates": (), "goals": (), "verdicts": (), "stage_costs": (), "failures": ()})
    assert "Selected" in markdown(empty)
    assert "selected" in as_terminal(empty)


def test_rendering_changes_nothing() -> None:
    before = copy.deepcopy(REPORT)
    markdown(REPORT)
    as_terminal(REPORT)
    assert before == REPORT


# Words ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00077, "770 µs"),
        (0.0009996, "1.00 ms"),
        (1.0, "1.00 s"),
        (183.2, "183 s"),
        (0.0, "0 s"),
        (2.5e-9, "2.50 ns"),
        (12345.0, "12.3 ks"),
    ],
)
def test_units(value: float, text: str) -> None:
    assert words.with_unit(value, "s") == text if value else words.significant(value) == "0"


@settings(deadline=None)
@given(st.floats(1e-9, 1e9))
def test_a_printed_number_is_within_its_digits(value: float) -> None:
    number, _, unit = words.with_unit(value, "J").partition(" ")
    factor = {"G": 1e9, "M": 1e6, "k": 1e3, "": 1.0, "m": 1e-3, "µ": 1e-6, "n": 1e-9}[unit[:-1]]
    assert float(number.replace(",", "")) * factor == pytest.approx(value, rel=0.0051)


def test_shares_ratios_and_spans() -> None:
    row = Quality(
        metric="accuracy", dataset="d", split="test", value=0.8651, ci95=Interval(low=0.84, high=0.88), n=9, paired=None
    )
    assert words.quality(row) == "86.5 % (84.0-88.0)"
    assert words.quality(None) == "-"
    ratio = Ratio(against="a", value=0.1667, ci95=Interval(low=0.16, high=0.17))
    assert words.ratio(ratio) == "0.167x (0.160-0.170)"
    assert words.ratio(None) == "-"
    assert words.span("-0.1", "0.2") == "-0.1 to 0.2"


def test_total_energy_of_a_stage() -> None:
    measured = {
        "kind": "measured", "meter": "RAPL", "scopes": ["cpu_package"], "energy_gross_j": 1234.0,
        "energy_uncertainty_j": 2.0,
    }  # fmt: skip
    assert words.total_energy(EnergyFigure(result=measured, reason=None)) == "1.23 kJ +-2 J (RAPL package)"
    assert words.total_energy(EnergyFigure(result=None, reason="made elsewhere")) == "- (made elsewhere)"
    invalid = {"kind": "invalid", "reason": "frozen"}
    assert words.total_energy(EnergyFigure(result=invalid, reason="frozen")) == "- (frozen)"
