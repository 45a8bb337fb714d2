"""A graph computed in fp16, whichever operators it is made of.

ONNX Runtime's converter needs the type of every value from shape inference, which ends at some fused operators; then
it leaves casts out and the file does not load. Types alone are enough, and they follow from the operators' schemas.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

from compressor.errors import UnsupportedError

KEPT_IN_FP32 = frozenset(DEFAULT_OP_BLOCK_LIST) | {
    "ConstantOfShape",  # its type is an attribute, not an input
    "LayerNormalization",
    "Pow",
    "ReduceMean",
    "Resize",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "Softmax",
}
"""Operators without fp16 kernels, and sums of squares or exponentials, which leave fp16's range or its 11 bits."""
ANGLES_OF = ("Cos", "Sin")
LARGEST, SMALLEST = 65504.0, 2.0**-24
"""Of fp16, subnormal numbers included."""


def to_half(model: onnx.ModelProto) -> list[str]:
    """Let every node that may compute in fp16, in place; inputs and outputs of the graph stay fp32.

    A value is held in the type of the node that makes it, and a stored tensor in fp16 as soon as one fp16 node reads
    it; each reader of the other type gets a `Cast`, one for each value. The angles of rotary positions are computed in
    fp32: fp16 cannot tell position 2049 from 2048.

    Returns:
        Names of the stored tensors that are fp16 now.

    Raises:
        UnsupportedError: a subgraph (`If`, `Loop`), or a value whose type no schema tells.
    """
    graph = model.graph
    floats = {name for name, dtype in value_types(model).items() if dtype == TensorProto.FLOAT}
    stored = _stored_tensors(graph)
    nodes, kept = list(graph.node), _kept_nodes(graph)
    half: set[str] = set()
    for index, node in enumerate(nodes):
        if index not in kept:
            half.update(name for name in node.input if name in stored and name in floats)
            half.update(name for name in node.output if name in floats)
    for name in half & stored.keys():
        _halve(stored[name])
    rewired: list[onnx.NodeProto] = []
    casts: dict[str, str] = {}
    for index, node in enumerate(nodes):
        wants_half = index not in kept
        for position, name in enumerate(node.input):
            if name not in floats or (name in half) == wants_half:
                continue
            if name not in casts:
                casts[name] = f"{name}_{'fp16' if wants_half else 'fp32'}"
                rewired.append(_cast(name, casts[name], to_half=wants_half))
            node.input[position] = casts[name]
        if node.op_type == "Cast" and wants_half and node.output[0] in floats:
            node.attribute[0].i = TensorProto.FLOAT16
        rewired.append(node)
    for value in graph.output:
        if value.name in half:
            _rename(rewired, value.name, f"{value.name}_half")
            rewired.append(_cast(f"{value.name}_half", value.name, to_half=False))
            # with its shape: else ONNX Runtime takes a past and a present for equally long, and reuses the memory
            inner = graph.value_info.add()
            inner.CopyFrom(value)
            inner.name, inner.type.tensor_type.elem_type = f"{value.name}_half", TensorProto.FLOAT16
    new = [onnx.NodeProto.FromString(node.SerializeToString()) for node in rewired]  # they go with the old list
    del graph.node[:]
    graph.node.extend(new)
    return sorted(half & stored.keys())


def to_bfloat16(model: onnx.ModelProto) -> list[str]:
    """Store every fp32 matrix in bfloat16, in place, with a `Cast` back to fp32 behind it.

    Returns:
        Names of the matrices.
    """
    graph = model.graph
    matrices = [
        tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1
    ]
    stored, casts = [], []
    for tensor in matrices:
        bits = numpy_helper.to_array(tensor).view(np.uint32)
        rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # ties to even
        name = f"{tensor.name}_bf16"
        narrow = TensorProto(name=name, data_type=TensorProto.BFLOAT16, dims=tensor.dims, raw_data=rounded.tobytes())
        stored.append(narrow)
        casts.append(_cast(name, tensor.name, to_half=False))
    done = [tensor.name for tensor in matrices]
    kept = [tensor for tensor in graph.initializer if tensor.name not in set(done)]
    nodes = [*casts, *graph.node]
    for field, values in ((graph.initializer, [*kept, *stored]), (graph.node, nodes)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]  # they go with the old list
        del field[:]
        field.extend(copies)
    return done


def value_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value of a graph, by name.

    Standard operators tell by their schema. What has none is an operator of ONNX Runtime's own, and those that stand
    for several others give out floats of the type that they read.

    Raises:
        UnsupportedError: a subgraph, or an output whose type neither an input nor an attribute tells.
    """
    graph = model.graph
    versions = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    types.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
    for node in graph.node:
        if any(attribute.type in (attribute.GRAPH, attribute.GRAPHS) for attribute in node.attribute):
            raise UnsupportedError(
                f"{node.op_type} {node.name!r} holds a graph of its own, which fp16 conversion does not enter",
                hint="quantise with another scheme",
            )
        inputs = [types.get(name, TensorProto.UNDEFINED) for name in node.input]
        try:
            schema = onnx.defs.get_schema(node.op_type, versions.get(node.domain or "ai.onnx", 0), node.domain)
        except onnx.defs.SchemaError:
            outputs = _types_of_fused(node, inputs)
        else:
            outputs = [_type_by_schema(node, inputs, schema, index) for index in range(len(node.output))]
        types.update(zip(node.output, outputs, strict=True))
    types.pop("", None)
    return types


def _types_of_fused(node: onnx.NodeProto, inputs: Sequence[int]) -> list[int]:
    dtype = next((dtype for dtype in inputs if dtype in (TensorProto.FLOAT, TensorProto.FLOAT16)), None)
    if dtype is None:
        raise _unknown_type(node)
    types = [dtype] * len(node.output)
    if node.op_type == "EmbedLayerNormalization":
        types[1:2] = [TensorProto.INT32] * len(types[1:2])  # the lengths
    return types


def _type_by_schema(node: onnx.NodeProto, inputs: Sequence[int], schema: onnx.defs.OpSchema, index: int) -> int:
    if not node.output[index]:
        return TensorProto.UNDEFINED
    wanted = schema.outputs[min(index, len(schema.outputs) - 1)].type_str  # the last one may be repeated
    for position, dtype in enumerate(inputs):
        if dtype and schema.inputs[min(position, len(schema.inputs) - 1)].type_str == wanted:
            return dtype
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype", "stash_type"):
            return int(attribute.i)
        if attribute.name.startswith("value"):  # of Constant and ConstantOfShape
            named = {"value_float": TensorProto.FLOAT, "value_floats": TensorProto.FLOAT}
            return int(attribute.t.data_type or named.get(attribute.name, TensorProto.INT64))
    allowed = next((c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == wanted), [wanted])
    if len(allowed) == 1:
        return int(TensorProto.DataType.Value(allowed[0].removeprefix("tensor(").removesuffix(")").upper()))
    if node.op_type in ("ConstantOfShape", "LayerNormalization"):
        return TensorProto.FLOAT  # without the attribute
    raise _unknown_type(node)


def _unknown_type(node: onnx.NodeProto) -> UnsupportedError:
    return UnsupportedError(
        f"cannot tell the type of what {node.op_type} {node.name!r} gives out", hint="quantise with another scheme"
    )


def _kept_nodes(graph: onnx.GraphProto) -> set[int]:
    """Indices of nodes that stay as they are: by operator, constants, and whatever angles are computed from."""
    producers = {output: index for index, node in enumerate(graph.node) for output in node.output}
    kept = {
        index for index, node in enumerate(graph.node) if node.op_type in KEPT_IN_FP32 or node.op_type == "Constant"
    }
    pending = [index for index, node in enumerate(graph.node) if node.op_type in ANGLES_OF]
    seen: set[int] = set()
    while pending:
        index = pending.pop()
        if index not in seen:
            seen.add(index)
            pending.extend(producers[name] for name in graph.node[index].input if name in producers)
    return kept | seen


def _stored_tensors(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return tensors


def _halve(tensor: TensorProto) -> None:
    """To fp16 in place. What is finite stays finite (masks hold -3.4e38), and what is not zero stays so (epsilons)."""
    wide = numpy_helper.to_array(tensor)
    values = np.where(np.isfinite(wide), np.clip(wide, -LARGEST, LARGEST), wide)
    vanishing = (values != 0) & (np.abs(values) < SMALLEST)
    values = np.where(vanishing, np.copysign(SMALLEST, values), values)
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))


def _cast(name: str, output: str, *, to_half: bool) -> onnx.NodeProto:
    dtype = TensorProto.FLOAT16 if to_half else TensorProto.FLOAT
    return helper.make_node("Cast", [name], [output], f"{output}_cast", to=dtype)


def _rename(nodes: Sequence[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
