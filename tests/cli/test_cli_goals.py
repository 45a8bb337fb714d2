"""Goals that were not kept set the exit code."""

from __future__ import annotations

from typing import Literal

import pytest

from compressor.cli.pipelines import check_goals
from compressor.errors import GoalError
from compressor.schema.report import GoalResult, Report


def report(*statuses: Literal["met", "missed", "not_shown"]) -> Report:
    goals = [
        GoalResult(goal={"metric": f"m{i}"}, status=status, value=None, limit=None, text=f"goal {i}")
        for i, status in enumerate(statuses)
    ]
    return Report(
        name="job", created="2026-01-01T00:00:00+00:00", metadata={}, pipeline={}, environment={}, data={}, model="m",
        baseline="teacher", selected=None, selected_reason="", candidates=(), goals=tuple(goals), verdicts=(),
        stage_costs=(), failures=(),
    )  # fmt: skip


def test_goals_that_are_met_say_nothing() -> None:
    check_goals(report("met", "met"), strict=True)
    check_goals(report(), strict=True)


def test_a_missed_goal_is_told() -> None:
    with pytest.raises(GoalError) as caught:
        check_goals(report("met", "missed", "not_shown"), strict=False)
    assert str(caught.value) == "1 of 3 goals not kept:\n  missed: goal 1"
    assert caught.value.exit_code == 3


def test_a_goal_that_is_not_shown_counts_only_when_strict() -> None:
    check_goals(report("met", "not_shown"), strict=False)
    with pytest.raises(GoalError) as caught:
        check_goals(report("met", "not_shown"), strict=True)
    assert str(caught.value) == "1 of 2 goals not kept:\n  not shown: goal 1"
