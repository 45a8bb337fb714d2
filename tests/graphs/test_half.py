"""fp16 of every family, fused and not: the file loads, and says what the fp32 graph says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_families import DECODERS, ENCODERS, UNEVEN, Exported, Fused, each
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_runs import decode, empty_past, run, session, texts, torch_logits

from compressor.errors import StageError, UnsupportedError
from compressor.graphs.facts import inspect_onnx
from compressor.graphs.half import to_half, value_types
from compressor.graphs.parity import check_parity, compare_logits
from compressor.graphs.quantise import convert_fp16

Get = Callable[[str], Exported]
GetFused = Callable[[str], Fused]


@pytest.mark.parametrize("name", each([*ENCODERS, *DECODERS, *UNEVEN]))
@pytest.mark.parametrize("is_fused", [False, True], ids=["unfused", "fused"])
def test_fp16_keeps_the_interface_and_the_answers(
    exported: Get, fused: GetFused, tmp_path: Path, name: str, is_fused: bool
) -> None:
    source = fused(name).path if is_fused else exported(name).path
    out = tmp_path / "fp16.onnx"
    facts = convert_fp16(source, out)
    least = 7 if name == "deberta-v3" else 10  # there a norm reads the table of relative positions
    assert facts.dtype_bytes["float16"] > least * facts.dtype_bytes.get("float32", 0)
    assert facts.n_parameters == inspect_onnx(source).n_parameters
    for part in ("get_inputs", "get_outputs"):
        before, after = ([(v.name, v.type) for v in getattr(session(path), part)()] for path in (source, out))
        assert before == after
    if name.removesuffix("-uneven") in ENCODERS:
        feed = texts(3, 12, pad=4)
        report = compare_logits(run(source, feed)["logits"], run(out, feed)["logits"])
    else:
        feed = texts(2, 9, pad=2, left=True)
        report = compare_logits(
            *(decode(path, feed, [5, 6, 7, 8]) for path in (source, out)), mask=feed["attention_mask"]
        )
    assert 0 < report.relative < 1e-2
    assert report.kl_mean < 1e-5  # not top-1: logits of random models lie closer together than fp16 can order


def test_fp16_is_near_torch_too(exported: Get, fused: GetFused, tmp_path: Path) -> None:
    one = exported("modernbert")
    convert_fp16(fused("modernbert").path, tmp_path / "fp16.onnx")
    feed = texts(3, 12, pad=4)
    expected = torch_logits(one.model, feed, *one.result.input_names)
    check_parity(compare_logits(expected, run(tmp_path / "fp16.onnx", feed)["logits"]), "fp16")


@pytest.mark.parametrize("is_fused", [False, True], ids=["unfused", "fused"])
def test_late_positions_keep_their_angles(exported: Get, fused: GetFused, tmp_path: Path, is_fused: bool) -> None:
    """In fp16, position 2047 times a frequency is off by up to half a radian."""
    source = fused("llama").path if is_fused else exported("llama").path
    convert_fp16(source, tmp_path / "fp16.onnx")
    feed = {**texts(1, 9), "position_ids": np.arange(0, 2048, 255)[None], **empty_past(source, 1)}
    before, after = (run(path, feed)["logits"] for path in (source, tmp_path / "fp16.onnx"))
    check_parity(compare_logits(before, after), "fp16")


def test_a_matrix_that_embedding_and_head_share_stays_shared(tied: Exported, tmp_path: Path) -> None:
    source = tied.path.with_name("fused.onnx")
    convert_fp16(source, tmp_path / "fp16.onnx")
    stored = onnx.load(str(tmp_path / "fp16.onnx")).graph.initializer
    tables = [tensor for tensor in stored if sorted(tensor.dims) == [32, 2100]]
    assert [tensor.data_type for tensor in tables] == [TensorProto.FLOAT16]
    feed = texts(1, 9, vocab=2100)
    report = compare_logits(*(decode(path, feed, [5, 6]) for path in (source, tmp_path / "fp16.onnx")))
    check_parity(report, "fp16")


def test_types_follow_from_schemas_as_onnx_infers_them(exported: Get) -> None:
    """Held against ONNX's own inference, on a graph of standard operators alone."""
    model = onnx.load(str(exported("llama").path))
    found = value_types(model)
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.value_info
    assert len(inferred) > 100
    assert {value.name: found[value.name] for value in inferred} == {
        value.name: value.type.tensor_type.elem_type for value in inferred
    }


def test_extremes_stay_finite_and_epsilons_stay_above_zero(tmp_path: Path) -> None:
    added = np.array([-3.4e38, 1e-12, -1e-12, 0.0, np.inf, 1.5], np.float32)
    model = _graph([helper.make_node("Add", ["x", "added"], ["y"])], {"added": added})
    assert to_half(model) == ["added"]
    stored = numpy_helper.to_array(model.graph.initializer[0])
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(stored, np.array([-65504, 2**-24, -(2**-24), 0, np.inf, 1.5], np.float16))


def test_each_value_is_cast_once_however_many_read_it(tmp_path: Path) -> None:
    weight = np.eye(6, dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"]),
        helper.make_node("Softmax", ["a"], ["c"], axis=0),
        helper.make_node("Pow", ["b", "two"], ["d"]),  # between kept nodes nothing is cast
        helper.make_node("Add", ["d", "c"], ["y"]),
    ]
    model = _graph(nodes, {"w": weight, "two": np.array(2.0, np.float32)})
    onnx.save(model, str(tmp_path / "fp32.onnx"))
    convert_fp16(tmp_path / "fp32.onnx", tmp_path / "fp16.onnx")
    converted = onnx.load(str(tmp_path / "fp16.onnx"))
    onnx.checker.check_model(converted, full_check=True)
    operators = [node.op_type for node in converted.graph.node]
    assert operators.count("Cast") == 5  # x; a once for both; d and c; y
    assert {t.name: t.data_type for t in converted.graph.initializer} == {"w": 10, "two": 1}
    feed = {"x": np.linspace(-1, 1, 6, dtype=np.float32)[None]}
    before, after = (run(tmp_path / f"{name}.onnx", feed)["y"] for name in ("fp32", "fp16"))
    assert after.dtype == np.float32
    np.testing.assert_allclose(before, after, atol=2e-3)


def test_what_cannot_be_converted_is_named(tmp_path: Path) -> None:
    branch = helper.make_graph([helper.make_node("Neg", ["x"], ["z"])], "branch", [], [_value("z")])
    choice = helper.make_node("If", ["flag"], ["y"], "choice", then_branch=branch, else_branch=branch)
    with pytest.raises(UnsupportedError, match="If 'choice' holds a graph of its own, which fp16 conversion does not"):
        to_half(_graph([choice], {"flag": np.array(True)}))
    unknown = helper.make_node("Mystery", ["ids"], ["y"], "m", domain="nowhere")
    with pytest.raises(UnsupportedError, match="cannot tell the type of what Mystery 'm' gives out"):
        to_half(_graph([unknown], {"ids": np.array([1])}))
    onnx.save(_graph([helper.make_node("Neg", ["x"], ["y"])], {}), str(tmp_path / "bare.onnx"))
    with pytest.raises(StageError, match=r"bare.onnx: fp16 converted no weight"):
        convert_fp16(tmp_path / "bare.onnx", tmp_path / "fp16.onnx")
    assert not (tmp_path / "fp16.onnx").exists()


def _value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 6])


def _graph(nodes: list[onnx.NodeProto], stored: dict[str, NDArray[np.generic]]) -> onnx.ModelProto:
    """From `x` to `y`, both (n, 6)."""
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "test", [_value("x")], [_value("y")], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
