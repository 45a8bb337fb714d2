"""`compressor.certify`: a file against its baseline on real rows, here; limits from the caller or the folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compressor.checkpoints.manifest import CERTIFICATE_NAME
from compressor.checkpoints.store import Checkpoint, open_checkpoint
from compressor.cli.app import build
from compressor.errors import GoalError, UserError
from compressor.measurement.certify import certify
from compressor.runtime.load import load
from compressor.schema.certificate import FolderCertificates


def test_a_certificate_is_made_kept_beside_the_manifest_and_repeated(
    bert: Checkpoint, copy_of: Callable[[Checkpoint], Path], era_files: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy_of(bert)
    rows = [json.loads(line) for line in era_files["test"].read_text(encoding="utf-8").splitlines()][:120]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = certify(
        folder,
        baseline=folder,
        data=str(data),
        goals=[{"metric": "accuracy", "max_drop_points": 30}],
        max_label_drop_points=60,
        precision="int8",
        baseline_precision="onnx-fp32",
        evaluate={"metrics": ["accuracy"]},
        target={"threads": 1},
        out=tmp_path / "answers",
    )
    assert found.certified, found.reasons
    entry = bert.content.files["onnx/model_int8.onnx"]
    assert (found.of.sha256, found.of.checkpoint) == (entry.sha256, bert.digest)
    assert found.baseline is not None and found.baseline.sha256 == bert.content.files["onnx/model.onnx"].sha256
    assert {one.label for one in found.figures} >= {None, *(bert.content.labels or ())}
    assert found.machine["runtime"].startswith("onnxruntime ") and found.machine["cpu"]

    kept = FolderCertificates(certificates=(found,)).model_dump_json(by_alias=True)
    (folder / CERTIFICATE_NAME).write_text(kept, encoding="utf-8")
    open_checkpoint(folder)  # a certificate may lie there
    assert load(folder, precision="int8", threads=1).certificate == found
    assert load(folder, precision="onnx-fp32", threads=1).certificate is None, "it speaks of another file"
    with pytest.raises(GoalError, match=r"not certified on .*: recall of '.*': not shown \(at most 0.001 points"):
        arguments = ["--baseline", folder, "--data", data, "--precision", "int8", "--max-label-drop", "0.001", "-q"]
        CliRunner().invoke(build(), ["certify", str(folder), *map(str, arguments)], catch_exceptions=False)


def test_without_limits_nothing_is_judged(bert: Checkpoint, era_files: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"there is no limit on quality to hold it to\n  -> give one: --max-drop"):
        certify(bert.path, baseline=bert.path, data=str(era_files["test"]), precision="int8")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--data", "x.jsonl"], "a checkpoint by itself needs --baseline MODEL"),
        (["--baseline", "b"], "a checkpoint by itself needs --data FILE"),
        (["--max-drop", "accuracy"], "--max-drop 'accuracy' is not of the form NAME=VALUE"),
        (["--max-drop", "accuracy=much"], "--max-drop accuracy=much: 'much' is no number"),
    ],
)
def test_what_the_command_needs(arguments: list[str], text: str) -> None:
    with pytest.raises(UserError) as caught:
        CliRunner().invoke(build(), ["certify", "folder", *arguments], catch_exceptions=False)
    assert text in str(caught.value)
