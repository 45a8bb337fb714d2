"""Embedding tables as INT8, and stored once where the head of a language model shares them."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compressor.graphs.prepare import replace_node

SMALLEST_TABLE = 2**14  # elements; below that a table is not worth three more nodes


def quantise_embeddings(graph: onnx.GraphProto) -> int:
    """Large tables that ``Gather`` reads: INT8, one scale per row, and the rows that were read are scaled back.

    A head that shares the table was quantised with one scale per column of its transpose, which is the same grid:
    then the table is stored once, and the head reads it through ``Transpose`` (folded when a session loads).

    Returns:
        How many such tables there are.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    heads = _int8_matrices(graph, tensors)
    done: set[str] = set()
    for node in [node for node in graph.node if node.op_type == "Gather" and node.input[0] in tensors]:
        table = tensors[node.input[0]]
        if table.data_type != TensorProto.FLOAT or len(table.dims) != 2:
            continue
        if int(np.prod(table.dims)) < SMALLEST_TABLE or next((a.i for a in node.attribute if a.name == "axis"), 0):
            continue
        values = numpy_helper.to_array(table)  # (V, H)
        scale = np.maximum(np.abs(values).max(axis=1) / 127, np.finfo(np.float32).tiny).astype(np.float32)  # (V,)
        quantised = np.clip(np.rint(values / scale[:, None]), -127, 127).astype(np.int8)  # (V, H)
        _replace_gather(graph, node, quantised, scale)
        done.add(table.name)
        for name, matrix in heads.items():
            if np.array_equal(matrix.T, quantised):
                _read_transposed(graph, name, f"{table.name}_quantized")
    return len(done)


def _int8_matrices(graph: onnx.GraphProto, tensors: dict[str, TensorProto]) -> dict[str, NDArray[np.int8]]:
    names = {node.input[1] for node in graph.node if node.op_type == "MatMulInteger" and node.input[1] in tensors}
    return {name: numpy_helper.to_array(tensors[name]) for name in names if tensors[name].data_type == TensorProto.INT8}


def _replace_gather(
    graph: onnx.GraphProto, node: onnx.NodeProto, table: NDArray[np.int8], scale: NDArray[np.float32]
) -> None:
    name, indices, output = node.input[0], node.input[1], node.output[0]
    if not any(tensor.name == f"{name}_quantized" for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(table, f"{name}_quantized"))
        graph.initializer.append(numpy_helper.from_array(scale[:, None], f"{name}_row_scale"))
    rows, row_scale, wide = f"{output}_rows", f"{output}_row_scale", f"{output}_float"
    nodes = [
        helper.make_node("Gather", [f"{name}_quantized", indices], [rows], f"{node.name}_rows"),
        helper.make_node("Gather", [f"{name}_row_scale", indices], [row_scale], f"{node.name}_row_scale"),
        helper.make_node("Cast", [rows], [wide], f"{node.name}_cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", [wide, row_scale], [output], f"{node.name}_scaled"),
    ]
    replace_node(graph, node, nodes)


def _read_transposed(graph: onnx.GraphProto, name: str, stored: str) -> None:
    """Let the tensor ``name`` be the transpose of the tensor ``stored``."""
    kept = [tensor for tensor in graph.initializer if tensor.name != name]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.node.insert(0, helper.make_node("Transpose", [stored], [name], f"{stored}_transposed", perm=[1, 0]))
