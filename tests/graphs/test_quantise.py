"""Quantisation: realised facts, tied heads, refusals; the file is always read again."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_families import Exported, Fused
from onnx_runs import Arrays, decode, run, texts, torch_logits

from compressor.errors import DataError, StageError, UnsupportedError, UserError
from compressor.graphs.choose import write_int8_options
from compressor.graphs.facts import inspect_onnx
from compressor.graphs.parity import compare_logits
from compressor.graphs.quantise import convert_fp16, quantise_dynamic, quantise_static, quantise_weights

Get = Callable[[str], Exported]
GetFused = Callable[[str], Fused]
N_PRODUCTS = 14  # of the tiny BERT: 4 of attention and 2 of the FFN in each of 2 layers, pooler and classifier


@pytest.fixture(scope="session")
def bert(fused: GetFused) -> Path:
    """The tiny BERT, fused."""
    return fused("bert").path


def test_facts_are_those_of_the_file(exported: Get) -> None:
    one = exported("bert")
    facts = inspect_onnx(one.path)
    assert (facts.opset, facts.ir_version) == (20, 10)
    assert facts.quantised_op_counts == {} and facts.n_quantised == 0
    buffers = 512  # the table of position ids is int64 and no weight; sums of folded constants are scalars
    assert facts.n_parameters == sum(p.numel() for p in one.model.parameters())
    assert facts.dtype_bytes["float32"] >= 4 * facts.n_parameters
    assert facts.dtype_bytes["int64"] >= 8 * buffers
    assert facts.size_bytes == one.path.stat().st_size
    assert sum(facts.op_counts.values()) == len(onnx.load(str(one.path)).graph.node)


def test_dynamic_int8_reaches_every_product_and_counts_the_same_weights(bert: Path, tmp_path: Path) -> None:
    facts = quantise_dynamic(bert, tmp_path / "int8.onnx")
    assert facts.quantised_op_counts == {"MatMulInteger": N_PRODUCTS}
    assert facts.n_parameters == inspect_onnx(bert).n_parameters
    weights = sum(
        int(np.prod(tensor.dims))
        for tensor in onnx.load(str(tmp_path / "int8.onnx")).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2
    )
    assert weights == 2 * (4 * 32 * 32 + 2 * 32 * 48) + 32 * 32 + 32 * 3
    feed = texts(3, 12, pad=4)
    report = compare_logits(run(bert, feed)["logits"], run(tmp_path / "int8.onnx", feed)["logits"])
    assert 0 < report.relative < 0.2


def test_unsigned_weights_reduced_range_and_per_tensor_scales_are_what_they_say(bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    assert quantise_dynamic(bert, out, weight_type="uint8").dtype_bytes.get("uint8", 0) > 10_000
    quantise_dynamic(bert, out, reduce_range=True)
    largest = max(np.abs(array).max() for array in _int8_matrices(out))
    assert largest <= 64
    quantise_dynamic(bert, out)
    assert max(np.abs(array).max() for array in _int8_matrices(out)) == 127
    n_scales = [inspect_onnx(out).dtype_bytes["float32"]]
    n_scales.append(quantise_dynamic(bert, out, per_channel=False).dtype_bytes["float32"])
    assert n_scales[0] > n_scales[1]


def test_the_head_and_named_nodes_are_left_out_on_request(bert: Path, tmp_path: Path) -> None:
    facts = quantise_dynamic(bert, tmp_path / "a.onnx", include_lm_head=False)
    assert facts.quantised_op_counts == {"MatMulInteger": N_PRODUCTS - 1}
    products = [node.name for node in onnx.load(str(bert)).graph.node if node.op_type in ("MatMul", "Gemm")]
    facts = quantise_dynamic(bert, tmp_path / "b.onnx", exclude=products[:3])
    assert facts.quantised_op_counts == {"MatMulInteger": N_PRODUCTS - 3}
    with pytest.raises(UserError, match=r"fused.onnx: has no node named nowhere"):
        quantise_dynamic(bert, tmp_path / "c.onnx", exclude=["nowhere"])
    with pytest.raises(StageError, match="w8a8-dynamic quantised nothing"):
        quantise_dynamic(bert, tmp_path / "c.onnx", exclude=products)
    assert not (tmp_path / "c.onnx").exists()


@pytest.mark.parametrize("fused", [False, True])
def test_a_tied_head_is_quantised_and_stored_once_with_its_embedding(
    tied: Exported, tmp_path: Path, fused: bool
) -> None:
    source = tied.path.with_name("fused.onnx") if fused else tied.path
    table = 2100 * 32
    with_head = quantise_dynamic(source, tmp_path / "head.onnx")
    without = quantise_dynamic(source, tmp_path / "no-head.onnx", include_lm_head=False)
    both = quantise_dynamic(source, tmp_path / "both.onnx", include_embeddings=True)
    assert with_head.n_quantised == without.n_quantised + 1 == both.n_quantised
    assert with_head.dtype_bytes["int8"] - without.dtype_bytes["int8"] >= table
    assert both.dtype_bytes["int8"] == with_head.dtype_bytes["int8"]  # the embedding reads the head's matrix
    assert with_head.dtype_bytes["float32"] - both.dtype_bytes["float32"] >= 4 * (table - 2 * 2100)
    feed = texts(1, 9, vocab=2100)
    feed["position_ids"] = np.arange(9)[None]
    expected = torch_logits(tied.model, feed, "input_ids", "attention_mask", "position_ids")
    for name in ("head", "no-head", "both"):
        assert compare_logits(expected, decode(tmp_path / f"{name}.onnx", feed, [5, 6])).relative < 0.1


def test_embeddings_too_small_to_be_worth_it_are_not_passed_over_in_silence(fused: GetFused, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"fused.onnx: has no embedding table of 16384 numbers or more to quantise"):
        quantise_dynamic(fused("llama").path, tmp_path / "int8.onnx", include_embeddings=True)
    assert not list(tmp_path.iterdir())


def test_weight_only_schemes(tied: Exported, bert: Path, tmp_path: Path) -> None:
    source = tied.path.with_name("fused.onnx")
    feed = texts(1, 9, vocab=2100)
    feed["position_ids"] = np.arange(9)[None]
    expected = torch_logits(tied.model, feed, "input_ids", "attention_mask", "position_ids")
    errors, sizes = [], []
    for bits in (8, 4):
        facts = quantise_weights(source, tmp_path / f"w{bits}.onnx", bits=bits)
        assert facts.quantised_op_counts == {"MatMulNBits": 8}  # 4 + 3 and the head
        errors.append(compare_logits(expected, decode(tmp_path / f"w{bits}.onnx", feed, [5])).relative)
        sizes.append(facts.dtype_bytes["uint8"])
    assert errors[0] < errors[1] < 0.5
    assert sizes[0] == 2 * sizes[1]
    facts = quantise_weights(bert, tmp_path / "no-head.onnx", bits=8, include_lm_head=False)
    assert facts.quantised_op_counts == {"MatMulNBits": N_PRODUCTS - 1}


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_static_int8_calibrates_every_product(bert: Path, tmp_path: Path, method: str) -> None:
    feeds = [texts(2, 6 + seed, seed=seed) for seed in range(8)]
    facts = quantise_static(bert, tmp_path / "static.onnx", feeds=feeds, method=method)  # type: ignore[arg-type]
    assert facts.quantised_op_counts == {"QDQ MatMul": N_PRODUCTS}
    assert facts.n_parameters == inspect_onnx(bert).n_parameters
    unseen = texts(3, 12, pad=4, seed=99)
    report = compare_logits(run(bert, unseen)["logits"], run(tmp_path / "static.onnx", unseen)["logits"])
    assert 0 < report.relative < 0.3


def test_calibration_data_that_would_mislead_is_refused(bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "static.onnx"
    with pytest.raises(DataError, match="no calibration feed"):
        quantise_static(bert, out, feeds=[])
    with pytest.raises(DataError, match="calibration feed 1 contains padding, which would widen the ranges"):
        quantise_static(bert, out, feeds=[texts(2, 8), texts(2, 8, pad=3)])
    incomplete: Arrays = {"input_ids": texts(2, 8)["input_ids"]}
    with pytest.raises(DataError, match="calibration feed 0 has no attention_mask, token_type_ids"):
        quantise_static(bert, out, feeds=[incomplete])
    short = {**texts(2, 8), "attention_mask": texts(2, 6)["attention_mask"]}
    with pytest.raises(DataError, match=r"feed 1 has attention_mask of shape \(2, 6\), .* with .*sequence_length 8"):
        quantise_static(bert, out, feeds=[texts(2, 8), short])
    flat = {name: value[0] for name, value in texts(2, 8).items()}
    with pytest.raises(DataError, match=r"feed 0 has input_ids of shape \(8,\), and the graph takes \(batch_size, seq"):
        quantise_static(bert, out, feeds=[flat])
    assert not out.exists() and not list(tmp_path.iterdir())


def test_a_graph_is_quantised_only_once(bert: Path, tmp_path: Path) -> None:
    quantise_dynamic(bert, tmp_path / "int8.onnx")
    for again in (
        lambda: quantise_dynamic(tmp_path / "int8.onnx", tmp_path / "twice.onnx"),
        lambda: quantise_weights(tmp_path / "int8.onnx", tmp_path / "twice.onnx", bits=4),
        lambda: convert_fp16(tmp_path / "int8.onnx", tmp_path / "twice.onnx"),
    ):
        with pytest.raises(UnsupportedError, match=r"int8.onnx: is quantised already \(14 MatMulInteger\)"):
            again()
    assert not (tmp_path / "twice.onnx").exists()


def test_a_full_disk_leaves_the_stage_before_intact(bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    out.write_bytes(b"before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, before[1]))
    try:
        with pytest.raises(StageError, match="nothing half-written was left"):
            quantise_dynamic(bert, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [file.name for file in tmp_path.iterdir()] == ["int8.onnx"] and out.read_bytes() == b"before"


def test_int8_options_are_measured_here_and_ordered_by_error(bert: Path, tmp_path: Path) -> None:
    feeds = [texts(2, 10, seed=1), texts(3, 7, pad=2, seed=2)]
    options = write_int8_options(bert, tmp_path, feeds, output="logits")
    assert sorted(option.name for option in options) == ["u8s8", "u8s8-precise", "u8s8-reduced", "u8u8"]
    errors = [option.relative_error for option in options]
    assert errors == sorted(errors) and errors[0] > 0
    by_name = {option.name: option for option in options}
    assert by_name["u8s8"].relative_error < by_name["u8s8-reduced"].relative_error * 2
    assert by_name["u8s8-precise"].path == by_name["u8s8"].path
    assert all(option.parity.n_positions == 5 for option in options)
    with pytest.raises(DataError, match="no calibration feed"):
        write_int8_options(bert, tmp_path, [], output="logits")


def _int8_matrices(path: Path) -> list[np.ndarray]:
    tensors = onnx.load(str(path)).graph.initializer
    return [
        onnx.numpy_helper.to_array(tensor).astype(int)
        for tensor in tensors
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2
    ]
