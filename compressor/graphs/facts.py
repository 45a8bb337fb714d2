"""What an ONNX file holds, read from the file itself: a claim is re-measured, never echoed."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from compressor.graphs.files import file_bytes, load_onnx

QUANTISED_OPS = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "GatherBlockQuantized",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QAttention",
        "QGemm",
        "QLinearMatMul",
    }
)
_FLOAT_DTYPES = frozenset({"float32", "float16", "bfloat16", "float64"})
_WEIGHT_DTYPES = _FLOAT_DTYPES | {"int8", "uint8", "int4", "uint4"}


@dataclass(frozen=True)
class GraphFacts:
    """Facts of one ONNX file.

    Attributes:
        opset: of the standard domain.
        ir_version: of the file.
        dtype_bytes: bytes of stored tensors by dtype, such as ``{"float32": 90_261_504}``.
        n_parameters: stored weights, each counted once; scales, zero points and shape constants are not weights.
        op_counts: nodes by operator.
        quantised_op_counts: the operators among them that compute on quantised weights. A ``MatMul`` or ``Gemm`` fed
            by ``DequantizeLinear`` (QDQ) is counted here as ``QDQ MatMul``.
        size_bytes: of the file and its external data.
    """

    opset: int
    ir_version: int
    dtype_bytes: dict[str, int]
    n_parameters: int
    op_counts: dict[str, int]
    quantised_op_counts: dict[str, int]
    size_bytes: int

    @property
    def n_quantised(self) -> int:
        """Nodes that compute on quantised weights."""
        return sum(self.quantised_op_counts.values())


def inspect_onnx(path: str | Path) -> GraphFacts:
    """Read opset, dtypes, weights and operators of an ONNX file.

    Raises:
        CheckpointError: no such file, or not an ONNX file.
    """
    model = load_onnx(path)
    graph = model.graph
    dtype_bytes: Counter[str] = Counter()
    n_parameters = 0
    packed = _elements_of_packed_weights(graph)
    auxiliary = _scales_and_zero_points(graph)
    for tensor in graph.initializer:
        dtype = dtype_name(tensor.data_type)
        n_elements = int(np.prod(tensor.dims, dtype=np.int64))
        dtype_bytes[dtype] += -(-n_elements // 2) if dtype in ("int4", "uint4") else n_elements * _itemsize(tensor)
        if dtype in _WEIGHT_DTYPES and n_elements > 1 and tensor.name not in auxiliary:
            n_parameters += packed.get(tensor.name, n_elements)
    return GraphFacts(
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0),
        ir_version=model.ir_version,
        dtype_bytes=dict(sorted(dtype_bytes.items())),
        n_parameters=n_parameters,
        op_counts=dict(sorted(Counter(node.op_type for node in graph.node).items())),
        quantised_op_counts=quantised_ops(graph),
        size_bytes=file_bytes(path),
    )


def quantised_ops(graph: onnx.GraphProto) -> dict[str, int]:
    """Operators of ``graph`` that compute on quantised weights, counted."""
    counts = Counter(node.op_type for node in graph.node if node.op_type in QUANTISED_OPS)
    dequantised = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm") and set(node.input[:2]) <= dequantised:
            counts[f"QDQ {node.op_type}"] += 1
    return dict(sorted(counts.items()))


def count_unfused(path: str | Path) -> int:
    """Products that ONNX Runtime leaves in fp32 between quantise and dequantise nodes, on this machine.

    Read from the graph that a session makes of the file: what is not fused there is dequantised, multiplied in fp32
    and quantised again, and costs more than fp32 alone.
    """
    with tempfile.TemporaryDirectory(prefix="optimised-") as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        optimised = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return sum(count for name, count in quantised_ops(optimised.graph).items() if name.startswith("QDQ "))


def count_nodes_by_provider(path: str | Path, feed: Mapping[str, NDArray[np.generic]], provider: str) -> dict[str, int]:
    """Which execution provider runs how many nodes, read from the profile of one run.

    A provider hands back to the CPU whatever it has no kernel for, with a copy each way and without a word.
    """
    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "run")
        providers = list(dict.fromkeys((provider, "CPUExecutionProvider")))
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        session.run(None, {value.name: feed[value.name] for value in session.get_inputs()})
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = {event["name"]: event["args"]["provider"] for event in events if event.get("args", {}).get("provider")}
    return dict(sorted(Counter(nodes.values()).items()))


def vocabulary_size(path: str | Path) -> int:
    """Rows of the table that token ids are looked up in; 2 where none is stored."""
    graph = load_onnx(path).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Gather" and node.input[1] == "input_ids" and node.input[0] in tensors:
            return int(tensors[node.input[0]].dims[0])
    return 2


def dtype_name(data_type: int) -> str:
    """The numpy-like name of an ONNX element type."""
    name: str = onnx.TensorProto.DataType.Name(data_type).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _itemsize(tensor: onnx.TensorProto) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _elements_of_packed_weights(graph: onnx.GraphProto) -> dict[str, int]:
    """Real number of weights behind tensors that pack several into a byte, or pad their last block."""
    elements = {}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            attributes = {attribute.name: attribute.i for attribute in node.attribute}
            elements[node.input[1]] = attributes["K"] * attributes["N"]
    return elements


def _scales_and_zero_points(graph: onnx.GraphProto) -> set[str]:
    """Names of tensors that describe a quantisation and carry no weights."""
    names: set[str] = set()
    for node in graph.node:
        if node.op_type in ("MatMulNBits", "DequantizeLinear", "QuantizeLinear"):
            names.update(node.input[2 if node.op_type == "MatMulNBits" else 1 :][:2])
        elif node.op_type == "QAttention":
            names.update(node.input[3:5])
            names.update(node.input[6:8])
        elif node.op_type == "MatMulInteger":
            names.update(node.input[2:4])
    names.update(tensor.name for tensor in graph.initializer if tensor.name.endswith(("_scale", "_scales")))
    return names
