"""Events as lines and as bars."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from compressor.cli.output import duration, megabytes, print_rich, table
from compressor.cli.progress import PLAIN_EVERY_S, PlainProgress, TerminalProgress, describe, watching
from compressor.schema import events
from compressor.schema.events import Event

RUN: list[Event] = [
    events.RunStarted("smoke", "runs/smoke", ("teacher", "onnx")),
    events.StageSkipped("teacher", "runs/smoke/stages/teacher-01234567"),
    events.StageStarted("onnx", "export"),
    events.Note("onnx", "12 attention nodes fused"),
    events.StageFinished("onnx", "runs/smoke/stages/onnx-89abcdef", 95.4, 120.6),
    events.CandidateMeasured("onnx", {"accuracy": 0.91, "latency_s": 0.00123}),
    events.RunFinished("runs/smoke/report.json", "onnx"),
]
LINES = [
    "smoke: 2 steps into runs/smoke: teacher, onnx",
    "teacher: done before, kept (runs/smoke/stages/teacher-01234567)",
    "onnx: export ...",
    "onnx: 12 attention nodes fused",
    "onnx: done in 1 min 35 s, 121 CPU-seconds (runs/smoke/stages/onnx-89abcdef)",
    "onnx: accuracy 0.91, latency_s 0.00123",
    "report: runs/smoke/report.json",
]


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_lasting_event_has_its_line() -> None:
    assert [describe(event) for event in RUN] == LINES
    assert describe(events.Progress("teacher", "train", 1, 2)) is None


def test_plain_lines_are_those_of_the_events() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream)
    for event in RUN:
        progress(event)
    assert stream.getvalue().splitlines() == LINES


def test_plain_progress_speaks_now_and_then_and_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = PlainProgress(stream, clock)
    for step in range(1, 101):
        clock.now += 1.0
        progress(events.Progress("teacher", "train", step, 100, {"loss": 1.0 / step}))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 99 // PLAIN_EVERY_S + 1
    assert lines[0] == "teacher: train 16/100, loss 0.0625, 1 min 19 s left"
    assert lines[-1] == "teacher: train 100/100, loss 0.01"


def test_a_task_of_no_length_is_no_division_by_zero() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = PlainProgress(stream, clock)
    progress(events.Progress("teacher", "train", 0, 10))
    clock.now += PLAIN_EVERY_S
    progress(events.Progress("teacher", "train", 0, 10))
    progress(events.Progress("teacher", "teacher outputs", 0, 0))
    assert stream.getvalue().splitlines() == ["teacher: train 0/10", "teacher: teacher outputs 0/0"]


def test_a_terminal_shows_a_bar_while_a_task_runs_and_keeps_the_lines() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    with TerminalProgress(console) as progress:
        progress(events.StageStarted("teacher", "finetune"))
        progress(events.Progress("teacher", "train", 3, 10, {"loss": 0.5}))
        progress._progress.refresh()
        drawn = stream.getvalue()
        assert "teacher: train" in drawn and "3/10" in drawn and "loss 0.5" in drawn
        progress(events.StageFinished("teacher", "runs/x [bold]", 3.0, 5.0))
        assert progress._progress.task_ids == []
        progress(events.Progress("measure", "rounds", 1, 2))
        progress(events.Progress("measure", "rounds", 2, 2))
        assert progress._progress.task_ids == []
    assert "teacher: done in 3 s, 5 CPU-seconds (runs/x [bold])" in stream.getvalue()


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with watching(quiet=True) as on_event:
        for event in RUN:
            on_event(event)
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert not sys.stderr.isatty()
    with watching(quiet=False) as on_event:
        on_event(RUN[0])
    assert capsys.readouterr() == ("", LINES[0] + "\n")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.9, "1 h 00 min"),
        (4320, "1 h 12 min"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_sizes() -> None:
    assert (megabytes(12_345_678), megabytes(0), megabytes(None)) == ("12.3 MB", "0.0 MB", "-")


def test_a_users_text_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_rich(table(["label", ">score"], [("[bold]x[/] :on:", "0.5000")]), "[MASK] [/nothing]")
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "label             score",
        "[bold]x[/] :on:  0.5000",
        "[MASK] [/nothing]",
    ]


def test_long_lines_are_not_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_rich(table(["a", "b"], [("x" * 70, "y" * 70)]))
    assert "x" * 70 + "  " + "y" * 70 in capsys.readouterr().out
