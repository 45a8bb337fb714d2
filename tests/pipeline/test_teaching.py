"""The dry run's words for a distillation, and the size of its cache, worked out by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from compressor.pipeline.dry_run import dry_run
from compressor.pipeline.teaching import cache_bytes, losses_text
from compressor.spec.load import load_pipeline
from compressor.spec.stages import Distill
from compressor.spec.tasks import TASKS

BERT = {"hidden_size": 100, "num_hidden_layers": 12}
GPT2 = {"n_embd": 100, "n_layer": 12, "vocab_size": 1000}


def stage(**settings: Any) -> Distill:
    return Distill.model_validate({"id": "s", "stage": "distill", "teacher": "t", **settings})


def test_a_preset_is_written_out_with_what_was_changed() -> None:
    config = stage(preset="distilbert", losses={"labels": 0, "hidden": {"at": "every"}})
    assert losses_text(config) == "logits 5 (forward_kl, T 2), hidden 1 (cosine, every layer)"


@pytest.mark.parametrize(
    ("settings", "n_bytes"),
    [
        ({}, 0),  # a classifier's logits have a line per row, not per token
        ({"preset": "tinybert", "layers": (0, 1, 2)}, 10 * 2 * 100 * (1 + 3 + 2 * 3)),
        ({"preset": "minilmv2"}, 10 * 2 * 100 * 3),
        ({"preset": "minilm"}, 10 * 2 * 100 * (2 + 1)),
        ({"preset": "tinybert", "student": {"config": {"model_type": "bert", "num_hidden_layers": 2}},
          "training": {"augment": {"model": "m", "variants": 3}}}, 4 * 10 * 2 * 100 * (1 + 2 + 2 * 2)),
    ],
)  # fmt: skip
def test_bytes_of_an_encoders_cache(settings: dict[str, Any], n_bytes: int) -> None:
    assert cache_bytes(stage(**settings), BERT, TASKS["sequence-classification"], 10, 30) == n_bytes


def test_bytes_of_a_language_models_cache() -> None:
    task = TASKS["causal-lm"]
    assert cache_bytes(stage(), GPT2, task, 10, 1000) == 10 * 1000 * 2
    assert cache_bytes(stage(losses={"logits": {"top_k": 64}}), GPT2, task, 10, 1000) == 10 * 64 * 6
    assert cache_bytes(stage(), {"model_type": "bert"}, task, 10, 1000) is None


@pytest.mark.parametrize(
    ("limit", "said"),
    [("10", r"about 0\.\d\d GB of the teacher's outputs cached"), ("1e-5", "above cache_limit_gb 1e-05")],
)
def test_the_dry_run_prints_the_losses_and_the_size_of_the_cache(limit: str, said: str) -> None:
    overrides = [f"stages.student.cache_limit_gb={limit}"]
    found = dry_run(load_pipeline(Path("pipelines/smoke-decoder.yaml"), overrides=overrides)).checks
    text = next(check.text for check in found if check.name == "losses of student")
    assert text.startswith("labels ") and "logits " in text
    assert re.search(said, text), text
