"""`--json` of commands that need a real checkpoint: one document on stdout, and what is for people on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from compressor.checkpoints.store import Checkpoint
from compressor.cli.app import build
from compressor.errors import GoalError

Answer = tuple[Any, str, BaseException | None]


@pytest.fixture
def answer() -> Callable[..., Answer]:
    """(what stdout says as JSON, what stderr says, the error that the command ends with)."""

    def asked(*arguments: object) -> Answer:
        result = CliRunner().invoke(build(), [*map(str, arguments), "--json"])
        return json.loads(result.stdout), result.stderr, result.exception

    return asked


def test_push_lists_what_would_be_sent(answer: Callable[..., Answer], run_dir: Path, bert: Checkpoint) -> None:
    planned, _, error = answer("push", run_dir, "org/model", "--dry-run")
    assert error is None and (planned["repository"], planned["candidate"], planned["commit"]) == (
        "org/model", "int8", None,
    )  # fmt: skip
    sums = {one["path"]: one["sha256"] for one in planned["files"]}
    assert sums["onnx/model_int8.onnx"] == bert.content.files["onnx/model_int8.onnx"].sha256


def test_a_certificate_that_is_refused_is_still_whole(
    answer: Callable[..., Answer], bert: Checkpoint, era_files: dict[str, Path]
) -> None:
    limits = ["--max-drop", "accuracy=0.001", "--rows", "60", "--threads", "1"]
    found, said, error = answer(
        "certify", bert.path, "--baseline", bert.path, "--data", era_files["test"], "--precision", "int8", *limits
    )
    assert isinstance(error, GoalError) and error.exit_code == 3
    assert (found["schema"], found["certified"], found["of"]["variant"]) == (
        "compressor-certificate/1", False, "onnx-w8a8-dynamic",
    )  # fmt: skip
    assert said, "progress goes to stderr"


def test_export_says_what_stock_shapes_cost(
    answer: Callable[..., Answer], pruned_bert: Checkpoint, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    found, _, error = answer("export", pruned_bert.path, "--stock", "--out", tmp_path / "stock")
    assert error is None and found["folder"] == str(tmp_path / "stock")
    module = AutoModelForSequenceClassification.from_pretrained(tmp_path / "stock")
    assert found["parameters"] == sum(one.numel() for one in module.parameters()) > found["parameters_pruned"]
