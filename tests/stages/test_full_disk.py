"""A disk that really fills while a stage works: one clear error, nothing sealed, and the stage before as it was."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from stage_shelf import Shelf

from compressor.checkpoints.files import full_disk_named
from compressor.checkpoints.manifest import MANIFEST_NAME
from compressor.checkpoints.store import open_checkpoint
from compressor.errors import StageError
from compressor.pipeline.layout import partial_folder, publish

if TYPE_CHECKING:
    from conftest import SmallDisk

ONE_STEP = {"training": {"epochs": 1, "max_steps": 1, "batch_size": 8}}


@pytest.mark.parametrize(
    ("case", "room"),
    [
        ("prune-ffn", 4_000),  # not even the folder's first files
        ("prune-ffn", 100_000),  # not the weights
        ("distill", 100_000),  # not the teacher's answers, which are written through a mapped file
        ("recover", 300_000),  # not the training's own checkpoints
        ("fp16", 300_000),  # not the files that go along
        ("int8", 560_000),  # not the new graph
    ],
)
def test_a_stage_on_a_full_disk_says_so_and_seals_nothing(
    bert: Shelf, small_disk: SmallDisk, case: str, room: int
) -> None:
    settings = ONE_STEP if case in ("distill", "recover") else {}
    before = bert.inputs(case).digests()
    small_disk.leave(room)
    with pytest.raises(StageError) as caught:
        bert.make(case, small_disk.path / "run", settings=settings)
    told = str(caught.value)
    assert "could not be written" in told and "No space left on device" in told
    assert told.endswith("nothing half-written was left") and str(small_disk.path) in told
    assert not list(small_disk.path.rglob(MANIFEST_NAME))
    again = bert.inputs(case)
    assert open_checkpoint(again.source.path, verify=True).digest == before["source"]


def test_a_step_that_fails_gives_its_room_back(small_disk: SmallDisk) -> None:
    folder = small_disk.path / "onnx-01234567"
    small_disk.leave(500_000)
    with (
        pytest.raises(StageError, match="No space left on device"),
        full_disk_named(folder),
        partial_folder(folder) as (
            out_dir,
            workdir,
        ),
    ):
        (workdir / "checkpoint").write_text("stays for the next time")
        for number in range(10):
            (out_dir / f"part{number}").write_bytes(b"0" * 100_000)
    assert sorted(path.name for path in folder.with_name(f"{folder.name}.partial").iterdir()) == ["lock", "work"]
    assert not folder.exists()
    with pytest.raises(FileNotFoundError):
        publish(folder)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), OSError(2, "No such file or directory")])
def test_what_is_no_full_disk_stays_what_it_is(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, full_disk_named(tmp_path):
        raise error
    assert caught.value is error
