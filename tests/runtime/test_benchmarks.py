"""The benchmarks' own arithmetic: tokens counted, likelihoods summed, marks kept or missed."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "eval" / "runtime"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


protocol, report = script("protocol"), script("report")
VOCABULARY = 5


class Counting:
    """A model that says, whatever it reads, that token n is followed by n + 1 with probability 1/2."""

    version = "made up"

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[int, ...]]] = []

    def forward(self, inputs: dict[str, Any]) -> Any:
        self.calls.append(("forward", inputs["input_ids"].shape))
        return self._logits(inputs["input_ids"])

    def prefill(self, ids: Any) -> Any:
        self.calls.append(("prefill", ids.shape))
        return self._logits(ids)

    def decode(self, ids: Any) -> Any:
        self.calls.append(("decode", ids.shape))
        return self._logits(ids)

    def _logits(self, ids: Any) -> Any:
        logits = np.zeros((len(ids), VOCABULARY), np.float32)
        logits[np.arange(len(ids)), (ids[:, -1] + 1) % VOCABULARY] = math.log(VOCABULARY - 1)
        return logits


def test_likelihoods_go_through_the_cache_one_token_at_a_time() -> None:
    model = Counting()
    nll = protocol.score(model, np.array([[0, 1, 2, 0]]))
    assert nll.tolist() == pytest.approx([math.log(2), math.log(2), math.log(8)])
    assert model.calls == [("prefill", (1, 1)), ("decode", (1, 1)), ("decode", (1, 1))]


def test_tokens_of_both_phases_are_counted() -> None:
    model = Counting()
    found = protocol.run_decoder(model, [{"input_ids": np.zeros((3, 4), np.int64)}], {"window_s": 0.0, "n_out": 5})
    assert (found["prefill"]["tokens"], found["decode"]["tokens"]) == (12, 15)
    assert model.calls == [("prefill", (3, 4)), *[("decode", (3, 1))] * 5]
    batches = [{"input_ids": np.zeros((2, 4), np.int64)}] * 2
    assert protocol.run_encoder(model, batches, {"window_s": 0.0})["forward"]["tokens"] == 16


def row(candidate: str, cost: float, phase: str = "forward") -> dict[str, Any]:
    rounds = [cost * factor for factor in (0.99, 1.0, 1.01)]
    ratio = {"value": cost, "ci95": [0.9 * cost, 1.1 * cost]}
    return {"candidate": candidate, "phase": phase, "cpu_s_per_token": cost, "cpu_s_per_token_rounds": rounds,
            "cpu_ratio_to_torch": ratio, "latency_s": 0.01}  # fmt: skip


def test_the_encoder_s_mark_needs_cost_and_accuracy() -> None:
    rows = [row("torch-eager", 1.0), row("ort-fp32", 0.5), row("ours-int8", 0.4)]
    about = {one["candidate"]: {"load_s": 0.2, "peak_memory_bytes": 1} for one in rows}
    record = {"1x32": {"rows": rows, "candidates": about}}
    right = "1" * 180 + "0" * 20
    level = {"torch-eager": {"right": right}, "ort-fp32": {"right": right}, "ours-int8": {"right": right}}
    worse = {**level, "ours-int8": {"right": "1" * 120 + "0" * 80}}
    kept = [report.encoder_marks(record, quality)[0]["kept"] for quality in (level, worse, {})]
    assert kept == [True, False, False]
    rows[2] = row("ours-int8", 0.49)
    assert not report.encoder_marks(record, level)[0]["kept"]  # 0.98 of the best
    assert report.encoder_marks(record, level)[-1] == {
        "mark": "load", "kept": True, "text": "session load of ours: at most 0.20 s; below 1 s was asked",
    }  # fmt: skip


def test_the_decoder_s_mark_needs_cost_and_perplexity() -> None:
    record = {"1x32": {"rows": [row("ours-w8", 0.3, "decode")], "candidates": {"ours-w8": {}}}}
    base = {"nll": [1.0, 2.0, 3.0], "token_perplexity": math.exp(2)}
    for shift, kept in ((0.005, True), (0.02, False)):
        quality = {"torch-eager": base, "ours-w8": {"nll": [one + shift for one in base["nll"]]}}
        (mark,) = report.decoder_marks(record, quality)
        assert mark["kept"] is kept
        assert mark["perplexity_ratio"] == pytest.approx(math.exp(shift))
