"""`certificate.json`: whether a file may be used in the place of its baseline, and on what evidence. Fails closed.

A manifest is sealed before anything is judged, so a certificate lies beside it and names what it speaks of by sha256.
It holds for the processor and the runtime that it names: integer kernels answer otherwise elsewhere.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compressor.errors import UserError

SCHEMA = "compressor-certificate/1"
FOLDER_SCHEMA = "compressor-certificates/1"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class CertifiedFigure(_Record):
    """One metric, of all rows or of those of one label, against the baseline on the same rows."""

    metric: str
    label: str | None
    n: int
    value: float | None
    baseline: float | None
    delta: float | None
    """This file minus the baseline, in the metric's own unit."""
    delta_low: float | None
    delta_high: float | None
    """The 95 % interval of the difference."""
    limit: str | None
    """What it was held to, in words; None where nothing limits it."""
    status: Literal["met", "missed", "not_shown", "no limit"]


class CertifiedFile(_Record):
    """A file, by what it is and not by where it lies."""

    candidate: str
    variant: str
    file: str
    sha256: str
    checkpoint: str
    """Digest of the checkpoint."""


class Certificate(_Record):
    """Whether one file keeps what its baseline can do, on one processor and runtime."""

    schema_: Literal["compressor-certificate/1"] = Field(default="compressor-certificate/1", alias="schema")
    certified: bool
    reasons: tuple[str, ...]
    """Why it is not certified; empty where it is."""
    of: CertifiedFile
    baseline: CertifiedFile | None
    figures: tuple[CertifiedFigure, ...]
    limits: tuple[dict[str, Any], ...]
    """The goals on quality, and `max_label_drop_points` where labels are held to one."""
    data: dict[str, Any]
    """Name, digest and number of the rows that it was judged on."""
    machine: dict[str, Any]
    """Processor, its flags, runtime with its version, provider, threads."""
    created: str

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True)

    @property
    def word(self) -> str:
        """`certified`, or `not certified`."""
        return "certified" if self.certified else "not certified"

    def sentence(self) -> str:
        """The word, where it holds, and why not."""
        place = f"on {self.machine.get('cpu') or 'an unknown processor'}, {self.machine.get('runtime')}"
        return f"{self.word} {place}" + (f": {'; '.join(self.reasons)}" if self.reasons else "")

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in CertifiedFigure.model_fields)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape('' if v is None else str(v))}</td>" for v in vars(one).values()) + "</tr>"
            for one in self.figures
        )
        return (
            f"<table><caption>{escape(self.of.candidate)}: {escape(self.sentence())}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        )


class FolderCertificates(_Record):
    """The file as it lies in a checkpoint's folder: one certificate for each file that was judged."""

    schema_: Literal["compressor-certificates/1"] = Field(default="compressor-certificates/1", alias="schema")
    certificates: tuple[Certificate, ...]

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def read_certificates(path: Path) -> tuple[Certificate, ...]:
    """The certificates of a folder; none where the file is not there.

    Raises:
        UserError: it cannot be read, or is of another version.
    """
    try:
        return FolderCertificates.model_validate_json(path.read_text(encoding="utf-8")).certificates
    except FileNotFoundError:
        return ()
    except (ValidationError, UnicodeDecodeError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(
            f"not a {FOLDER_SCHEMA} file: {what}",
            where=str(path),
            hint="make it again: compressor certify CHECKPOINT --baseline MODEL --data FILE",
        ) from error
