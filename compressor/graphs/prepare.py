"""An fp32 graph made ready for ONNX Runtime's quantisers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel

from compressor.errors import UnsupportedError, UserError
from compressor.graphs.facts import quantised_ops
from compressor.graphs.files import load_onnx


def load_unquantised(path: str | Path) -> onnx.ModelProto:
    """Read a graph that no scheme has touched yet.

    Raises:
        CheckpointError: no such file, or not an ONNX file.
        UnsupportedError: it is quantised already; the operators that say so are named.
    """
    model = load_onnx(path)
    done = quantised_ops(model.graph)
    if done:
        found = ", ".join(f"{count} {op}" for op, count in done.items())
        raise UnsupportedError(
            f"is quantised already ({found})", where=str(path), hint="quantise the fp32 graph it was made from"
        )
    return model


def prepare(path: str | Path, *, include_lm_head: bool, exclude: Collection[str]) -> onnx.ModelProto:
    """The fp32 graph as the quantisers want it: no stale shapes, every product with a constant matrix a ``MatMul``."""
    model = load_unquantised(path)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"  # the quantisers leave nodes out by name
    names = {node.name for node in model.graph.node}
    unknown = sorted(set(exclude) - names)
    if unknown:
        raise UserError(f"has no node named {', '.join(unknown)}", where=str(path), hint="see the names in the graph")
    drop_stale_shapes(model)
    if include_lm_head:
        _store_transposed_weights(model.graph)
    gemms = {f"{node.name}_MatMul": node.name for node in model.graph.node if node.op_type == "Gemm"}
    ONNXModel(model).replace_gemm_with_matmul()  # in place
    for node in model.graph.node:
        node.name = gemms.get(node.name, node.name)  # so that it can be left out by the name it had
    return model


def drop_stale_shapes(model: onnx.ModelProto) -> None:
    """The exporter leaves shapes from before its own rewriting; shape inference then stops on the contradiction."""
    del model.graph.value_info[:]


def constant_products(graph: onnx.GraphProto) -> dict[str, tuple[str, str]]:
    """Node -> (input, weight) of every product with a stored matrix."""
    stored = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    return {
        node.name: (node.input[0], node.input[1])
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in stored
    }


def head_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the products whose results reach the output ``logits`` without another product in between."""
    producers = {output: node for node in graph.node for output in node.output}
    pending = [value.name for value in graph.output if value.name == "logits"]
    heads = []
    while pending:
        node = producers.get(pending.pop())
        if node is None:
            continue
        if node.op_type in ("MatMul", "Gemm"):
            heads.append(node.name)
        elif node.op_type in ("Add", "Mul", "Div", "Tanh", "Reshape", "Squeeze", "Cast", "Slice", "Gather"):
            pending.extend(node.input)
    return heads


def _store_transposed_weights(graph: onnx.GraphProto) -> None:
    """Fold ``Transpose`` of a stored matrix: a tied head is ``x @ transpose(embedding)``, which no quantiser sees."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "FusedMatMul" and node.input[1] in tensors]:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if attributes.pop("transB", 0) != 1 or attributes.pop("alpha", 1.0) != 1.0 or any(attributes.values()):
            continue
        transposed = f"{node.input[1]}_transposed"
        turn = helper.make_node("Transpose", [node.input[1]], [transposed], f"{node.name}_turn", perm=[1, 0])
        product = helper.make_node("MatMul", [node.input[0], transposed], node.output, node.name)
        replace_node(graph, node, [turn, product])
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in tensors]:
        array = numpy_helper.to_array(tensors[node.input[0]])
        if array.ndim != 2:
            continue
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array.T), node.output[0]))
        graph.node.remove(node)
    remove_unused(graph)


def remove_unused(graph: onnx.GraphProto) -> None:
    """Drop initializers that no node reads and no output gives."""
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)


def replace_node(graph: onnx.GraphProto, node: onnx.NodeProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Put `nodes` where `node` stands, so that the graph stays in order."""
    index = next(i for i, other in enumerate(graph.node) if other is node or other == node)
    graph.node.remove(node)
    for offset, new in enumerate(nodes):
        graph.node.insert(index + offset, new)
