"""The gate: what it lets through, what it refuses, and what a CI server reads of it."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from finished import finished, values

from compressor.errors import GoalError, ProvenanceError, UserError
from compressor.integrations.gate import Check, check_gate, failing, junit, raise_if_failing, summary, to_json
from compressor.schema.report import write_report


def statuses(**limits: Any) -> dict[str, str]:
    report = limits.pop("report", None) or finished()
    return {check.name: check.status for check in check_gate(report, **limits)}


def with_rows(**parts: Any) -> Any:
    """The report whose measurements all have these values."""
    found = values()
    for candidate in found["candidates"]:
        for row in candidate["measurements"]:
            row.update(copy.deepcopy(parts))
    return finished(candidates=found["candidates"])


@pytest.mark.parametrize(
    ("drop", "status"),
    # int8 is 0.9 points down, and its 95 % interval reaches from 2.5 points down to 0.7 up
    [(0.03, "met"), (0.01, "not_shown"), (0.0, "not_shown")],
)
def test_quality_is_held_to_points(drop: float, status: str) -> None:
    assert statuses(max_accuracy_drop=drop) == {"accuracy is kept": status}


@pytest.mark.parametrize(
    ("reduction", "status"),
    # CPU time is 0.156 (0.152 to 0.160) of the baseline's
    [(0.3, "met"), (0.84, "met"), (0.845, "not_shown"), (0.9, "missed")],
)
def test_cost_is_held_to_a_share(reduction: float, status: str) -> None:
    assert statuses(min_reduction=reduction) == {"cpu_s_per_token is reduced": status}


def test_a_counted_cost_needs_no_workload() -> None:
    assert statuses(min_reduction=0.1, cost="size_bytes").keys() == {"size_bytes is reduced"}


def test_a_session_that_proves_nothing_shows_nothing() -> None:
    smoke = check_gate(with_rows(profile="smoke"), min_reduction=0.3)[0]
    assert smoke.status == "not_shown"
    assert smoke.text.endswith("not shown, since windows of the profile smoke are too short to judge a cost on")
    disturbed = check_gate(with_rows(valid=False, remarks=["others used 40 % of the machine"]), min_reduction=0.3)[0]
    assert disturbed.status == "not_shown"
    assert "the session is not valid (others used 40 % of the machine)" in disturbed.text


def test_without_limits_the_goals_of_the_pipeline_count() -> None:
    assert statuses() == {"goal: accuracy": "met", "goal: cpu_s_per_token": "met"}
    with pytest.raises(UserError, match="nothing to check"):
        check_gate(finished(goals=[]))


def test_folders_that_were_measured_without_a_pipeline_have_a_first_workload_too() -> None:
    report = finished(measured=True, pipeline={}, goals=[])
    assert set(statuses(report=report, min_reduction=0.3, require="measured").values()) == {"met"}


def test_measured_energy_can_be_required() -> None:
    checks = check_gate(finished(), require="measured", min_reduction=0.3)
    assert [check.status for check in checks] == ["met", "missed"]
    assert checks[1].text == "energy of int8 on rows (forward) is estimated, not measured"
    with pytest.raises(ProvenanceError, match="1 of 2 checks failed"):
        raise_if_failing(checks, strict=False)
    assert (
        statuses(report=finished(measured=True), require="measured", min_reduction=0.3)["energy is measured"] == "met"
    )


def test_a_run_that_selected_nothing_does_not_pass() -> None:
    checks = check_gate(
        finished(selected=None, selected_reason="no candidate keeps the quality goals"), min_reduction=0.1
    )
    assert checks == (Check("selected", "missed", "no candidate was selected: no candidate keeps the quality goals"),)


def test_the_baseline_itself_saves_nothing() -> None:
    report = finished(selected="teacher")
    assert statuses(report=report, min_reduction=0.1, max_accuracy_drop=0) == {
        "accuracy is kept": "met",
        "cpu_s_per_token is reduced": "missed",
    }


def test_what_is_not_shown_fails_only_under_strict() -> None:
    checks = check_gate(finished(), max_accuracy_drop=0.01)
    raise_if_failing(checks, strict=False)
    assert failing(checks, strict=True) == checks
    with pytest.raises(GoalError, match="1 of 1 checks failed:\n  not shown: accuracy of int8"):
        raise_if_failing(checks, strict=True)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_accuracy_drop": 0.01, "metric": "f1"}, "no metric 'f1'\n  -> --metric with one of: accuracy"),
        ({"min_reduction": 0.3, "cost": "watts"}, "there is no cost 'watts'\n  -> one of: latency_s"),
        ({"min_reduction": 0.3, "workload": "night"}, "no workload 'night'\n  -> --workload with one of: rows"),
        ({"max_accuracy_drop": 1.5}, "a drop of 1.5 is no share"),
        ({"min_reduction": 30}, "a reduction of 30 is no share"),
    ],
)
def test_a_limit_that_means_nothing_is_the_users_mistake(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_gate(finished(), **limits)


@pytest.mark.parametrize("strict", [False, True])
def test_junit_counts_what_a_ci_server_counts(strict: bool) -> None:
    report = finished()
    checks = check_gate(report, max_accuracy_drop=0.01, min_reduction=0.9, require="measured")
    root = ElementTree.fromstring(junit(report, checks, strict=strict))
    suite = root.find("testsuite")
    assert root.tag == "testsuites" and suite is not None
    assert len(suite.findall("testcase")) == int(suite.attrib["tests"]) == 3
    assert len(suite.findall("testcase/failure")) == int(suite.attrib["failures"]) == (3 if strict else 2)
    assert len(suite.findall("testcase/skipped")) == int(suite.attrib["skipped"]) == (0 if strict else 1)


def test_the_summary_is_one_table_that_no_text_can_break() -> None:
    text = summary(finished(), [Check("a", "missed", "one | two\nthree")], strict=False)
    assert text.startswith("## Compression gate: failed\n")
    assert text.splitlines()[-1] == "| a | missed | one \\| two three |"
    assert to_json(finished(), [Check("a", "met", "fine")], strict=False)["passed"] is True


def test_exit_codes_and_files(tmp_path: Path) -> None:
    write_report(finished(), tmp_path / "report.json")
    base = [sys.executable, "-m", "compressor.cli", "gate", str(tmp_path), "--summary", str(tmp_path / "s.md")]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*base, *arguments], capture_output=True, text=True, check=False)

    passed = run("--max-accuracy-drop", "0.03", "--min-reduction", "0.3", "--junit", str(tmp_path / "j.xml"))
    assert (passed.returncode, passed.stderr.count("written")) == (0, 2)
    assert "int8 selected" in passed.stdout
    missed = run("--min-reduction", "0.9", "--json")
    assert missed.returncode == 3 and '"passed": false' in missed.stdout and "checks failed" not in missed.stdout
    assert run("--max-accuracy-drop", "0.03", "--metric", "f1").returncode == 2
    assert ElementTree.parse(tmp_path / "j.xml").getroot().tag == "testsuites"
    assert (tmp_path / "s.md").read_text().count("## Compression gate") == 2
