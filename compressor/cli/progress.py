"""Events -> bars in a terminal, or a few plain lines where stderr is none.

One consumer for the whole run. A bar stands for one task of one stage, and goes when its stage ends and leaves a line;
so the screen shows what is being done now, below what has been done.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO, assert_never

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from compressor.cli.output import duration
from compressor.schema import events
from compressor.schema.events import Emit, Event

PLAIN_EVERY_S = 15.0
"""Without a terminal a task speaks at most this often, beside its end."""


@contextmanager
def watching(*, quiet: bool) -> Iterator[Emit]:
    """Show a run's events on stderr while the block runs.

    Yields:
        What to pass as `on_event`.
    """
    if quiet:
        yield _ignore
    elif sys.stderr.isatty():
        with TerminalProgress(Console(stderr=True)) as progress:
            yield progress
    else:
        yield PlainProgress(sys.stderr)


def _ignore(event: Event) -> None:
    """Nobody is watching."""


def describe(event: Event) -> str | None:
    """The lasting line of an event, the same in a terminal and in a log; None for one that leaves none."""
    match event:
        case events.RunStarted():
            return f"{event.pipeline}: {len(event.stages)} steps into {event.run_dir}: {', '.join(event.stages)}"
        case events.StageStarted():
            return f"{event.stage}: {event.kind} ..."
        case events.StageSkipped():
            return f"{event.stage}: done before, kept ({event.path})"
        case events.StageFinished():
            return f"{event.stage}: done in {duration(event.wall_s)}, {event.cpu_s:.0f} CPU-seconds ({event.path})"
        case events.Note():
            return f"{event.stage}: {event.text}"
        case events.CandidateMeasured():
            return f"{event.candidate}: {_figures(event.values)}"
        case events.RunFinished():
            return f"report: {event.report_path}"
        case events.Progress():
            return None
        case _:
            assert_never(event)


def _figures(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


class PlainProgress:
    """Lines for logs and pipes: every lasting event, and now and then how far a task has come."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._tasks: dict[tuple[str, str], tuple[float, float]] = {}  # (stage, task) -> (begun, last spoken)

    def __call__(self, event: Event) -> None:
        """Write what an event has to say."""
        line = self._task_line(event) if isinstance(event, events.Progress) else describe(event)
        if line is not None:
            print(line, file=self._stream, flush=True)

    def _task_line(self, event: events.Progress) -> str | None:
        now, key = self._clock(), (event.stage, event.task)
        begun, spoken = self._tasks.setdefault(key, (now, now))
        is_done = event.done >= event.total
        if not is_done and now - spoken < PLAIN_EVERY_S:
            return None
        self._tasks[key] = (begun, now)
        if is_done:
            del self._tasks[key]
        left = (now - begun) / event.done * (event.total - event.done) if event.done else None
        parts = [
            f"{event.stage}: {event.task} {event.done}/{event.total}",
            *([_figures(event.values)] if event.values else []),
            *([f"{duration(left)} left"] if left is not None and not is_done else []),
        ]
        return ", ".join(parts)


class TerminalProgress:
    """Bars with figures and the time left, under the lines of what is finished."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[figures]}"),
            console=console,
            transient=True,
        )
        self._bars: dict[tuple[str, str], TaskID] = {}

    def __enter__(self) -> TerminalProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Draw what an event has to say."""
        if isinstance(event, events.Progress):
            self._move(event)
            return
        if isinstance(event, events.StageFinished):
            self._clear(event.stage)
        line = describe(event)
        if line is not None:
            self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _move(self, event: events.Progress) -> None:
        key = (event.stage, event.task)
        if key not in self._bars:
            description = f"{event.stage}: {event.task}"
            self._bars[key] = self._progress.add_task(description, total=event.total, figures="")
        bar = self._bars[key]
        self._progress.update(bar, completed=event.done, total=event.total, figures=_figures(event.values))
        if event.done >= event.total:
            self._progress.remove_task(self._bars.pop(key))

    def _clear(self, stage: str) -> None:
        for key in [key for key in self._bars if key[0] == stage]:
            self._progress.remove_task(self._bars.pop(key))
