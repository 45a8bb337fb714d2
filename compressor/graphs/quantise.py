"""fp16, dynamic INT8 and weight-only INT8/INT4 of an ONNX file, with ONNX Runtime's quantisers.

What the quantisers leave to their caller is done here: stale shapes of the exporter are dropped, a language-model
head that shares the embedding's matrix is made visible to them, and that matrix is stored once afterwards. Every
function returns the facts of the file it wrote, read back from it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
from onnxruntime.quantization.quant_utils import QuantizationMode
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST
from onnxruntime.transformers.onnx_model import OnnxModel

from compressor.errors import StageError, UnsupportedError, UserError
from compressor.graphs.facts import GraphFacts, inspect_onnx, quantised_ops
from compressor.graphs.files import hushed, load_onnx, save_onnx

SCHEMES = ("fp16", "w8a8-dynamic", "w8a8-static", "w8", "w4")
FP16_KEPT_IN_FP32 = (
    *DEFAULT_OP_BLOCK_LIST,
    "LayerNormalization",
    "ReduceMean",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "Softmax",
)
SMALLEST_EMBEDDING = 2**16  # elements; below that a table is not worth three more nodes


def convert_fp16(path: str | Path, out: str | Path) -> GraphFacts:
    """Store weights and compute in fp16, with fp32 inputs and outputs; norms and softmax stay in fp32.

    Raises:
        UnsupportedError: the graph is already quantised.
        StageError: nothing was converted, or the disk is full.
    """
    model = _load_unquantised(path)
    _drop_stale_shapes(model)
    converted = OnnxModel(model)
    with hushed():  # symbolic inference: fused operators need types too, or casts go missing around kept nodes
        converted.convert_float_to_float16(
            use_symbolic_shape_infer=True, keep_io_types=True, op_block_list=list(FP16_KEPT_IN_FP32)
        )
    model = converted.model
    save_onnx(model, out)
    facts = inspect_onnx(out)
    if not facts.dtype_bytes.get("float16"):
        raise StageError("fp16 converted no weight", where=str(path), hint="the graph has no fp32 weights")
    return facts


def quantise_dynamic(
    path: str | Path,
    out: str | Path,
    *,
    per_channel: bool = True,
    reduce_range: bool = False,
    weight_type: Literal["int8", "uint8"] = "int8",
    include_lm_head: bool = True,
    include_embeddings: bool = False,
    exclude: Collection[str] = (),
) -> GraphFacts:
    """w8a8-dynamic: INT8 weights, activations quantised to UINT8 per batch while running.

    Only products with a constant matrix are quantised; the products of attention, norms and softmax stay in fp32.

    Args:
        path: an fp32 graph, fused or not.
        out: the file to write.
        per_channel: one scale per output column instead of one per matrix.
        reduce_range: 7-bit weights, which cannot saturate the 16-bit sums of CPUs without VNNI.
        weight_type: ``int8`` (U8S8) or ``uint8`` (U8U8).
        include_lm_head: quantise the product that yields ``logits``, also where it shares the embedding's matrix.
        include_embeddings: store large embedding tables as INT8, one scale per row.
        exclude: names of nodes to leave in fp32.

    Raises:
        UnsupportedError: the graph is already quantised.
        UserError: a name in ``exclude`` that the graph does not have.
        StageError: nothing was quantised, or the disk is full.
    """
    model = _prepare(path, include_lm_head=include_lm_head, exclude=exclude)
    kept = [*exclude, *([] if include_lm_head else _head_nodes(model.graph))]
    quantizer = ONNXQuantizer(
        model,
        per_channel,
        reduce_range,
        QuantizationMode.IntegerOps,
        False,
        QuantType.QInt8 if weight_type == "int8" else QuantType.QUInt8,
        QuantType.QUInt8,
        None,
        [],
        kept,
        ["MatMul", "Attention"],
        {"MatMulConstBOnly": True, "DefaultTensorType": TensorProto.FLOAT, "WeightSymmetric": True},
    )
    with hushed():
        quantizer.quantize_model()
    return _finish(quantizer.model.model, path, out, include_embeddings=include_embeddings, scheme="w8a8-dynamic")


def quantise_weights(
    path: str | Path,
    out: str | Path,
    *,
    bits: Literal[4, 8],
    block_size: int = 32,
    is_symmetric: bool = True,
    include_lm_head: bool = True,
    include_embeddings: bool = False,
    exclude: Collection[str] = (),
) -> GraphFacts:
    """w8 or w4: weights in blocks of ``block_size`` along the input (``MatMulNBits``), activations in fp32.

    ``accuracy_level=4`` lets the kernel quantise activations to INT8 block by block; without it the CPU kernel is
    several times slower.

    Raises:
        UnsupportedError: the graph is already quantised.
        UserError: a name in ``exclude`` that the graph does not have.
        StageError: nothing was quantised, or the disk is full.
    """
    model = _prepare(path, include_lm_head=include_lm_head, exclude=exclude)
    _split_attention(model)
    quantizer = MatMulNBitsQuantizer(
        model,
        bits=bits,
        block_size=block_size,
        is_symmetric=is_symmetric,
        accuracy_level=4,
        nodes_to_exclude=[*exclude, *([] if include_lm_head else _head_nodes(model.graph))],
        op_types_to_quantize=("MatMul",),
    )
    with hushed():
        quantizer.process()
    return _finish(quantizer.model.model, path, out, include_embeddings=include_embeddings, scheme=f"w{bits}")


def _load_unquantised(path: str | Path) -> onnx.ModelProto:
    model = load_onnx(path)
    done = quantised_ops(model.graph)
    if done:
        found = ", ".join(f"{count} {op}" for op, count in done.items())
        raise UnsupportedError(
            f"is quantised already ({found})", where=str(path), hint="quantise the fp32 graph it was made from"
        )
    return model


def _prepare(path: str | Path, *, include_lm_head: bool, exclude: Collection[str]) -> onnx.ModelProto:
    """The fp32 graph as the quantisers want it: no stale shapes, every product with a constant matrix a ``MatMul``."""
    model = _load_unquantised(path)
    names = {node.name for node in model.graph.node}
    unknown = sorted(set(exclude) - names)
    if unknown:
        raise UserError(f"has no node named {', '.join(unknown)}", where=str(path), hint="see the names in the graph")
    _drop_stale_shapes(model)
    if include_lm_head:
        _store_transposed_weights(model.graph)
    rewritten = ONNXModel(model)
    rewritten.replace_gemm_with_matmul()
    return rewritten.model


def _drop_stale_shapes(model: onnx.ModelProto) -> None:
    """The exporter leaves shapes from before its own rewriting; shape inference then stops on the contradiction."""
    del model.graph.value_info[:]


def _head_nodes(graph: onnx.GraphProto) -> list[str]:
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
        _replace_node(graph, node, [turn, product])
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in tensors]:
        array = numpy_helper.to_array(tensors[node.input[0]])
        if array.ndim != 2:
            continue
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array.T), node.output[0]))
        graph.node.remove(node)
    _remove_unused(graph)


def _remove_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)


def _finish(
    model: onnx.ModelProto, path: str | Path, out: str | Path, *, include_embeddings: bool, scheme: str
) -> GraphFacts:
    if not quantised_ops(model.graph):
        raise StageError(
            f"{scheme} quantised nothing: no product with a constant matrix was left",
            where=str(path),
            hint="shorten the list of excluded nodes",
        )
    if include_embeddings:
        _quantise_embeddings(model.graph)
    _remove_unused(model.graph)
    save_onnx(model, out)
    return inspect_onnx(out)


def _quantise_embeddings(graph: onnx.GraphProto) -> None:
    """Large tables that ``Gather`` reads: INT8, one scale per row, and the rows that were read are scaled back.

    A head that shares the table was quantised with one scale per column of its transpose, which is the same grid:
    then the table is stored once, and the head reads it through ``Transpose`` (folded when a session loads).
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    heads = _int8_matrices(graph, tensors)
    for node in [node for node in graph.node if node.op_type == "Gather" and node.input[0] in tensors]:
        table = tensors[node.input[0]]
        if table.data_type != TensorProto.FLOAT or len(table.dims) != 2:
            continue
        if int(np.prod(table.dims)) < SMALLEST_EMBEDDING or next((a.i for a in node.attribute if a.name == "axis"), 0):
            continue
        values = numpy_helper.to_array(table)  # (V, H)
        scale = np.maximum(np.abs(values).max(axis=1) / 127, np.finfo(np.float32).tiny).astype(np.float32)  # (V,)
        quantised = np.clip(np.rint(values / scale[:, None]), -127, 127).astype(np.int8)  # (V, H)
        _replace_gather(graph, node, quantised, scale)
        for name, matrix in heads.items():
            if np.array_equal(matrix.T, quantised):
                _read_transposed(graph, name, f"{table.name}_quantized")


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
    _replace_node(graph, node, nodes)


def _read_transposed(graph: onnx.GraphProto, name: str, stored: str) -> None:
    """Let the tensor ``name`` be the transpose of the tensor ``stored``."""
    kept = [tensor for tensor in graph.initializer if tensor.name != name]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.node.insert(0, helper.make_node("Transpose", [stored], [name], f"{stored}_transposed", perm=[1, 0]))


def _replace_node(graph: onnx.GraphProto, node: onnx.NodeProto, nodes: Iterable[onnx.NodeProto]) -> None:
    index = next(i for i, other in enumerate(graph.node) if other is node or other == node)
    graph.node.remove(node)
    for offset, new in enumerate(nodes):
        graph.node.insert(index + offset, new)


def _split_attention(model: onnx.ModelProto) -> None:
    pass
