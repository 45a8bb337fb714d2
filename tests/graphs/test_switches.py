"""Switches and sensitivity: one graph in several precisions, what each node costs, and the order that mends it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_families import Fused
from hypothesis import given
from hypothesis import strategies as st
from onnx_runs import empty_past, run, texts

from compressor.errors import DataError
from compressor.graphs.activations import collect_grams, wide_activations
from compressor.graphs.facts import count_nodes_by_provider, count_unfused, vocabulary_size
from compressor.graphs.parity import compare_logits
from compressor.graphs.prepare import constant_products, prepare
from compressor.graphs.quantise import quantise_dynamic, quantise_static, quantise_weights, store_bf16
from compressor.graphs.sensitivity import (
    NodeDamage,
    Raise,
    fewest_steps,
    levels_after,
    measure_damage,
    order_raises,
)
from compressor.graphs.switches import Switchboard, merge_precisions

GetFused = Callable[[str], Fused]
FEED = texts(3, 12, pad=4)


@pytest.fixture(scope="module")
def board(fused: GetFused, tmp_path_factory: pytest.TempPathFactory) -> Switchboard:
    """The tiny BERT with 4 bits as level 1 and 8 bits as level 2."""
    folder, path = tmp_path_factory.mktemp("switches"), fused("bert").path
    files = [folder / "w4.onnx", folder / "w8.onnx"]
    quantise_weights(path, files[0], bits=4)
    quantise_weights(path, files[1], bits=8)
    nodes = merge_precisions(path, files, folder / "switches.onnx", include_lm_head=True)
    return Switchboard(folder / "switches.onnx", nodes, threads=1)


def test_all_switches_off_is_the_fp32_graph_to_the_last_bit(board: Switchboard, fused: GetFused) -> None:
    expected = run(fused("bert").path, FEED)["logits"]
    np.testing.assert_array_equal(board.run(FEED, {}, "logits"), expected)


def test_all_switches_on_is_the_quantised_graph(board: Switchboard, fused: GetFused, tmp_path: Path) -> None:
    for level, bits in ((1, 4), (2, 8)):
        quantise_weights(fused("bert").path, tmp_path / "w.onnx", bits=bits)
        expected = run(tmp_path / "w.onnx", FEED)["logits"]
        actual = board.run(FEED, {name: level for name, _ in board.nodes}, "logits")
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_a_mixture_is_the_file_with_the_same_nodes(board: Switchboard, fused: GetFused, tmp_path: Path) -> None:
    names = [name for name, _ in board.nodes]
    levels = dict.fromkeys(names, 1) | dict.fromkeys(names[:3], 2) | dict.fromkeys(names[3:5], 0)
    quantise_weights(fused("bert").path, tmp_path / "m.onnx", bits=4, widen=names[:3], exclude=names[3:5])
    expected = run(tmp_path / "m.onnx", FEED)["logits"]
    np.testing.assert_allclose(board.run(FEED, levels, "logits"), expected, atol=1e-5)


def test_damage_is_each_node_alone_and_ordered(board: Switchboard, fused: GetFused) -> None:
    found = measure_damage(board, [FEED], (1, 2), "logits")
    assert len(found) == 2 * len(board.nodes)
    assert [one.kl for one in found] == sorted((one.kl for one in found), reverse=True)
    worst = found[0]
    expected = run(fused("bert").path, FEED)["logits"]
    alone = board.run(FEED, {worst.node: worst.level}, "logits")
    assert worst.kl == compare_logits(expected, alone).kl_mean
    assert sum(one.kl for one in found if one.level == 2) < sum(one.kl for one in found if one.level == 1)
    with pytest.raises(DataError, match="no calibration feed"):
        measure_damage(board, [], (1,), "logits")


def test_precision_is_given_back_where_a_byte_mends_most() -> None:
    damages = [
        NodeDamage("large", 1, 1000, 0.5), NodeDamage("large", 2, 1000, 0.1),
        NodeDamage("small", 1, 10, 0.1), NodeDamage("small", 2, 10, 0.0),
    ]  # fmt: skip
    order = order_raises(damages, (1, 2, 0), {1: 4, 2: 8, 0: 32})
    # nats per bit: small 0.1/40, large 0.4/4000, then large to fp32 0.1/24000, and small, which has nothing to mend
    assert order == (Raise("small", 2), Raise("large", 2), Raise("large", 0), Raise("small", 0))
    assert levels_after(order, 0, ["large", "small"], 1) == {"large": 1, "small": 1}
    assert levels_after(order, 3, ["large", "small"], 1) == {"large": 0, "small": 2}


@given(n=st.integers(0, 300), needed=st.integers(0, 300))
def test_bisection_finds_the_fewest_steps(n: int, needed: int) -> None:
    asked: list[int] = []

    def keeps(steps: int) -> bool:
        asked.append(steps)
        return steps >= needed

    assert fewest_steps(n, keeps) == min(n, needed)
    assert len(asked) <= 9 and n not in asked


def test_gram_matrices_are_those_of_what_the_products_read(fused: GetFused) -> None:
    path = fused("llama").path
    feed = texts(1, 9, vocab=150) | empty_past(path, 1)
    feed["position_ids"] = np.arange(9)[None]
    grams = collect_grams(path, [feed, feed], include_lm_head=True)
    products = constant_products(prepare(path, include_lm_head=True, exclude=()).graph)
    assert set(grams) == set(products)
    shared = [node for node, (source, _) in products.items() if source == next(iter(products.values()))[0]]
    assert len(shared) == 3 and all(grams[node] is grams[shared[0]] for node in shared)  # query, key and value
    gram = grams[shared[0]].numpy()
    np.testing.assert_allclose(gram, gram.T)
    assert np.linalg.eigvalsh(gram).min() > -1e-6 * np.trace(gram)
    once = collect_grams(path, [feed], include_lm_head=True)[shared[0]].numpy()
    np.testing.assert_allclose(gram, 2 * once)
    with pytest.raises(DataError, match="no calibration feed"):
        collect_grams(path, [], include_lm_head=True)


def test_a_few_numbers_far_beyond_the_others_make_an_activation_wide(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.ones((32, 4), np.float32), "weight")
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["T", width])
        for name, width in (("x", 32), ("y", 4))
    ]
    product = onnx.helper.make_node("MatMul", ["x", "weight"], ["y"], "product")
    graph = onnx.helper.make_graph([product], "one product", values[:1], values[1:], [weight])
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=opset), str(tmp_path / "one.onnx"))
    usual = np.random.default_rng(0).uniform(-1, 1, (100, 32)).astype(np.float32)
    assert wide_activations(tmp_path / "one.onnx", [{"x": usual}], include_lm_head=True) == {}
    massive = usual.copy()
    massive[3, 5] = 50.0  # as the first token of a language model has them
    (found,) = wide_activations(tmp_path / "one.onnx", [{"x": usual}, {"x": massive}], include_lm_head=True).values()
    assert found == pytest.approx(50.0, rel=0.01)


def test_what_a_session_makes_of_a_file_is_counted(fused: GetFused, tmp_path: Path) -> None:
    path = fused("bert").path
    quantise_dynamic(path, tmp_path / "dynamic.onnx")
    assert count_unfused(tmp_path / "dynamic.onnx") == 0
    facts = quantise_static(path, tmp_path / "static.onnx", feeds=[texts(2, 10)])
    assert count_unfused(tmp_path / "static.onnx") < facts.quantised_op_counts["QDQ MatMul"]
    placed = count_nodes_by_provider(tmp_path / "dynamic.onnx", FEED, "CPUExecutionProvider")
    assert set(placed) == {"CPUExecutionProvider"} and placed["CPUExecutionProvider"] > 14
    assert vocabulary_size(path) == 150


def test_bfloat16_halves_the_matrices_and_keeps_the_range_of_fp32(fused: GetFused, tmp_path: Path) -> None:
    path = fused("bert").path
    facts = store_bf16(path, tmp_path / "bf16.onnx")
    assert facts.dtype_bytes["bfloat16"] == 2 * sum(
        int(np.prod(tensor.dims)) for tensor in onnx.load(str(path)).graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1
    )  # fmt: skip
    report = compare_logits(run(path, FEED)["logits"], run(tmp_path / "bf16.onnx", FEED)["logits"])
    assert 0 < report.relative < 2**-7
