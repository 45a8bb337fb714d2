"""What a run tells while it works: one typed stream for the terminal, notebooks, MLflow and flows.

Every event is a frozen dataclass that JSON can carry; `to_json` and `from_json` are exact inverses, so events cross
process boundaries (training children, measuring workers) as lines of text.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RunStarted:
    """A pipeline begins: its stages in the order in which they run."""

    pipeline: str
    run_dir: str
    stages: tuple[str, ...]


@dataclass(frozen=True)
class StageStarted:
    """A stage begins."""

    stage: str
    kind: str


@dataclass(frozen=True)
class StageSkipped:
    """A finished checkpoint with the same fingerprint was found and verified."""

    stage: str
    path: str


@dataclass(frozen=True)
class StageFinished:
    """A stage left a complete checkpoint; `cpu_s` counts its children too."""

    stage: str
    path: str
    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Progress:
    """Work of known length moves on.

    Attributes:
        stage: whose work; `measure` for measuring.
        task: what is being done, such as `train`, `teacher outputs`, `calibrate`, `test rows`.
        done: units finished.
        total: units in all.
        values: figures worth showing beside the bar, such as `loss` or `accuracy`.
    """

    stage: str
    task: str
    done: int
    total: int
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Note:
    """A sentence the user should see: a choice made for him, or a caveat."""

    stage: str
    text: str


@dataclass(frozen=True)
class CandidateMeasured:
    """A candidate has been judged."""

    candidate: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class RunFinished:
    """The report is written."""

    report_path: str
    selected: str | None


Event = RunStarted | StageStarted | StageSkipped | StageFinished | Progress | Note | CandidateMeasured | RunFinished
Emit = Callable[[Event], None]
"""How rooms below the pipeline speak: a call, nothing more."""

_KINDS: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        RunStarted, StageStarted, StageSkipped, StageFinished, Progress, Note, CandidateMeasured, RunFinished,
    )
}  # fmt: skip


def to_json(event: Event) -> str:
    """One line of JSON for an event."""
    return json.dumps({"event": type(event).__name__, **dataclasses.asdict(event)})


def from_json(line: str) -> Event:
    """The event that `to_json` wrote.

    Raises:
        ValueError: the line is not JSON.
        KeyError: the line names no event.
    """
    values = json.loads(line)
    kind = _KINDS[values.pop("event")]
    if kind is RunStarted:
        values["stages"] = tuple(values["stages"])
    return kind(**values)
