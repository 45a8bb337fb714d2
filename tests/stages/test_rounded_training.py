"""Training that knows how its result will be rounded, as a stage: what is on record, and what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file
from stage_shelf import TRAINING, Shelf, make_context, stage_config

from compressor.checkpoints.store import Checkpoint
from compressor.spec.stages import Training
from compressor.stages.context import StageInputs
from compressor.stages.dispatch import run_here, run_stage

SHORT = {**TRAINING, "max_steps": 3}


def test_what_is_left_is_a_plain_checkpoint_that_says_how_it_was_trained(bert: Shelf) -> None:
    source, made = bert.get("finetune"), bert.get("recover-rounded")
    assert [variant.scheme for variant in made.content.variants] == ["fp32"]
    ours, before = (load_file(each.path / "model.safetensors") for each in (made, source))
    assert ours.keys() == before.keys()
    assert made.record.config["training"]["quantisation_aware"] == "w8a8-static"
    assert set(made.record.data) == {"train", "validation", "calibration"}  # static ranges come from calibration
    assert "quantisation_aware" not in source.record.config["training"]
    assert set(source.record.data) == {"train", "validation"}


def test_validation_sees_the_rounded_model(gpt2: Shelf, tmp_path: Path) -> None:
    frozen = {**SHORT, "learning_rate": 1e-30, "weight_decay": 0}
    plain, rounded = (
        finetuned(gpt2, tmp_path / str(scheme), {**frozen, "quantisation_aware": scheme}) for scheme in (None, "w4")
    )
    perplexities = [made.record.realised["validation"]["before"] for made in (plain, rounded)]
    assert perplexities[0] != perplexities[1]
    assert rounded.digest == plain.digest  # nothing was learned, and nothing is left of the rounding


def finetuned(shelf: Shelf, folder: Path, training: dict[str, Any], runner: Any = run_here) -> Checkpoint:
    config = stage_config("rounded", {"stage": "finetune", "training": training})
    ctx = make_context(shelf.task, shelf.data, folder / "work")
    made: Checkpoint = runner(config, StageInputs(shelf.get("finetune")), folder / "out", ctx)
    return made


@pytest.mark.slow
def test_two_processes_round_alike(bert: Shelf, tmp_path: Path) -> None:
    training = {**SHORT, "quantisation_aware": "w8a8-static", "processes": 2}
    made = finetuned(bert, tmp_path, training, runner=run_stage)
    assert made.record.realised["processes"] == 2
    assert made.record.realised["steps"] == 3


def test_a_setting_that_is_absent_changes_no_fingerprint() -> None:
    assert "quantisation_aware" not in Training().model_dump(by_alias=True)
    assert Training(quantisation_aware="w4").model_dump()["quantisation_aware"] == "w4"


def test_it_goes_with_losses_and_not_with_what_the_student_writes() -> None:
    settings = {"stage": "distill", "teacher": "t", "on_policy": {}, "training": {"quantisation_aware": "w8"}}
    with pytest.raises(ValidationError, match="quantisation_aware` goes with `losses`, not with `on_policy`"):
        stage_config("student", settings)
