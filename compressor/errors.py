"""Every error a user can meet, as one tree.

    CompressorError            exit 1   something failed; the message says what, where and what to do next
    +-- UserError              exit 2   the user's to mend
    |   +-- PipelineError               the YAML: all problems at once, each with file, line and path
    |   +-- DataError                   rows, columns, labels, splits
    |   +-- CheckpointError             a folder that is missing, half-written, corrupt or tampered with
    |   +-- UnsupportedError            an architecture, operator, scheme or provider we cannot serve
    |   +-- MissingPackageError         an optional package, with the pip command that brings it
    +-- StageError             exit 1   a stage could not do its work (diverged, changed nothing, ...)
    +-- EnergyError            exit 1   a meter or window that gave no valid reading
    +-- GateError              exit 3   a promise not kept
    |   +-- ParityError                 a conversion that should change nothing changed something
    |   +-- GoalError                   a goal missed, or not shown under --strict
    |   +-- ProvenanceError             measured energy was required and only an estimate is to be had
    +-- InterruptedRunError    exit 130 stopped by the user; finished stages are kept and the run resumes

Only the command line turns these into text and exit codes. Anything else that escapes is a bug and shows its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class CompressorError(Exception):
    """What went wrong, where, and the next thing to do.

    Args:
        message: what is wrong, in one sentence.
        where: file, file:line, or the path inside a pipeline.
        hint: what to do next; a command where there is one.
    """

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.message = message
        self.where = where
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  -> {self.hint}" if self.hint else text


class UserError(CompressorError):
    """A mistake the user can mend."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One mistake in a pipeline file.

    Attributes:
        message: what is wrong.
        path: dotted path inside the pipeline, such as ``stages.1.epochs``.
        line: line in the file, counted from 1; None when the value came from an override or from Python.
        hint: the nearest valid key, or what to do.
    """

    message: str
    path: str = ""
    line: int | None = None
    hint: str | None = None


class PipelineError(UserError):
    """All the mistakes of one pipeline, together."""

    def __init__(self, file: str, problems: Sequence[Problem]) -> None:
        self.file = file
        self.problems = tuple(problems)
        lines = []
        for problem in self.problems:
            place = f"{file}:{problem.line}" if problem.line is not None else file
            path = f" {problem.path}:" if problem.path else ""
            lines.append(f"{place}:{path} {problem.message}" + (f"\n  -> {problem.hint}" if problem.hint else ""))
        super().__init__("\n".join(lines))


class DataError(UserError):
    """Rows, columns, labels or splits that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint folder that is missing, half-written, corrupt or tampered with."""


class UnsupportedError(UserError):
    """An architecture, operator, scheme or provider that this toolkit cannot serve."""


class MissingPackageError(UserError):
    """An optional package is not installed.

    Args:
        package: the name of the import.
        extra: our extra that brings it (``pip install 'joule-compressor[extra]'``).
        needed_for: what the user asked for.
    """

    def __init__(self, package: str, *, extra: str, needed_for: str) -> None:
        self.package = package
        super().__init__(
            f"{needed_for} needs the package {package!r}, which is not installed",
            hint=f"pip install 'joule-compressor[{extra}]'",
        )


class StageError(CompressorError):
    """A stage could not do its work."""


class EnergyError(CompressorError):
    """A meter or a window that gave no valid reading."""


class GateError(CompressorError):
    """A promise that was checked and not kept."""

    exit_code = 3


class ParityError(GateError):
    """A conversion that should change nothing changed something."""


class GoalError(GateError):
    """A goal was missed (or not shown, under ``--strict``)."""


class ProvenanceError(GateError):
    """Measured energy was required and only an estimate is to be had."""


class InterruptedRunError(CompressorError):
    """Stopped by the user; finished stages are kept and the run resumes."""

    exit_code = 130
