"""The hub: a folder first, then a cache that somebody filled, then a plain error. No network here."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest

from compressor.checkpoints.hub import resolve
from compressor.errors import CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds organisation/name at one commit, laid out as the hub's client leaves it."""
    repository = tmp_path / "models--organisation--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "b1").write_text("{}")
    (snapshot / "config.json").symlink_to(repository / "blobs" / "b1")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_folder_comes_first(tmp_path: Path) -> None:
    assert resolve(tmp_path) == (tmp_path, None)


def test_a_cached_repository_without_a_network(hub_cache: Path) -> None:
    path, commit = resolve("organisation/name")
    assert commit == COMMIT
    assert (path / "config.json").read_text() == "{}"


def test_a_pinned_commit_and_an_unknown_revision(hub_cache: Path) -> None:
    assert resolve("organisation/name", COMMIT)[1] == COMMIT
    with pytest.raises(CheckpointError) as caught:
        resolve("organisation/name", "gone")
    assert str(caught.value) == (
        "organisation/name@gone: not in the local cache, and the hub cannot be reached\n"
        "  -> connect once (and unset HF_HUB_OFFLINE), or give the path of a local folder"
    )


def test_nothing_in_the_cache(hub_cache: Path) -> None:
    with pytest.raises(CheckpointError, match="other/name: not in the local cache, and the hub cannot be reached"):
        resolve("other/name")


@pytest.mark.parametrize("name", ["runs/a/b", "./model", "nothing here", "model"])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve(name)
    assert str(caught.value) == (
        f"{name}: no such checkpoint folder\n  -> check the path; a hub repository is written organisation/name"
    )


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("")
    with pytest.raises(CheckpointError, match="a file, where the folder of a checkpoint is wanted"):
        resolve(tmp_path / "model.onnx")
