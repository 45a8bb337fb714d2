"""What a pipeline leaves open is decided by measuring: arithmetic, rounding, which nodes keep more bits, smoothing."""

from __future__ import annotations

import resource
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from stage_shelf import Shelf, make_context, stage_config

from compressor.checkpoints.manifest import MANIFEST_NAME
from compressor.checkpoints.store import Checkpoint, open_checkpoint
from compressor.energy.processor import instruction_set, read_cpu_flags
from compressor.errors import DataError, MissingPackageError, StageError, UnsupportedError
from compressor.runtime import runners
from compressor.runtime.torch_models import load_module
from compressor.stages.arithmetic import cheapest_exact
from compressor.stages.context import StageInputs
from compressor.stages.dispatch import run_here
from compressor.stages.neural_compressor import round_module

QUANTIZE = {"stage": "quantize", "exclude": "auto"}
ACCURACY = {"metric": "accuracy", "max_drop_points": 2.0}


def do(shelf: Shelf, folder: Path, settings: dict[str, Any], source: str = "export", **changes: Any) -> Checkpoint:
    ctx = make_context(shelf.task, changes.pop("data", shelf.data), folder / "work", **changes)
    return run_here(stage_config("s", settings), StageInputs(shelf.get(source)), folder / "out", ctx)


def operators(made: Checkpoint) -> list[str]:
    (own,) = [variant for variant in made.content.variants if variant.stage == "s"]
    return [node.op_type for node in onnx.load(made.path / own.path).graph.node]


def test_nodes_are_left_alone_until_validation_holds_and_the_table_says_why(bert: Shelf, tmp_path: Path) -> None:
    until = {"metric": "agreement", "max_drop_points": 0.0}
    made = do(bert, tmp_path, {**QUANTIZE, "scheme": "w4", "until": until})
    found = made.record.realised["mixture"]
    assert found["fp32"] == 1.0 and found["quantised"] == 1.0
    nodes = found["nodes"]
    assert {(row["node"], row["level"]) for row in found["damage"]} == {
        (row["node"], level) for row in found["damage"] for level in ("w4", "w8")
    }
    assert len(found["damage"]) == 2 * nodes
    kl = [row["kl"] for row in found["damage"]]
    assert kl == sorted(kl, reverse=True) and kl[0] > 0
    bits = {
        attribute.i: 0
        for node in onnx.load(made.path / made.variant("onnx-w4").path).graph.node
        if node.op_type == "MatMulNBits"
        for attribute in node.attribute
        if attribute.name == "bits"
    }
    assert (8 in bits) == bool(found["w8_nodes"])
    assert operators(made).count("MatMulNBits") == nodes - len(found["fp32_nodes"])
    assert "validation" in made.record.data


def test_a_goal_that_the_scheme_keeps_as_it_is_leaves_no_node_alone(bert: Shelf, tmp_path: Path) -> None:
    made = do(bert, tmp_path, {**QUANTIZE, "scheme": "w8", "until": ACCURACY})
    found = made.record.realised["mixture"]
    assert found["steps"] == 0 and found["fp32_nodes"] == [] and found["w8_nodes"] == []
    assert operators(made).count("MatMulNBits") == found["nodes"]


@pytest.mark.slow
def test_a_decoder_is_held_to_its_perplexity(gpt2: Shelf, tmp_path: Path) -> None:
    until = {"metric": "token_perplexity", "max_ratio": 1.02}
    made = do(gpt2, tmp_path, {**QUANTIZE, "scheme": "w8a8-dynamic", "until": until})
    found = made.record.realised["mixture"]
    assert found["quantised"] <= 1.02 * found["fp32"]
    variant = made.variant("onnx-w8a8-dynamic")
    assert variant.facts["instruction_set"] == instruction_set(read_cpu_flags())


def test_without_validation_rows_nothing_can_be_held(bert: Shelf, tmp_path: Path) -> None:
    without = replace(bert.data, validation=None)
    with pytest.raises(DataError, match=r"data.validation: nodes are left out until quality .* and there are none"):
        do(bert, tmp_path, {**QUANTIZE, "scheme": "w8", "until": ACCURACY}, data=without)
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


@pytest.mark.slow
def test_a_goal_that_no_mixture_keeps_ends_in_do_not_quantise(gpt2: Shelf, tmp_path: Path) -> None:
    until = {"metric": "token_perplexity", "max_ratio": 1e-3}
    with pytest.raises(StageError, match=r"do not quantise here: w8 keeps token_perplexity .* every product in fp32"):
        do(gpt2, tmp_path, {**QUANTIZE, "scheme": "w8", "until": until})
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


def test_arithmetic_is_chosen_by_error_and_cost_and_another_machine_warns(
    bert: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = do(bert, tmp_path, {"stage": "quantize", "scheme": "w8a8-dynamic", "arithmetic": "auto"})
    found = made.record.realised["arithmetic"]
    table = {row["arithmetic"]: row for row in found["options"]}
    assert set(table) == {"u8s8", "u8s8-precise", "u8s8-reduced", "u8u8"}
    assert all(row["cpu_s_per_call"] > 0 and row["relative_error"] > 0 for row in table.values())
    measured = {name: (row["relative_error"], row["cpu_s_per_call"]) for name, row in table.items()}
    assert found["chosen"] == cheapest_exact(measured)
    variant = made.variant("onnx-w8a8-dynamic")
    assert variant.facts["arithmetic"] == found["chosen"]
    assert variant.settings == ({"x64_quant_precision": True} if found["chosen"] == "u8s8-precise" else {})
    assert variant.facts["instruction_set"] == instruction_set(read_cpu_flags())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runners.open_runner(made, variant.id, threads=1)
    monkeypatch.setattr(runners, "read_cpu_flags", lambda: frozenset({"asimddp"}))
    with pytest.warns(UserWarning, match=r"was tuned on a processor with \w+, and this one has asimddp"):
        runners.open_runner(made, variant.id, threads=1)


def test_the_cheapest_of_those_about_as_exact_is_taken() -> None:
    assert cheapest_exact({"a": (0.010, 1.0), "b": (0.014, 0.8), "c": (0.016, 0.1)}) == "b"  # c is 1.6 times as far off
    assert cheapest_exact({"a": (0.010, 0.82), "b": (0.014, 0.8)}) == "a"  # 2.5 % dearer is no difference
    assert cheapest_exact({"only": (0.5, 1.0)}) == "only"


def test_a_precise_session_is_part_of_the_file(bert: Shelf, tmp_path: Path) -> None:
    made = do(bert, tmp_path, {"stage": "quantize", "scheme": "w8a8-dynamic", "arithmetic": "u8s8-precise"})
    assert made.variant("onnx-w8a8-dynamic").settings == {"x64_quant_precision": True}
    assert "instruction_set" not in made.variant("onnx-w8a8-dynamic").facts  # asked for, not tuned


@pytest.mark.slow
def test_gptq_is_nearer_to_fp32_than_rounding_to_the_nearest(gpt2: Shelf, tmp_path: Path) -> None:
    kl = {}
    for method in ("rtn", "gptq"):
        made = do(gpt2, tmp_path / method, {"stage": "quantize", "scheme": "w4", "method": method})
        kl[method] = made.record.realised["parity"]["uncached"]["kl_mean"]
    assert kl["gptq"] < kl["rtn"]


def test_methods_of_neural_compressor_name_what_is_missing(bert: Shelf, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="awq is made for language models, and this is sequence-classification"):
        do(bert, tmp_path / "bert", {"stage": "quantize", "scheme": "w4", "method": "awq"})
    with pytest.raises(MissingPackageError, match=r"method: awq needs the package 'neural-compressor'") as caught:
        round_module(load_module(bert.get("finetune")), [], method="awq", bits=4, block_size=32)
    assert "joule-compressor[neural-compressor]" in str(caught.value)


@pytest.mark.slow
def test_smoothing_changes_weights_and_no_answer(gpt2: Shelf, tmp_path: Path) -> None:
    made = do(gpt2, tmp_path, {"stage": "export", "smooth": {"alpha": 0.6}}, source="finetune")
    plain = gpt2.get("export")
    assert made.variant("onnx-fp32").facts["smoothed"] == 0.6
    assert plain.variant("onnx-fp32").facts["smoothed"] is None
    stored = [
        np.concatenate(
            [numpy_helper.to_array(t).ravel() for t in onnx.load(c.path / "onnx/model.onnx").graph.initializer]
        )
        for c in (made, plain)
    ]
    assert stored[0].shape == stored[1].shape and not np.allclose(*stored)
    parity = made.record.realised["parity"]
    assert parity["uncached"]["relative"] <= 1e-4 and parity["cached"]["top1_agreement"] == 1.0


def test_smoothing_a_post_norm_model_is_refused_before_any_work(bert: Shelf, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="cannot be folded into a 'bert' model: its norms also feed"):
        do(bert, tmp_path, {"stage": "export", "smooth": {}}, source="finetune")
    assert not (tmp_path / "out").exists()


def test_a_calibration_set_that_is_too_small_is_refused(bert: Shelf, tmp_path: Path) -> None:
    assert bert.data.calibration is not None
    few = replace(bert.data, calibration=bert.data.calibration.select(range(3)))
    with pytest.raises(DataError, match=r"data.calibration: the calibration set is too small: 3 rows with \d+ tokens"):
        do(bert, tmp_path, {"stage": "quantize", "scheme": "w8a8-static"}, data=few)
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


@pytest.mark.parametrize("settings", [{"stage": "quantize", "scheme": "w8"}, {"stage": "quantize", "scheme": "fp16"}])
def test_a_disk_that_fills_leaves_the_stage_before_intact(
    bert: Shelf, tmp_path: Path, settings: dict[str, Any]
) -> None:
    source = bert.get("export")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # the kernel refuses the rest, as a full disk would
    try:
        with pytest.raises(StageError, match="File too large"):
            do(bert, tmp_path, settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()
    assert open_checkpoint(source.path, verify=True).digest == source.digest
