"""A finished folder on the hub, in one commit: weights, graphs, manifest, certificate, report and card.

`dry_run` sends nothing and says all that would be sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compressor.checkpoints.files import sha256_file
from compressor.checkpoints.hub import check_name, repository_files, upload
from compressor.checkpoints.manifest import CERTIFICATE_NAME, MANIFEST_NAME
from compressor.checkpoints.store import Checkpoint, open_checkpoint
from compressor.errors import UserError
from compressor.measurement.certificate import folder_certificates
from compressor.pipeline.reading import report_of_run
from compressor.render.card import model_card
from compressor.schema.certificate import FolderCertificates
from compressor.schema.report import Report

KEPT = (".gitattributes",)
"""Files of the hub's own making."""


@dataclass(frozen=True)
class PushedFile:
    """One file of the commit."""

    path: str
    size_bytes: int
    sha256: str | None
    """None for the card, the report and the certificate, which are written for the commit."""


@dataclass(frozen=True)
class Push:
    """What goes, or went, to the hub.

    Attributes:
        candidate: of the report.
        certified: whether its certificate says so; None in a report that has none.
        delete: files of an earlier push that no longer belong there.
        commit: None where nothing was sent.
    """

    repository: str
    candidate: str
    certified: bool | None
    files: tuple[PushedFile, ...]
    delete: tuple[str, ...]
    message: str
    commit: str | None

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


def push(
    path: str | Path,
    repository: str,
    *,
    candidate: str | None = None,
    licence: str | None = None,
    message: str | None = None,
    private: bool = False,
    branch: str | None = None,
    dry_run: bool = False,
) -> Push:
    """Upload a finished candidate in one commit.

    Args:
        path: a run's folder, or the folder of one of its stages.
        repository: `organisation/name`; made where there is none.
        candidate: whose folder; the selected one where absent.
        licence: of the weights; the pipeline's `model.licence` where absent.
        message: of the commit.
        private: whether a repository that is made now is private.
        branch: to commit to; the main branch where absent.
        dry_run: only say what would be sent. Reads the hub's list of files where it can be reached, and sends nothing.

    Raises:
        UserError: no finished run, nothing selected, a repository that holds other people's files, no access.
        CheckpointError: the folder is not as its manifest says.
    """
    check_name(repository)
    run, wanted = _run_of(Path(path), candidate)
    report = report_of_run(run)
    one = wanted or report.selected
    card = model_card(report, candidate=one, licence=licence, repository=repository)  # refuses what failed
    chosen = report.candidate(one or "")
    checkpoint = open_checkpoint(run / chosen.checkpoint)
    if checkpoint.digest != chosen.digest:
        raise UserError(
            f"the folder of {chosen.id} is not the one that the report judged",
            where=str(checkpoint.path),
            hint="run the pipeline again; finished stages are skipped",
        )
    contents = _contents(checkpoint, report, card)
    there = _files_there(repository, branch, needed=not dry_run)
    delete = tuple(sorted(set(there) - set(contents) - set(KEPT)))
    said = message or f"{report.name}: {chosen.id} ({chosen.scheme}), {checkpoint.digest[:12]}"
    certificates = folder_certificates(report, checkpoint)
    found = next((one for one in certificates if one.of.candidate == chosen.id), None)
    planned = Push(
        repository=repository,
        candidate=chosen.id,
        certified=None if found is None else found.certified,
        files=tuple(_pushed(name, data) for name, data in sorted(contents.items())),
        delete=delete,
        message=said,
        commit=None,
    )
    if dry_run:
        return planned
    commit = upload(contents, repository, message=said, delete=delete, private=private, branch=branch)
    return Push(**{**vars(planned), "commit": commit})


def _run_of(path: Path, candidate: str | None) -> tuple[Path, str | None]:
    """The run behind a path, and the candidate that the path names."""
    if not (path / MANIFEST_NAME).is_file():
        return path, candidate
    run = path.resolve().parent.parent
    if not (run / "run.json").is_file():
        raise UserError(
            "a checkpoint without its run has no report, so a card could not say what it loses and costs",
            where=str(path),
            hint="push the run: compressor push RUN ORGANISATION/NAME",
        )
    digest = open_checkpoint(path, verify=False).digest
    ids = [one.id for one in report_of_run(run).candidates if one.digest == digest and not one.scratch]
    if candidate is None and not ids:
        raise UserError("the report of its run does not judge this checkpoint", where=str(path))
    return run, candidate or ids[-1]


def _contents(checkpoint: Checkpoint, report: Report, card: str) -> dict[str, Path | bytes]:
    """Path in the repository -> file or bytes."""
    contents: dict[str, Path | bytes] = {name: checkpoint.path / name for name in checkpoint.content.files}
    contents[MANIFEST_NAME] = checkpoint.path / MANIFEST_NAME
    contents["README.md"] = card.encode()
    contents["report.json"] = (report.model_dump_json(by_alias=True, indent=1) + "\n").encode()
    certificates = folder_certificates(report, checkpoint)
    if certificates:
        text = FolderCertificates(certificates=certificates).model_dump_json(by_alias=True, indent=1)
        contents[CERTIFICATE_NAME] = (text + "\n").encode()
    return contents


def _files_there(repository: str, branch: str | None, *, needed: bool) -> list[str]:
    """What the repository holds now; nothing where it is new.

    Raises:
        UserError: it holds files and no manifest of ours, so that none of them may be replaced.
    """
    try:
        there = repository_files(repository, branch) or []
    except UserError:
        if needed:
            raise
        return []  # a dry run works without a network
    strangers = [name for name in there if name not in (*KEPT, "README.md", "LICENSE")]
    if strangers and MANIFEST_NAME not in there:
        raise UserError(
            f"the repository holds {len(strangers)} files that are not this toolkit's, such as {strangers[0]}",
            where=repository,
            hint="push to a new repository, or to a branch of its own: --branch compressed",
        )
    return there


def _pushed(name: str, data: Path | bytes) -> PushedFile:
    if isinstance(data, bytes):
        return PushedFile(name, len(data), None)
    return PushedFile(name, data.stat().st_size, sha256_file(data))


def summary(planned: Push) -> Mapping[str, str]:
    """A few words for people."""
    size = sum(one.size_bytes for one in planned.files)
    words = {None: "has no certificate", True: "is certified", False: "is not certified"}[planned.certified]
    return {
        "repository": planned.repository,
        "candidate": f"{planned.candidate}, which {words}",
        "files": f"{len(planned.files)}, {size / 1e6:.1f} MB in one commit",
        "deleted there": ", ".join(planned.delete) or "nothing",
        "message": planned.message,
        "commit": planned.commit or "nothing was sent",
    }
