"""A small valid pipeline, and the message that a changed one gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.errors import PipelineError
from compressor.spec.load import load_pipeline

VALID = """\
version: 1
name: job
model:
  task: sequence-classification
  path: models/bert
data:
  train: {path: train.jsonl}
  validation: {path: validation.jsonl}
  test: {path: test.jsonl}
stages:
  - id: teacher
    stage: finetune
  - id: student
    stage: distill
    teacher: teacher
    layers: [1, 3]
    training:
      epochs: 2
  - id: onnx
    stage: export
  - id: int8
    stage: quantize
    scheme: w8a8-dynamic
workloads:
  - {id: rows, from_data: true, batch: 8}
goals:
  - {metric: accuracy, min_retained: 0.97}
"""


@pytest.fixture
def valid() -> str:
    return VALID


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The whole message for a pipeline text in `job.yaml`; fails when the pipeline is accepted."""

    def refuse(text: str, *overrides: str) -> str:
        monkeypatch.chdir(tmp_path)
        Path("job.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(PipelineError) as caught:
            load_pipeline("job.yaml", overrides=overrides)
        return str(caught.value)

    return refuse


@pytest.fixture
def changed(refusal: Callable[..., str]) -> Callable[[str, str], str]:
    """The whole message after one piece of the valid pipeline was replaced by another."""

    def change(old: str, new: str) -> str:
        assert VALID.count(old) == 1, old
        return refusal(VALID.replace(old, new))

    return change
