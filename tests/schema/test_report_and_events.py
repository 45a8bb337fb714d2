"""The typed things that travel: what is written reads back, and what is not ours is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from compressor.errors import UserError
from compressor.schema.events import (
    CandidateMeasured,
    Event,
    Note,
    Progress,
    RunFinished,
    RunStarted,
    StageFinished,
    StageSkipped,
    StageStarted,
    from_json,
    to_json,
)
from compressor.schema.report import SCHEMA, Report, read_report, write_report

MADE_UP = Path(__file__).parent.parent / "render" / "report.json"
TEXT = st.text(max_size=30)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
COUNT = st.integers(0, 10**9)
EVENTS = st.one_of(
    st.builds(RunStarted, TEXT, TEXT, st.lists(TEXT, max_size=4).map(tuple)),
    st.builds(StageStarted, TEXT, TEXT),
    st.builds(StageSkipped, TEXT, TEXT),
    st.builds(StageFinished, TEXT, TEXT, NUMBER, NUMBER),
    st.builds(Progress, TEXT, TEXT, COUNT, COUNT, st.dictionaries(TEXT, NUMBER, max_size=3)),
    st.builds(Note, TEXT, TEXT),
    st.builds(CandidateMeasured, TEXT, st.dictionaries(TEXT, NUMBER, max_size=3)),
    st.builds(RunFinished, TEXT, st.none() | TEXT),
)


@settings(deadline=None)
@given(EVENTS)
def test_an_event_is_one_line_and_reads_back(event: Event) -> None:
    line = to_json(event)
    assert "\n" not in line
    assert from_json(line) == event


def test_a_line_that_is_no_event() -> None:
    with pytest.raises(KeyError):
        from_json('{"event": "Dance"}')
    with pytest.raises(ValueError):
        from_json("hello")


def test_a_report_reads_back(tmp_path: Path) -> None:
    report = read_report(MADE_UP)
    write_report(report, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report
    assert json.loads((tmp_path / "report.json").read_text())["schema"] == SCHEMA
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_candidates_are_found_by_id() -> None:
    report = read_report(MADE_UP)
    assert report.candidate("int8").scheme == "w8a8-dynamic"
    with pytest.raises(KeyError):
        report.candidate("nobody")


def test_the_keys_that_others_read_are_there() -> None:
    """The interface that rendering, cards and users' scripts depend on."""
    report = json.loads(MADE_UP.read_text())
    assert set(report) >= {
        "schema", "environment", "data", "baseline", "selected", "candidates", "goals", "verdicts", "stage_costs",
        "failures",
    }  # fmt: skip
    candidate = report["candidates"][0]
    assert set(candidate) >= {"id", "stage", "runtime", "scheme", "parameters", "size_bytes", "quality", "measurements"}
    assert set(candidate["quality"][0]) >= {"metric", "dataset", "split", "value", "ci95", "n", "paired"}
    assert set(candidate["measurements"][0]) >= {
        "workload", "phase", "session", "profile", "latency_s_p50", "tokens_per_s", "cpu_s_per_token", "energy",
    }  # fmt: skip


def test_a_missing_report_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no report here") as caught:
        read_report(tmp_path / "report.json")
    assert caught.value.hint == "compressor run PIPELINE --out RUN"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", "not a compressor-report/1 report: it names no schema"),
        ("not JSON", "not JSON: Expecting value: line 1"),
        (
            '{"schema": "compressor-report/2"}',
            "this is 'compressor-report/2', and this version reads 'compressor-report/1'",
        ),
        ('{"schema": "compressor-report/1", "extra": 1}', "not a compressor-report/1 report: name: Field required"),
    ],
)
def test_a_file_that_is_no_report(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(UserError, match=expected):
        read_report(path)


def test_a_report_cannot_be_changed() -> None:
    report = read_report(MADE_UP)
    with pytest.raises(ValidationError):
        report.selected = "teacher"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Report.model_validate({**json.loads(MADE_UP.read_text()), "winner": "int8"})
