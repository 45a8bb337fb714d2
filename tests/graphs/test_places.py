"""Which nodes of a graph belong to which sublayers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from graph_families import ENCODERS, Exported, Fused, each

from compressor.errors import StageError
from compressor.graphs.places import products_of_sublayers
from compressor.graphs.prepare import constant_products, head_nodes, prepare
from compressor.graphs.quantise import quantise_dynamic
from compressor.methods.structure import KINDS
from compressor.methods.surgery import ADAPTERS, adapter_for, read_structure

Get = Callable[[str], Exported]
GetFused = Callable[[str], Fused]
FAMILIES = (
    "bert", "bert-uneven", "distilbert", "roberta", "modernbert", "gpt2", "llama", "llama-uneven", "qwen3", "gemma3",
    "smollm3",
)  # fmt: skip


@pytest.mark.parametrize("name", each(FAMILIES))
def test_every_product_of_the_layers_is_found_once_and_in_order(name: str, exported: Get, fused: GetFused) -> None:
    model, path = exported(name).model, fused(name).path
    assert model.config.model_type in ADAPTERS
    places = [
        (number, kind)
        for number, layer in enumerate(read_structure(model).layers)
        for kind in KINDS
        if kind not in layer.skip
    ]
    each_place = [products_of_sublayers(path, model, [place]) for place in places]
    found = [node for nodes in each_place for node in nodes]
    assert len(found) == sum(len(adapter_for(model).paths(kind)) for _, kind in places) == len(set(found))
    graph = prepare(path, include_lm_head=False, exclude=()).graph
    products = [node for node in constant_products(graph) if node not in head_nodes(graph)]
    rest = [node for node in products if node not in found]
    assert len(rest) <= (2 if name.removesuffix("-uneven") in ENCODERS else 0)  # pooler and classifier
    order = [products.index(node) for node in found]
    assert order == sorted(order)
    assert set(products_of_sublayers(path, model, places)) == set(found)
    assert products_of_sublayers(path, model, []) == ()


def test_a_sublayer_that_stays_in_fp32_keeps_its_very_weights(exported: Get, fused: GetFused, tmp_path: Path) -> None:
    model, path = exported("bert").model, fused("bert").path
    left = products_of_sublayers(path, model, [(1, "ffn")])
    facts = quantise_dynamic(path, tmp_path / "int8.onnx", exclude=left)
    assert len(left) == 2 and facts.quantised_op_counts == {"MatMulInteger": 12}
    stored = onnx.load(str(tmp_path / "int8.onnx")).graph.initializer
    wide = [tuple(tensor.dims) for tensor in stored if tensor.data_type == onnx.TensorProto.FLOAT and 48 in tensor.dims]
    assert wide.count((32, 48)) == wide.count((48, 32)) == 1


def test_weights_that_are_not_those_of_the_graph_are_named(exported: Get, fused: GetFused) -> None:
    model = copy.deepcopy(exported("bert").model)
    with torch.no_grad():
        model.get_parameter("bert.encoder.layer.1.output.dense.weight")[0, 0] += 1.0
    with pytest.raises(
        StageError, match=r"has no product with the matrix output.dense of layer 1\n  -> name the nodes .* in `exclude`"
    ):
        products_of_sublayers(fused("bert").path, model, [(0, "ffn")])
