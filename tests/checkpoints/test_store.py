"""Checkpoint folders: complete, verified, and refused with a reason when they are not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.checkpoints.files import canonical_json, carry_files, content_files, digest_json, link_or_copy
from compressor.checkpoints.fingerprint import fingerprint, library_versions
from compressor.checkpoints.manifest import Record, Variant
from compressor.checkpoints.store import Checkpoint, open_checkpoint, seal
from compressor.errors import CheckpointError, StageError


def record(**changes: Any) -> Record:
    values: dict[str, Any] = {
        "stage": "teacher", "kind": "finetune", "fingerprint": "f", "config": {}, "inputs": {}, "data": {}, "seed": 0,
        "versions": {}, "realised": {"loss": 0.1}, "wall_s": 1.5, "cpu_s": 2.0, "energy": None,
        "energy_reason": "not asked for", "host": {}, "created": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    return Record(**{**values, **changes})


def variant(**changes: Any) -> Variant:
    values: dict[str, Any] = {
        "id": "torch-fp32", "path": "model.safetensors", "runtime": "torch", "scheme": "fp32", "stage": "teacher",
        "parameters": 3, "size_bytes": 7,
    }  # fmt: skip
    return Variant(**{**values, **changes})


def make(folder: Path, **changes: Any) -> Checkpoint:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    (folder / "onnx").mkdir(exist_ok=True)
    (folder / "onnx" / "model.onnx").write_bytes(b"graph")
    values: dict[str, Any] = {
        "task": "sequence-classification", "model_type": "bert", "architecture": "BertForSequenceClassification",
        "labels": ("neg", "pos"), "variants": [variant()], "structure": None, "record": record(),
    }  # fmt: skip
    return seal(folder, **{**values, **changes})


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


def edit(folder: Path, change: Any) -> None:
    path = folder / "compressor.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_what_was_sealed_is_what_opens(tmp_path: Path) -> None:
    sealed = make(tmp_path / "a")
    opened = open_checkpoint(tmp_path / "a")
    assert opened == sealed
    assert sorted(opened.content.files) == ["config.json", "model.safetensors", "onnx/model.onnx"]
    assert opened.variant("torch-fp32").parameters == 3
    assert opened.record.realised == {"loss": 0.1}


def test_the_digest_covers_what_it_is_and_not_how_it_came_to_be(tmp_path: Path) -> None:
    first = make(tmp_path / "a", record=record(wall_s=1.0, stage="x"))
    second = make(tmp_path / "b", record=record(wall_s=2.0, stage="y"))
    other = make(tmp_path / "c", labels=("a", "b"))
    assert first.digest == second.digest != other.digest


def test_numbers_as_keys_survive_the_disk(tmp_path: Path) -> None:
    make(tmp_path, structure={"rows": {10: 1.25, 9: 0.1 + 0.2}}, record=record(host={"sizes": {10: 1, 9: 2}}))
    assert open_checkpoint(tmp_path).content.structure == {"rows": {"10": 1.25, "9": 0.1 + 0.2}}


def test_a_missing_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no") == f"{tmp_path / 'no'}: no such checkpoint folder\n  -> check the path"


def test_a_half_written_folder_has_no_manifest(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "compressor.json").unlink()
    assert refusal(tmp_path) == (
        f"{tmp_path}: no compressor.json: the folder was never finished, or is not a checkpoint of this toolkit\n"
        "  -> run the pipeline again; it goes on after the last finished stage"
    )


def test_a_cut_manifest(tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / "compressor.json"
    path.write_text(path.read_text()[:100])
    assert "compressor.json: the manifest is not JSON: " in refusal(tmp_path)


def test_a_changed_byte(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"Graph")
    said = refusal(tmp_path)
    assert "onnx/model.onnx: corrupt or changed: its sha256 is not the manifest's\n  -> remove the folder" in said
    open_checkpoint(tmp_path, verify=False)


def test_a_cut_file(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weig")
    assert "model.safetensors: corrupt: 4 bytes where the manifest says 7" in refusal(tmp_path)


def test_a_missing_file(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "config.json").unlink()
    assert "config.json: the file is missing from the checkpoint" in refusal(tmp_path)


def test_an_added_file_that_a_loader_would_read(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "README.md").write_text("a card may come later")
    (tmp_path / ".lock").write_text("and tools may leave hidden files")
    open_checkpoint(tmp_path)
    (tmp_path / "added_tokens.json").write_text("{}")
    assert "added_tokens.json: the file is not in the manifest: it was added after" in refusal(tmp_path)


def test_an_edited_record(tmp_path: Path) -> None:
    make(tmp_path)
    edit(tmp_path, lambda value: value["record"]["realised"].update(loss=0.0))
    assert "the manifest's record was edited: it does not match its sha256" in refusal(tmp_path)


def test_an_edited_content(tmp_path: Path) -> None:
    make(tmp_path)
    edit(tmp_path, lambda value: value["content"].update(labels=["pos", "neg"]))
    assert "the manifest's content was edited: it does not match its digest" in refusal(tmp_path)


def test_a_newer_version(tmp_path: Path) -> None:
    make(tmp_path)
    edit(tmp_path, lambda value: value.update(schema="compressor-manifest/2", new_part={}))
    text = refusal(tmp_path)
    assert "the manifest is of version 'compressor-manifest/2'; this toolkit reads 'compressor-manifest/1'" in text
    assert "pip install --upgrade joule-compressor" in text


def test_a_manifest_of_another_shape(tmp_path: Path) -> None:
    make(tmp_path)
    edit(tmp_path, lambda value: value["content"].pop("variants"))
    assert "the manifest cannot be read: content.variants: Field required" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b"])
def test_a_manifest_that_points_outside_its_folder(tmp_path: Path, name: str) -> None:
    made = make(tmp_path)
    content = made.content.model_dump(mode="json")
    content["files"][name] = {"sha256": "0", "size_bytes": 1}
    edit(tmp_path, lambda value: value.update(content=content, digest=digest_json(content)))
    assert f"the manifest names a file outside the folder: {name}" in refusal(tmp_path)


def test_an_unknown_variant_names_those_that_are_there(tmp_path: Path) -> None:
    made = make(tmp_path)
    with pytest.raises(CheckpointError, match="no variant 'onnx-fp16' here; there are: torch-fp32"):
        made.variant("onnx-fp16")


def test_seal_refuses_a_variant_without_its_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"variant 'x' names onnx/no\.onnx, which is not there"):
        make(tmp_path, variants=[variant(id="x", path="onnx/no.onnx")])
    assert not (tmp_path / "compressor.json").exists()


def test_seal_refuses_two_variants_of_one_name_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="two variants are called 'torch-fp32'"):
        make(tmp_path / "a", variants=[variant(), variant()])
    (tmp_path / "b").mkdir()
    with pytest.raises(CheckpointError, match="nothing to seal"):
        seal(
            tmp_path / "b", task="t", model_type="m", architecture="a", labels=None, variants=[], structure=None,
            record=record(),
        )  # fmt: skip


def test_seal_writes_no_manifest_when_a_number_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        make(tmp_path, record=record(realised={"loss": float("nan")}))
    assert not (tmp_path / "compressor.json").exists()


def test_seal_says_when_the_disk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StageError, match="could not be written: No space left on device"):
        make(tmp_path)
    assert not list(tmp_path.glob("*compressor.json*")) + list(tmp_path.glob(".*"))


def test_carried_files_share_the_disk_and_leave_the_manifest_behind(tmp_path: Path) -> None:
    make(tmp_path / "a")
    carried = carry_files(tmp_path / "a", tmp_path / "b", exclude_prefixes=("onnx/",))
    assert carried == ["config.json", "model.safetensors"] == content_files(tmp_path / "b")
    assert (tmp_path / "a/config.json").stat().st_ino == (tmp_path / "b/config.json").stat().st_ino


def test_carrying_follows_links_and_falls_back_to_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blob").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "blob")
    link_or_copy(tmp_path / "link", tmp_path / "hard")
    assert not (tmp_path / "hard").is_symlink()

    def refuse(*_: object) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(tmp_path / "link", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "x"
    assert (tmp_path / "copy").stat().st_ino != (tmp_path / "blob").stat().st_ino


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_canonical_json_is_the_same_after_a_trip_over_the_disk(value: Any) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(json.dumps(value, indent=3))) == text


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_canonical_json_does_not_see_the_order_of_keys(value: dict[str, int]) -> None:
    assert canonical_json(dict(reversed(list(value.items())))) == canonical_json(value)


def test_each_part_of_a_fingerprint_counts() -> None:
    base: dict[str, Any] = {
        "kind": "prune", "version": 1, "config": {"keep": 0.5}, "inputs": {"source": "a"}, "data": {"train": "d"},
        "versions": {"torch": "2"}, "seed": 0,
    }  # fmt: skip
    changes: dict[str, Any] = {
        "kind": "distill", "version": 2, "config": {"keep": 0.6}, "inputs": {"source": "b"}, "data": {"train": "e"},
        "versions": {"torch": "3"}, "seed": 1,
    }  # fmt: skip
    prints = {fingerprint(**base)} | {fingerprint(**{**base, key: value}) for key, value in changes.items()}
    assert len(prints) == 1 + len(changes)
    assert fingerprint(**base) == fingerprint(**base)


def test_library_versions_are_those_installed() -> None:
    versions = library_versions()
    assert {"transformers", "numpy", "onnxruntime"} <= versions.keys()
    assert all(versions.values())
