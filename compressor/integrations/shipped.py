"""What ships beside the code: pipelines to start from, and the versions that were tested together.

In a wheel they lie in `compressor/_shipped/`, in a checkout at the repository's root.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from pathlib import Path

from compressor.errors import CompressorError, UserError

PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Shipped:
    """A pipeline that ships.

    Attributes:
        name: what `compressor init` calls it.
        about: the first sentence of its comment.
    """

    name: str
    path: Path
    about: str


def find_shipped(name: str, package: Path = PACKAGE) -> Path:
    """A file or folder that ships.

    Raises:
        CompressorError: it is not there: a broken installation.
    """
    for place in (package / "_shipped" / name, package.parent / name):
        if place.exists():
            return place
    raise CompressorError(
        f"{name} is not part of this installation", hint="pip install --force-reinstall joule-compressor"
    )


def shipped_pipelines(folder: Path | None = None) -> tuple[Shipped, ...]:
    """Every pipeline that ships, by name."""
    found = sorted((find_shipped("pipelines") if folder is None else folder).glob("*.yaml"))
    return tuple(Shipped(path.stem, path, _about(path)) for path in found)


def copy_pipeline(name: str, out: Path) -> Path:
    """Copy a shipped pipeline to a file, or into a folder.

    Raises:
        UserError: no such pipeline, or a file in its place.
    """
    known = {one.name: one for one in shipped_pipelines()}
    if name.removesuffix(".yaml") not in known:
        raise UserError(f"there is no shipped pipeline {name!r}", hint=f"one of: {', '.join(known)}")
    source = known[name.removesuffix(".yaml")].path
    target = out / source.name if out.is_dir() else out
    if target.exists():
        raise UserError("there is a file already, and it may be yours", where=str(target), hint="give another --out")
    if not target.parent.is_dir():
        raise UserError("no such folder", where=str(target.parent), hint=f"mkdir -p {target.parent}")
    shutil.copyfile(source, target)
    return target


def pinned_versions(file: Path | None = None) -> dict[str, str]:
    """Package -> version that the tests ran with, from `constraints.txt`."""
    text = (find_shipped("constraints.txt") if file is None else file).read_text(encoding="utf-8")
    pins = (line.partition("==") for line in text.splitlines() if "==" in line and not line.startswith("#"))
    return {name.strip(): version.partition(";")[0].strip() for name, _, version in pins}


def _about(path: Path) -> str:
    """The first sentence of the comment that is meant for people."""
    lines = [line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines()]
    words = dropwhile(lambda line: not line or line.startswith("yaml-language-server"), lines)
    paragraph = " ".join(takewhile(bool, words))
    sentence, stop, _ = paragraph.partition(". ")
    return sentence + stop.strip()
