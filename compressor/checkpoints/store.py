"""Opening and sealing checkpoint folders.

A folder is a checkpoint when its manifest is there, is whole, and every file hashes to what it says. Anything less has
an error of its own, so that a run never goes on from half a model.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from compressor.checkpoints.files import content_files, digest_json, sha256_file, write_whole
from compressor.checkpoints.manifest import (
    CERTIFICATE_NAME,
    MANIFEST_NAME,
    SCHEMA,
    Content,
    FileEntry,
    Manifest,
    Record,
    Variant,
)
from compressor.errors import CheckpointError

MAY_BE_ADDED = frozenset({"README.md", "report.json", CERTIFICATE_NAME, "LICENSE", "NOTICE"})
"""Files for people that may come after the manifest; nothing that a loader reads."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder and the manifest that describes it."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        """What this checkpoint is, in one sha256; equal content has an equal digest."""
        return self.manifest.digest

    @property
    def content(self) -> Content:
        return self.manifest.content

    @property
    def record(self) -> Record:
        return self.manifest.record

    def _repr_html_(self) -> str:
        """What a notebook shows: the variants of the folder."""
        rows = "".join(
            f"<tr><td>{escape(one.id)}</td><td>{escape(one.path)}</td><td>{escape(one.stage)}</td>"
            f"<td>{one.parameters:,}</td><td>{one.size_bytes / 1e6:.1f}</td></tr>"
            for one in self.content.variants
        )
        head = "".join(f"<th scope='col'>{name}</th>" for name in ("variant", "file", "stage", "parameters", "MB"))
        caption = escape(f"{self.content.architecture}, {self.content.task}, {self.digest[:16]}")
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"

    def variant(self, variant_id: str) -> Variant:
        """The variant of that id.

        Raises:
            CheckpointError: there is none; the text names those that are there.
        """
        for variant in self.content.variants:
            if variant.id == variant_id:
                return variant
        present = ", ".join(variant.id for variant in self.content.variants)
        raise CheckpointError(f"no variant {variant_id!r} here; there are: {present}", where=str(self.path))


def open_checkpoint(path: Path | str, *, verify: bool = True, only: Collection[str] | None = None) -> Checkpoint:
    """Open a checkpoint folder.

    Args:
        path: the folder.
        verify: hash every file. Without it only the manifest itself is checked; for a folder that this process has
            verified or sealed a moment ago.
        only: hash these files, and let others be missing: those of a repository that were fetched.

    Raises:
        CheckpointError: no such folder, no manifest (never finished), a manifest that cannot be read, was edited or is
            of a newer version, or a file that is missing, was changed or was added.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError("no such checkpoint folder", where=str(path), hint="check the path")
    manifest = _read_manifest(path / MANIFEST_NAME)
    checkpoint = Checkpoint(path, manifest)
    _check_paths(checkpoint)
    if verify:
        _check_files(checkpoint, checkpoint.content.files if only is None else only)
    return checkpoint


def seal(
    out_dir: Path,
    *,
    task: str,
    model_type: str,
    architecture: str,
    labels: Sequence[str] | None,
    variants: Sequence[Variant],
    structure: dict[str, Any] | None,
    record: Record,
) -> Checkpoint:
    """Hash every file of a folder and write the manifest, which makes it a checkpoint.

    The manifest goes last and whole: a folder that has one is complete. Hidden files are no part of it.

    Raises:
        CheckpointError: the folder has no files, a variant names a file that is not there, or two have the same id.
        ValueError: a number that JSON cannot carry (NaN) in facts, structure or record.
        StageError: the manifest could not be written.
    """
    manifest_path = out_dir / MANIFEST_NAME
    files = {
        name: FileEntry(sha256=sha256_file(out_dir / name), size_bytes=(out_dir / name).stat().st_size)
        for name in content_files(out_dir)
        if name != MANIFEST_NAME
    }
    if not files:
        raise CheckpointError("nothing to seal: the folder has no files", where=str(out_dir))
    content = Content(
        task=task,
        model_type=model_type,
        architecture=architecture,
        labels=tuple(labels) if labels is not None else None,
        files=files,
        variants=tuple(variants),
        structure=structure,
    )
    manifest = Manifest(
        digest=_digest(content), content=content, record=record, record_sha256=_digest(record)
    )  # both digests raise on NaN before anything is written
    checkpoint = Checkpoint(out_dir, manifest)
    _check_paths(checkpoint)
    write_whole(manifest_path, json.dumps(manifest.model_dump(by_alias=True), indent=1, allow_nan=False) + "\n")
    return checkpoint


def _digest(part: Content | Record) -> str:
    return digest_json(part.model_dump())  # not mode="json", which turns NaN into null without a word


def _read_manifest(path: Path) -> Manifest:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"no {MANIFEST_NAME}: the folder was never finished, or is not a checkpoint of this toolkit",
            where=str(path.parent),
            hint="run the pipeline again; it goes on after the last finished stage",
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"the manifest is not JSON: {error}", where=str(path), hint=_HINT_REMAKE) from error
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if schema != SCHEMA:
        raise CheckpointError(
            f"the manifest is of version {schema!r}; this toolkit reads {SCHEMA!r}",
            where=str(path),
            hint="pip install --upgrade joule-compressor, or make the checkpoint again",
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(
            f"the manifest cannot be read: {place}: {first['msg']}", where=str(path), hint=_HINT_REMAKE
        ) from error
    if _digest(manifest.content) != manifest.digest:
        raise CheckpointError(
            "the manifest's content was edited: it does not match its digest", where=str(path), hint=_HINT_REMAKE
        )
    if _digest(manifest.record) != manifest.record_sha256:
        raise CheckpointError(
            "the manifest's record was edited: it does not match its sha256", where=str(path), hint=_HINT_REMAKE
        )
    return manifest


def _check_paths(checkpoint: Checkpoint) -> None:
    """Every path stays inside the folder and every variant's file is listed: a manifest may come from a stranger."""
    content, where = checkpoint.content, str(checkpoint.path / MANIFEST_NAME)
    for name in content.files:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name:
            raise CheckpointError(f"the manifest names a file outside the folder: {name}", where=where)
    ids = [variant.id for variant in content.variants]
    for variant in content.variants:
        if variant.path not in content.files:
            raise CheckpointError(f"variant {variant.id!r} names {variant.path}, which is not there", where=where)
        if ids.count(variant.id) > 1:
            raise CheckpointError(f"two variants are called {variant.id!r}", where=where)


def _check_files(checkpoint: Checkpoint, wanted: Collection[str]) -> None:
    folder, files = checkpoint.path, checkpoint.content.files
    for name in sorted(wanted):
        file, entry = folder / name, files[name]
        if not file.is_file():
            raise CheckpointError("the file is missing from the checkpoint", where=str(file), hint=_HINT_REMAKE)
        size_bytes = file.stat().st_size
        if size_bytes != entry.size_bytes:
            raise CheckpointError(
                f"corrupt: {size_bytes} bytes where the manifest says {entry.size_bytes}",
                where=str(file),
                hint=_HINT_REMAKE,
            )
        if sha256_file(file) != entry.sha256:
            raise CheckpointError(
                "corrupt or changed: its sha256 is not the manifest's", where=str(file), hint=_HINT_REMAKE
            )
    added = set(content_files(folder)) - set(files) - {MANIFEST_NAME} - MAY_BE_ADDED
    if added:
        raise CheckpointError(
            "the file is not in the manifest: it was added after the checkpoint was finished",
            where=str(folder / min(added)),
            hint="remove it",
        )


_HINT_REMAKE = "remove the folder and make or download the checkpoint again (compressor run makes what is missing)"
