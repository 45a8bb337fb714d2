"""What holds for every stage, whatever it does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from stage_shelf import CASES, Shelf

from compressor.checkpoints.manifest import MANIFEST_NAME
from compressor.checkpoints.store import open_checkpoint
from compressor.data.splits import StageData
from compressor.data.tokenize import load_tokenizer
from compressor.errors import CheckpointError, DataError
from compressor.runtime.runners import open_runner
from compressor.runtime.torch_models import load_module

DECODER_CASES = ("model", "finetune", "distill", "prune-heads", "export", "fp16", "int8", "static", "w4")
ALL = [("bert", case) for case in ("model", *CASES)] + [("gpt2", case) for case in DECODER_CASES]


@pytest.fixture(params=ALL, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def shelf_and_case(request: pytest.FixtureRequest) -> tuple[Shelf, str]:
    name, case = request.param
    return request.getfixturevalue(name), case


def test_every_law(shelf_and_case: tuple[Shelf, str], tmp_path: Path) -> None:
    """One test for a case, so that its checkpoint is made twice and no more."""
    shelf, case = shelf_and_case
    checkpoint = shelf.get(case)

    # whole: every file hashes to what the manifest says, and the record is complete
    assert open_checkpoint(checkpoint.path, verify=True).digest == checkpoint.digest
    record = checkpoint.record
    assert record.stage == case
    assert record.kind == ("source" if case == "model" else CASES[case]["stage"])
    assert record.wall_s > 0 and record.cpu_s > 0
    assert (record.energy is None) == (record.energy_reason is not None)
    assert record.realised["parameters"] > 0
    assert record.versions and record.host["cpu"] and record.created
    assert "test" not in record.data

    # a candidate: exactly one variant belongs to the stage, its figures read from its file
    own = [variant for variant in checkpoint.content.variants if variant.stage == case]
    assert len(own) == 1
    assert own[0].size_bytes == (checkpoint.path / own[0].path).stat().st_size
    assert own[0].parameters == record.realised["parameters"]

    # it loads and answers
    text = ["Our thoughts next revert to the death of the late President.", "Peace."]
    tokenizer = load_tokenizer(checkpoint.path)
    inputs = {name: np.asarray(value) for name, value in tokenizer(text, padding=True).items()}
    logits = open_runner(checkpoint, own[0].id, threads=1).forward(inputs)["logits"]
    assert np.isfinite(logits).all() and logits.shape[0] == 2
    module = load_module(checkpoint)
    with torch.no_grad():
        answer = module(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits
    assert answer.shape == logits.shape

    # the same again from the same seed, and the source is as it was
    before = {} if case == "model" else shelf.inputs(case).digests()
    # what a clock decided is given back as the table that it was written to
    settings = {"table": str(checkpoint.path / "tuning.json")} if case == "tune" else {}
    again = shelf.make(case, tmp_path, settings=settings)
    assert again.digest == checkpoint.digest
    if case != "model":
        inputs_now = shelf.inputs(case)
        assert open_checkpoint(inputs_now.source.path, verify=True).digest == before["source"]
        assert record.inputs == before
        if inputs_now.teacher is not None:
            assert open_checkpoint(inputs_now.teacher.path, verify=True).digest == before["teacher"]


@pytest.mark.parametrize("case", list(CASES))
def test_a_stage_that_fails_leaves_no_checkpoint(case: str, bert: Shelf, tmp_path: Path) -> None:
    nothing = StageData(train=None, validation=None, calibration=None, digests={})
    with pytest.raises(DataError, match=r"data\.(train|calibration): "):
        bert.make(case, tmp_path, data=nothing)
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()
    if (tmp_path / "out").exists():
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path / "out")
