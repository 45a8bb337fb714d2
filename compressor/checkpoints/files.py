"""Hashing, canonical JSON, and files that are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from compressor.errors import StageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_IN_WORDS = {
    "No space left on device": "No space left on device",  # safetensors
    "unexpected pos": "torch could not write a file to its end",  # its own writer gives no reason
}


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """One text for equal values: keys sorted, no spaces, no escapes.

    The value goes through JSON once before its keys are sorted, so that what is hashed now and what is read back from
    disk later are the same value (the key 10 would sort after the key 9, and the key "10" before "9").

    Raises:
        ValueError: a NaN or an infinity, which JSON cannot carry; write None and the reason.
        TypeError: something that JSON cannot carry.
    """
    plain = json.loads(json.dumps(value, allow_nan=False))
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_json(value: Any) -> str:
    """Hex sha256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it, so that a reader never sees half of it.

    Raises:
        StageError: the disk is full, or the folder cannot be written to.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise _not_written(path, error) from error


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn what any library says when the disk fills, while it writes below a folder, into one error of ours.

    Raises:
        StageError: the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise _not_written(folder, error) from error
        for said, reason in _FULL_IN_WORDS.items():
            if said in str(error):
                raise _not_written(folder, OSError(errno.ENOSPC, reason)) from error
        raise


def link_or_copy(source: Path, target: Path) -> None:
    """Put a file in a second place without using the disk twice: a hard link, or a copy on another file system.

    Both names may be one file afterwards: never edit either in place, write a new file and rename it. A link to a file
    (the hub's cache is made of them) is followed.

    Raises:
        StageError: the disk is full, or the folder cannot be written to.
    """
    source = source.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, target)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise _not_written(target, error) from error


def content_files(folder: Path) -> list[str]:
    """Relative paths of the files below a folder, sorted, with `/` between the parts.

    Hidden ones (locks, `.cache`, `.gitattributes`) belong to tools and not to a checkpoint.
    """
    found = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            found.append(relative.as_posix())
    return sorted(found)


def carry_files(source_dir: Path, out_dir: Path, *, exclude_prefixes: Sequence[str] = ()) -> list[str]:
    """Bring the files of one checkpoint into the next one, as hard links where that works.

    Args:
        source_dir: where they are.
        out_dir: where they should be too; made if missing.
        exclude_prefixes: beginnings of relative paths to leave out, such as `onnx/` or `model.safetensors`. The
            manifest and the certificate are always left out: they speak of the old folder.

    Returns:
        The relative paths that were carried.

    Raises:
        StageError: the disk is full, or the folder cannot be written to.
    """
    excluded = ("compressor.json", "certificate.json", *exclude_prefixes)
    carried = [name for name in content_files(source_dir) if not name.startswith(excluded)]
    for name in carried:
        link_or_copy(source_dir / name, out_dir / name)
    return carried


def _not_written(path: Path, error: OSError) -> StageError:
    return StageError(
        f"could not be written: {error.strerror or error}",
        where=str(path),
        hint="free some disk space or choose another folder; nothing half-written was left",
    )
