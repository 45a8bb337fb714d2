"""`measure` on plain folders, without a pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compressor.checkpoints.store import Checkpoint
from compressor.errors import CheckpointError, UserError
from compressor.measurement.folders import measure

QUICKLY = {"profile": "smoke", "max_tokens": 32, "target": {"threads": 1}, "evaluate": {"rows": 40}}
ROWS = [{"id": "rows", "batch": 8, "from_data": True, "rows": 16}]


@pytest.fixture
def plain(bert: Checkpoint, tmp_path: Path) -> Path:
    """The tiny classifier's graphs, tokenizer and config: a folder without manifest and torch weights."""
    folder = tmp_path / "plain"
    shutil.copytree(bert.path, folder, ignore=shutil.ignore_patterns("compressor.json", "*.safetensors"))
    return folder


def test_a_plain_folder_of_graphs(plain: Path, era_files: dict[str, Path], tmp_path: Path) -> None:
    report = measure(plain, data=era_files["test"], workloads=ROWS, out=tmp_path / "out", **QUICKLY)  # type: ignore[arg-type]
    assert [one.id for one in report.candidates] == ["onnx-fp32", "onnx-int8"]
    assert report.baseline == "onnx-fp32"
    assert report.failures == ()
    int8 = report.candidate("onnx-int8")
    assert int8.facts["quantised_operators"]
    assert int8.measurements[0].cpu_s_per_token_ratio_to_source is not None
    assert not (plain / "compressor.json").exists()


def test_rows_in_memory(plain: Path, era_files: dict[str, Path]) -> None:
    rows = [json.loads(line) for line in era_files["test"].read_text().splitlines()[:24]]
    (plain / "onnx" / "model_int8.onnx").unlink()
    report = measure(plain, data=rows, workloads=ROWS, **QUICKLY)  # type: ignore[arg-type]
    assert report.candidates[0].quality[0].n == 24
    assert report.data["test"]["name"] == "data in memory"


def test_an_unknown_baseline(plain: Path, era_files: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"baseline: no candidate 'teacher'\n  -> there are: onnx-fp32, onnx-int8"):
        measure(plain, data=era_files["test"], baseline="teacher")


def test_models_of_two_tasks(plain: Path, llama: Checkpoint, era_files: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="measure models of one task and the same classes together"):
        measure([plain, llama.path], data=era_files["test"])


@pytest.mark.parametrize(
    ("remove", "text"),
    [("config.json", "no config.json here"), ("onnx/model.onnx onnx/model_int8.onnx", "neither model.safetensors nor")],
)
def test_folders_that_hold_no_model(plain: Path, era_files: dict[str, Path], remove: str, text: str) -> None:
    for name in remove.split():
        (plain / name).unlink()
    with pytest.raises(CheckpointError, match=text):
        measure(plain, data=era_files["test"])
