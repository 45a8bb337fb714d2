"""The only door to the Hugging Face hub; everything else works on folders.

The hub's own settings hold everywhere (`HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`), so a private repository
needs no more than `hf auth login`. A download that broke off goes on where it stopped: the client keeps what it had.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError comes from its HTTP library
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from compressor.errors import CheckpointError, CompressorError, UserError

NOT_FETCHED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.ot", "*.tflite", "*.py")
"""Pickles, other frameworks' weights and code: never loaded, so never downloaded."""
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def resolve(
    name_or_path: str | Path, revision: str | None = None, *, only: Sequence[str] | None = None
) -> tuple[Path, str | None]:
    """The folder behind a local path or a hub repository, and the commit in the second case.

    A folder that exists wins. A snapshot that is in the cache is used when the hub cannot be reached.

    Args:
        name_or_path: a folder, or `organisation/name`.
        revision: branch, tag or commit; the main branch where absent.
        only: files to fetch, as paths or patterns; all but pickles and code where absent. A local folder is whole.

    Raises:
        CheckpointError: no such folder, repository or revision; no access; or no network and nothing in the cache.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if revision is not None:
            raise CheckpointError(
                f"a folder has no revision {revision!r}", where=str(path), hint="leave revision out for a local folder"
            )
        return path, None
    name = str(name_or_path)
    if path.exists():
        raise CheckpointError("a file, where the folder of a checkpoint is wanted", where=name)
    if not REPOSITORY.fullmatch(name):
        raise CheckpointError(
            "no such checkpoint folder",
            where=name,
            hint="check the path; a hub repository is written organisation/name",
        )
    with _told_plainly(name, revision, CheckpointError):
        snapshot = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=None if only is None else list(only),
            ignore_patterns=list(NOT_FETCHED),
        )
    return Path(snapshot), Path(snapshot).name


def repository_files(repository: str, revision: str | None = None) -> list[str] | None:
    """Paths of the files that a repository holds; None where there is no such repository or revision.

    Raises:
        UserError: not a repository's name, no access, or no network.
    """
    check_name(repository)
    with _told_plainly(repository, revision, UserError):
        try:
            return sorted(huggingface_hub.HfApi().list_repo_files(repository, revision=revision))
        except GatedRepoError:
            raise
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None


def upload(
    files: Mapping[str, Path | bytes],
    repository: str,
    *,
    message: str,
    delete: Sequence[str] = (),
    private: bool = False,
    branch: str | None = None,
) -> str:
    """Put files into a repository in one commit, and make the repository first where there is none.

    Args:
        files: path in the repository -> file here, or its bytes.
        repository: `organisation/name`.
        message: of the commit.
        delete: paths to remove in the same commit.
        private: whether a repository that is made now is private; one that is there stays as it is.
        branch: to commit to; made where missing. The main branch where absent.

    Returns:
        The commit.

    Raises:
        UserError: not a repository's name, no access, no network, or the hub refuses.
    """
    check_name(repository)
    api = huggingface_hub.HfApi()
    operations: list[huggingface_hub.CommitOperationAdd | huggingface_hub.CommitOperationDelete] = [
        *(huggingface_hub.CommitOperationAdd(path, data) for path, data in sorted(files.items())),
        *(huggingface_hub.CommitOperationDelete(path) for path in sorted(delete)),
    ]
    with _told_plainly(repository, None, UserError):
        api.create_repo(repository, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(repository, branch=branch, exist_ok=True)
        return str(api.create_commit(repository, operations, commit_message=message, revision=branch).oid)


def check_name(repository: str) -> None:
    """Refuse what is no repository's name before anything is sent.

    Raises:
        UserError: not of the form `organisation/name`.
    """
    if not REPOSITORY.fullmatch(repository):
        raise UserError(f"{repository!r} is no name of a hub repository", hint="it is written organisation/name")


@contextmanager
def _told_plainly(name: str, revision: str | None, kind: type[CompressorError]) -> Iterator[None]:
    """The client's errors, as what happened and what to do next."""
    at = f"{name}@{revision}" if revision else name
    try:
        yield
    except RevisionNotFoundError as error:
        raise kind(
            f"the hub repository has no revision {revision!r}", where=name, hint="check the branch, tag or commit"
        ) from error
    except GatedRepoError as error:
        raise kind(
            "the hub repository is gated", where=name, hint=f"ask for access at its page on the hub, then {_LOGIN}"
        ) from error
    except RepositoryNotFoundError as error:
        raise kind(
            "no such folder, and no such hub repository (or no access to it)",
            where=name,
            hint=f"check the name; for a private repository: {_LOGIN}",
        ) from error
    except HFValidationError as error:
        raise kind(f"not a name of a hub repository: {error}", where=name) from error
    except LocalTokenNotFoundError as error:
        raise kind("the hub wants to know who you are", where=name, hint=_LOGIN) from error
    except (HTTPError, OSError, RuntimeError) as error:  # no network, a busy hub, a snapshot that is not whole
        status = _status(error)
        if status is None and isinstance(error, RuntimeError):
            raise  # a bug of somebody's, not the network
        raise kind(
            f"the hub answered {status}{_MEANING.get(status, '')}"
            if status
            else "not in the local cache, and the hub cannot be reached",
            where=at,
            hint=_HINTS.get(status, "wait a moment and try again, or set HF_TOKEN")
            if status
            else "connect once (and unset HF_HUB_OFFLINE), or give the path of a local folder",
        ) from error


def _status(error: BaseException | None) -> int | None:
    """The hub's answer, wherever in the chain of causes it stands."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return int(error.response.status_code)
        error = error.__cause__
    return None


_LOGIN = "log in with `hf auth login` or set HF_TOKEN"
_MEANING = {401: " (not logged in)", 403: " (not allowed)", 429: " (too many requests)"}
_HINTS = {401: _LOGIN, 403: f"check that your token may write there, or {_LOGIN}"}
