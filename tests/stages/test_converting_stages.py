"""Pruning, export and quantisation as stages: what is on record is what is in the files."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from stage_shelf import CASES, Shelf, make_context, stage_config
from transformers import AutoModelForSequenceClassification

from compressor.checkpoints.manifest import MANIFEST_NAME
from compressor.checkpoints.store import Checkpoint
from compressor.errors import ParityError, StageError, UnsupportedError, UserError
from compressor.methods.structure import Structure
from compressor.methods.surgery import read_structure
from compressor.runtime.torch_models import load_module
from compressor.spec.evaluation import Target
from compressor.stages.context import StageInputs
from compressor.stages.dispatch import run_here
from compressor.stages.prune import fits_stock_config

export_stage = importlib.import_module("compressor.stages.export")


def do(shelf: Shelf, folder: Path, settings: dict[str, Any], source: Checkpoint, **changes: Any) -> Checkpoint:
    ctx = make_context(shelf.task, shelf.data, folder / "work", **changes)
    return run_here(stage_config("s", settings), StageInputs(source), folder / "out", ctx)


def test_a_uniform_width_is_a_stock_checkpoint(bert: Shelf) -> None:
    made = bert.get("prune-ffn")
    assert made.content.structure is None
    stock = AutoModelForSequenceClassification.from_pretrained(made.path)
    assert stock.config.intermediate_size == 32
    ids = torch.tensor([[2, 10, 11, 3]])
    torch.testing.assert_close(stock.eval()(ids).logits, load_module(made)(ids).logits)
    assert made.record.realised["structure"]["layers"][0]["ffn_width"] == 32


def test_pruned_heads_travel_in_the_manifest_and_a_stock_loader_fails_loudly(bert: Shelf) -> None:
    made = bert.get("prune-heads")
    assert made.content.structure is not None
    structure = Structure.from_json(made.content.structure)
    assert [(layer.n_heads, layer.ffn_width) for layer in structure.layers] == [(2, 32)] * 4
    assert read_structure(load_module(made)) == structure.reload()
    with pytest.raises(Exception, match="num_attention_heads"):
        AutoModelForSequenceClassification.from_pretrained(made.path)


def test_parameters_are_counted_again(bert: Shelf) -> None:
    made = bert.get("prune-heads")
    n_counted = sum(parameter.numel() for parameter in load_module(made).parameters())
    assert made.record.realised["parameters"] == n_counted < made.record.realised["parameters_before"]
    assert made.content.variants[0].parameters == n_counted


def test_a_budget_is_kept_and_chosen_layer_by_layer(bert: Shelf) -> None:
    choice = bert.get("prune-budget").record.realised["choice"]
    assert choice["cost"] == "macs"
    assert 0 < choice["predicted_cost_ratio"] <= 0.6


def test_pruning_twice_is_told_in_terms_of_the_first_source(bert: Shelf, tmp_path: Path) -> None:
    once = bert.get("prune-heads")
    twice = do(bert, tmp_path, {"stage": "prune", "keep": {"heads": 0.5}, "granule": 8}, once)
    first, second = (Structure.from_json(made.record.realised["structure"]) for made in (once, twice))
    for before, after in zip(first.layers, second.layers, strict=True):
        assert set(after.heads_kept) < set(before.heads_kept)
        assert after.ffn_kept == before.ffn_kept


def test_a_pruning_that_removes_nothing_is_an_error(bert: Shelf, tmp_path: Path) -> None:
    settings = {"stage": "prune", "keep": {"ffn": 0.99}, "granule": 64}
    with pytest.raises(StageError, match="nothing would be removed"):
        do(bert, tmp_path, settings, bert.get("finetune"))
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


def test_a_budget_in_parameters_is_kept(gpt2: Shelf, tmp_path: Path) -> None:
    dense = gpt2.get("finetune")
    made = do(gpt2, tmp_path, {"stage": "prune", "budget": {"parameters": 0.5}, "granule": 8}, dense)

    def weights_of_layers(checkpoint: Checkpoint) -> int:
        names = [(name, value) for name, value in load_module(checkpoint).named_parameters() if ".h." in name]
        return sum(value.numel() for name, value in names if name.endswith("weight") and ".ln_" not in name)

    assert weights_of_layers(made) <= 0.5 * weights_of_layers(dense)


@pytest.mark.parametrize("importance", ["magnitude", "wanda", "flap", "taylor", "fisher"])
def test_every_importance_runs(importance: str, bert: Shelf, tmp_path: Path) -> None:
    settings = {**CASES["prune-ffn"], "importance": importance, "recovery": "none"}
    made = do(bert, tmp_path, settings, bert.get("finetune"))
    assert made.record.realised["parameters"] == bert.get("prune-ffn").record.realised["parameters"]


def test_stock_shapes_are_recognised(bert: Shelf) -> None:
    assert fits_stock_config(load_module(bert.get("finetune")))
    assert not fits_stock_config(load_module(bert.get("prune-heads")))


def test_an_export_is_fused_and_says_so(bert: Shelf) -> None:
    made = bert.get("export")
    variant = made.variant("onnx-fp32")
    assert variant.path == "onnx/model.onnx"
    assert (
        variant.facts["fusion"]["counts"]["MultiHeadAttention"] == 4
        or variant.facts["fusion"]["counts"]["Attention"] == 4
    )
    operators = [node.op_type for node in onnx.load(made.path / variant.path).graph.node]
    for operator, count in variant.facts["fusion"]["counts"].items():
        assert operators.count(operator) == count
    for path in ("batch 8", "batch 1"):
        parity = made.record.realised["parity"][path]
        assert parity["relative"] <= 1e-4 and parity["top1_agreement"] == 1.0
    assert {file for file in made.content.files if not file.startswith("onnx/")} >= {"config.json", "tokenizer.json"}


def test_the_sources_files_are_linked_and_its_variant_stays(bert: Shelf) -> None:
    source, made = bert.get("finetune"), bert.get("export")
    assert [variant.id for variant in made.content.variants] == ["torch-fp32", "onnx-fp32"]
    assert (made.path / "model.safetensors").samefile(source.path / "model.safetensors")
    assert [variant.stage for variant in bert.get("int8").content.variants] == ["finetune", "export", "int8"]


def test_a_decoders_parity_covers_the_cache(gpt2: Shelf) -> None:
    parity = gpt2.get("export").record.realised["parity"]
    assert {"uncached", "cached", "cached, in a chunk"} <= set(parity)


def test_an_export_that_is_off_fails_with_its_path(
    bert: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_wrong(model: Any, path: Path, **names: Any) -> None:
        with torch.no_grad():
            model.classifier.bias += 1.0
        real(model, path, **names)
        with torch.no_grad():
            model.classifier.bias -= 1.0

    real = export_stage.export_encoder
    monkeypatch.setattr(export_stage, "export_encoder", export_wrong)
    with pytest.raises(
        ParityError, match=r"batch 8: fp32 conversion is not faithful: logits differ by up to 1"
    ) as caught:
        do(bert, tmp_path, {"stage": "export"}, bert.get("finetune"))
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


def test_int8_weights_are_in_the_file(bert: Shelf) -> None:
    made = bert.get("int8")
    variant = made.variant("onnx-w8a8-dynamic")
    stored = onnx.load(made.path / variant.path).graph.initializer
    n_int8 = sum(numpy_helper.to_array(tensor).size for tensor in stored if tensor.data_type == onnx.TensorProto.INT8)
    assert variant.path == "onnx/model_int8.onnx"
    assert variant.facts["dtype_bytes"]["int8"] >= n_int8 > 4 * 4 * 32 * 32
    assert sum(variant.facts["quantised_operators"].values()) >= 4 * 6
    parity = made.record.realised["parity"]
    assert parity["against"] == "onnx-fp32"
    assert 0 < parity["batch 8"]["kl_mean"] < 0.1


@pytest.mark.parametrize(
    ("case", "path"),
    [
        ("fp16", "onnx/model_fp16.onnx"),
        ("bf16", "onnx/model_bf16.onnx"),
        ("w8", "onnx/model_w8.onnx"),
        ("w4", "onnx/model_q4.onnx"),
    ],
)
def test_schemes_have_the_names_that_others_look_for(case: str, path: str, bert: Shelf) -> None:
    (own,) = [variant for variant in bert.get(case).content.variants if variant.stage == case]
    assert own.path == path
    assert own.size_bytes < bert.get("export").variant("onnx-fp32").size_bytes


@pytest.mark.parametrize(
    ("name", "scheme"), [("bert", "w8a8-dynamic"), ("bert", "w8a8-static"), ("gpt2", "w8a8-dynamic"), ("gpt2", "w8")]
)
def test_embeddings_are_stored_in_int8_where_asked(
    name: str, scheme: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    shelf: Shelf = request.getfixturevalue(name)
    settings = {"stage": "quantize", "scheme": scheme, "lm_head": name == "gpt2"}
    export = shelf.get("export")
    without, made = (
        do(shelf, tmp_path / str(asked), {**settings, "embeddings": asked}, export).variant(f"onnx-{scheme}")
        for asked in (False, True)
    )
    before, after = without.facts["dtype_bytes"], made.facts["dtype_bytes"]
    table = 512 * 32
    shared = table if (name, scheme) == ("gpt2", "w8a8-dynamic") else 0  # with the head, which has it in INT8 already
    assert before["float32"] - after["float32"] == 4 * (table - 512)  # one scale a row
    assert after["int8"] - before.get("int8", 0) == table - shared
    assert made.parameters == without.parameters - shared
    assert made.size_bytes < without.size_bytes


def test_fp16_refuses_settings_that_it_would_ignore(bert: Shelf, tmp_path: Path) -> None:
    settings = {**CASES["fp16"], "embeddings": True, "exclude": ["a"]}
    with pytest.raises(UnsupportedError, match="fp16 converts the entire model and takes no embeddings, exclude"):
        do(bert, tmp_path, settings, bert.get("export"))
    assert not (tmp_path / "out").exists()


def test_a_scheme_that_the_provider_cannot_run_is_refused_before_any_work(bert: Shelf, tmp_path: Path) -> None:
    target = Target(provider="CUDAExecutionProvider")
    with pytest.raises(UnsupportedError, match="CUDAExecutionProvider has no kernels for w8a8-dynamic") as caught:
        do(bert, tmp_path, CASES["int8"], bert.get("export"), target=target)
    assert "it runs: fp16, bf16, w8, w4" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_quantised_graph_is_not_quantised_again(bert: Shelf, tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedError, match="'int8' left w8a8-dynamic, and only an fp32 ONNX graph can be quantised"
    ):
        do(bert, tmp_path, CASES["fp16"], bert.get("int8"))


def test_an_excluded_node_that_is_not_there_is_the_users_mistake(bert: Shelf, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no_such_node"):
        do(bert, tmp_path, {**CASES["int8"], "exclude": ["no_such_node"]}, bert.get("export"))
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


def test_a_pruned_graph_is_fused_like_a_dense_one(bert: Shelf) -> None:
    dense, pruned = (
        bert.get(case).variant("onnx-fp32").facts["fusion"]["counts"] for case in ("export", "export-pruned")
    )
    assert dense == pruned
    assert np.isfinite(bert.get("export-pruned").record.realised["parity"]["batch 8"]["kl_mean"])
