"""sentence-transformers folders: what is read of them, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compressor.checkpoints.sentence import (
    Dense,
    read_sentence_modules,
    sentence_files,
    set_pooling_width,
    write_sentence_modules,
)
from compressor.errors import CheckpointError, CompressorError, UnsupportedError


def folder_of(folder: Path, *modules: tuple[str, str, dict[str, Any] | None]) -> Path:
    entries = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path, _) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    for _, path, settings in modules:
        if settings is not None:
            (folder / path).mkdir(parents=True, exist_ok=True)
            (folder / path / "config.json").write_text(json.dumps(settings))
    return folder


BODY = ("Transformer", "", None)
MEAN = ("Pooling", "1_Pooling", {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True})
NARROW = (
    "Dense",
    "2_Dense",
    {"in_features": 8, "out_features": 4, "activation_function": "torch.nn.modules.linear.Identity"},
)


def test_a_plain_folder_is_none(tmp_path: Path) -> None:
    assert read_sentence_modules(tmp_path) is None


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_sentence_modules(tmp_path, mode="cls", normalise=True, width=8)
    found = read_sentence_modules(tmp_path)
    assert found is not None and found.pooling == ("cls",) and found.normalise and found.dense == ()
    assert sentence_files(tmp_path) == ["modules.json", "1_Pooling/config.json"]


def test_pooling_of_either_notation(tmp_path: Path) -> None:
    old = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    found = read_sentence_modules(folder_of(tmp_path, BODY, ("Pooling", "1_Pooling", old)))
    assert found is not None and set(found.pooling) == {"cls", "mean"}
    new = {"embedding_dimension": 8, "pooling_mode": "lasttoken"}
    found = read_sentence_modules(folder_of(tmp_path, BODY, ("Pooling", "1_Pooling", new)))
    assert found is not None and found.pooling == ("lasttoken",)


def test_dense_layers_prompts_and_length(tmp_path: Path) -> None:
    folder_of(tmp_path, BODY, MEAN, NARROW)
    (tmp_path / "2_Dense" / "model.safetensors").write_bytes(b"")
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "q: "}}))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 256}))
    found = read_sentence_modules(tmp_path)
    assert found is not None
    assert found.dense == (Dense("2_Dense", 8, 4, True, "Identity"),)
    assert (found.prompt("query"), found.prompt(None), found.max_tokens) == ("q: ", "", 256)
    assert sentence_files(tmp_path) == [
        "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json",
        "2_Dense/config.json", "2_Dense/model.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("modules", "kind", "message"),
    [
        ([BODY], CheckpointError, "names no pooling"),
        ([("Transformer", "0_Transformer", {}), MEAN], UnsupportedError, "its encoder lies in '0_Transformer'"),
        ([BODY, MEAN, ("CNN", "2_CNN", {})], UnsupportedError, "has a module of type 'CNN'"),
        ([BODY, MEAN, NARROW], CheckpointError, "a dense layer without model.safetensors"),
        ([BODY, MEAN, ("Normalize", "2_Normalize", None), NARROW], CompressorError, "dense"),
        ([BODY, ("Pooling", "../1_Pooling", None)], CheckpointError, "a module lies outside the folder"),
        ([BODY, ("Pooling", "1_Pooling", {"pooling_mode": "median"})], CheckpointError, "the pooling is none of: cls"),
        ([BODY, ("Pooling", "1_Pooling", {"pooling_mode_mean_tokens": True, "include_prompt": False})],
         UnsupportedError, "pools without the tokens of its prompt"),
        ([BODY, ("Pooling", "9_Pooling", None)], CheckpointError, "no such file"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_named(
    modules: list[Any], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        read_sentence_modules(folder_of(tmp_path, *modules))


def test_the_width_follows_a_pruning_and_never_edits_a_linked_file(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, BODY, MEAN)
    linked = tmp_path / "other.json"
    linked.hardlink_to(folder / "1_Pooling" / "config.json")
    found = read_sentence_modules(folder)
    assert found is not None
    set_pooling_width(folder, found, 6)
    assert json.loads((folder / "1_Pooling" / "config.json").read_text())["word_embedding_dimension"] == 6
    assert json.loads(linked.read_text())["word_embedding_dimension"] == 8


def test_a_dense_layer_holds_the_width(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, BODY, MEAN, NARROW)
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"")
    found = read_sentence_modules(folder)
    assert found is not None
    with pytest.raises(
        UnsupportedError, match="the token vectors are now 6 wide, and the dense layer after pooling takes 8"
    ):
        set_pooling_width(folder, found, 6)
