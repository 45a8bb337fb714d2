"""The only door to the Hugging Face hub; everything else works on folders."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError comes from its HTTP library
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from compressor.errors import CheckpointError

NOT_FETCHED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.ot", "*.tflite", "*.py")
"""Pickles, other frameworks' weights and code: never loaded, so never downloaded."""


def resolve(name_or_path: str | Path, revision: str | None = None) -> tuple[Path, str | None]:
    """The folder behind a local path or a hub repository, and the commit in the second case.

    A folder that exists wins. The hub's own settings hold (`HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`): a
    snapshot that is in the cache is used when the hub cannot be reached.

    Raises:
        CheckpointError: no such folder, repository or revision; no access; or no network and nothing in the cache.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path, None
    name = str(name_or_path)
    if path.exists():
        raise CheckpointError("a file, where the folder of a checkpoint is wanted", where=name)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise CheckpointError(
            "no such checkpoint folder",
            where=name,
            hint="check the path; a hub repository is written organisation/name",
        )
    at = f"{name}@{revision}" if revision else name
    try:
        snapshot = huggingface_hub.snapshot_download(name, revision=revision, ignore_patterns=list(NOT_FETCHED))
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"the hub repository has no revision {revision!r}", where=name, hint="check the branch, tag or commit"
        ) from error
    except GatedRepoError as error:
        raise CheckpointError(
            "the hub repository is gated", where=name, hint=f"ask for access at its page on the hub, then {_LOGIN}"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            "no such folder, and no such hub repository (or no access to it)",
            where=name,
            hint=f"check the name; for a private repository: {_LOGIN}",
        ) from error
    except HFValidationError as error:
        raise CheckpointError(f"not a name of a hub repository: {error}", where=name) from error
    except (HTTPError, OSError) as error:  # no network, a busy hub, a snapshot in the cache that is not whole
        status = _status(error) or _status(error.__cause__)
        raise CheckpointError(
            f"the hub answered {status}" if status else "not in the local cache, and the hub cannot be reached",
            where=at,
            hint="wait a moment and try again, or set HF_TOKEN"
            if status
            else "connect once (and unset HF_HUB_OFFLINE), or give the path of a local folder",
        ) from error
    return Path(snapshot), Path(snapshot).name


def _status(error: BaseException | None) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


_LOGIN = "log in with `hf auth login` or set HF_TOKEN"
