"""Attention as one node: ``MultiHeadAttention``, or ``GroupQueryAttention`` with the key/value cache inside.

torch's exporter writes ``scaled_dot_product_attention`` as some twenty standard operators, the same ones for every
family. That shape is found from its softmax outwards; the pattern libraries miss it in most decoders. What feeds
the node are the plain projections (B, T, H * d): their products stay ordinary ``MatMul`` nodes, which every
quantiser sees, dense and pruned alike. (ONNX Runtime's own ``Attention`` operator swallows the projections, and its
quantiser skips them as soon as it carries ``qkv_hidden_sizes``.)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

ORT_DOMAIN = "com.microsoft"
_SMALLEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class _Core:
    """One attention found around its softmax.

    Attributes:
        query, key, value: (B, H, T, d), (B, H, S, d), (B, H, S, d), before scaling.
        bias: what is added to the scores, (B or 1, H or 1, T, S); None without a mask.
        scale: factor of the scores.
        output: (B, T, H, d).
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    bias: ir.Value | None
    scale: float
    output: ir.Value

    @property
    def n_heads(self) -> int:
        return _dim(self.query, 1)

    @property
    def head_size(self) -> int:
        return _dim(self.query, 3)


def fuse_attention(model: ir.Model) -> Counter[str]:
    """Replace every attention found, in place, and count the new nodes by operator.

    ``GroupQueryAttention`` where keys and values are appended to a past that is a graph input and the head size is a
    multiple of 8 (the CPU kernel's rule), else ``MultiHeadAttention``. ``RotaryEmbedding`` where positions rotate.
    """
    counts: Counter[str] = Counter()
    writer = _Writer(model.graph)
    for softmax in [node for node in model.graph if node.op_type == "Softmax"]:
        core = _find_core(softmax)
        if core is None:
            continue
        cached = _find_cache(core)
        if cached is not None and core.head_size % 8 == 0:
            counts.update(_write_cached(writer, core, cached))
        else:
            counts.update(_write_uncached(writer, core))
    if counts:
        model.graph.opset_imports[ORT_DOMAIN] = 1
        model.graph.sort()
        RemoveUnusedNodesPass()(model)
    return counts


# --- finding -----------------------------------------------------------------------------------------------------


def _find_core(softmax: ir.Node) -> _Core | None:
    scores, bias = _input(softmax, 0), None
    add = _producer(scores, "Add")
    if add is not None:
        first, second = _input(add, 0), _input(add, 1)
        scores, bias = (first, second) if _is_product(first) else (second, first)
    scores, factor = _unscale(scores)
    product = _producer(scores, "MatMul")
    if product is None:
        return None
    query, query_factor = _unscale(_input(product, 0))
    transposed, key_factor = _unscale(_input(product, 1))
    key = _untranspose(transposed)
    probabilities = _after_nan_guard(softmax.outputs[0])
    mixed = _only_consumer(probabilities, "MatMul")
    if key is None or mixed is None or _input(mixed, 0) is not probabilities:
        return None
    back = _only_consumer(mixed.outputs[0], "Transpose")
    if back is None or _perm(back) != [0, 2, 1, 3]:
        return None
    core = _Core(query, key, _input(mixed, 1), bias, factor * query_factor * key_factor, back.outputs[0])
    return core if core.n_heads > 0 and core.head_size > 0 else None


@dataclass(frozen=True)
class _Cache:
    """Keys and values of one layer: ``new`` (B, H_kv, T, d), appended to the graph input ``past``, is ``present``."""

    past_key: ir.Value
    new_key: ir.Value
    present_key: ir.Value
    past_value: ir.Value
    new_value: ir.Value
    present_value: ir.Value

    @property
    def n_kv_heads(self) -> int:
        return _dim(self.past_key, 1)


def _find_cache(core: _Core) -> _Cache | None:
    parts: list[ir.Value] = []
    for tensor in (core.key, core.value):
        present = _unrepeat(tensor)
        concat = _producer(present, "Concat")
        if concat is None or not present.is_graph_output() or len(concat.inputs) != 2:
            return None
        past, new = _input(concat, 0), _input(concat, 1)
        axis = concat.attributes.get_int("axis")
        if axis not in (-2, 2) or not past.is_graph_input():
            return None
        parts += [past, new, present]
    return _Cache(*parts)


def _unrepeat(value: ir.Value) -> ir.Value:
    """Through ``repeat_kv``: Unsqueeze, Expand, Reshape; the value itself where heads are not repeated."""
    reshape = _producer(value, "Reshape")
    expand = _producer(_input(reshape, 0), "Expand") if reshape else None
    unsqueeze = _producer(_input(expand, 0), "Unsqueeze") if expand else None
    return _input(unsqueeze, 0) if unsqueeze else value


def _untranspose(value: ir.Value) -> ir.Value | None:
    """The (B, H, S, d) behind (B, H, d, S): one Transpose, or one between two Reshapes."""
    transpose = _producer(value, "Transpose")
    if transpose is not None:
        return _input(transpose, 0) if _perm(transpose) == [0, 1, 3, 2] else None
    reshape = _producer(value, "Reshape")
    transpose = _producer(_input(reshape, 0), "Transpose") if reshape else None
    inner = _producer(_input(transpose, 0), "Reshape") if transpose and _perm(transpose) == [0, 2, 1] else None
    return _input(inner, 0) if inner else None


def _after_nan_guard(probabilities: ir.Value) -> ir.Value:
    """Past ``Where(IsNaN(p), 0, p)``, which makes rows without any visible key zero."""
    for consumer in probabilities.consumers():
        if consumer.op_type == "IsNaN":
            guard = _only_consumer(consumer.outputs[0], "Where")
            if guard is not None and _input(guard, 2) is probabilities:
                return guard.outputs[0]
    return probabilities


def _find_rotation(value: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """The tensor (B, H, T, d) before rotation, and cos and sin (B or 1, T, d); None where nothing rotates it so."""
    add = _producer(value, "Add")
    if add is None:
        return None
    straight, crossed = _producer(_input(add, 0), "Mul"), _producer(_input(add, 1), "Mul")
    halves = _producer(_input(crossed, 0), "Concat") if straight and crossed else None
    if straight is None or crossed is None or halves is None or len(halves.inputs) != 2:
        return None
    negated = _producer(_input(halves, 0), "Neg")
    upper = _producer(_input(negated, 0), "Slice") if negated else None
    lower = _producer(_input(halves, 1), "Slice")
    cos, sin = _producer(_input(straight, 1), "Unsqueeze"), _producer(_input(crossed, 1), "Unsqueeze")
    if upper is None or lower is None or cos is None or sin is None:
        return None
    source, half = _input(straight, 0), _dim(_input(straight, 0), 3) // 2
    if _input(upper, 0) is not source or _input(lower, 0) is not source:
        return None
    starts_at_half = _integers(upper.inputs[1]) == [half] and _integers(lower.inputs[1]) == [0]
    ends_at_half = _integers(lower.inputs[2]) == [half]
    if not starts_at_half or not ends_at_half or _dim(_input(cos, 0), 2) != 2 * half:
        return None
    return source, _input(cos, 0), _input(sin, 0)


def _unscale(value: ir.Value) -> tuple[ir.Value, float]:
    """Past a product with a constant scalar."""
    for op, power in (("Mul", 1), ("Div", -1)):
        node = _producer(value, op)
        if node is not None:
            factor = _scalar(node.inputs[1])
            if factor is not None:
                return _input(node, 0), factor**power
    return value, 1.0


# --- writing -----------------------------------------------------------------------------------------------------


class _Writer:
    """Adds nodes and constants to a graph, and remembers what several layers share."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.shared: dict[tuple[str, int], ir.Value] = {}
        self.count = 0

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        self.count += 1
        value = ir.val(f"fused_{name}_{self.count}", const_value=ir.tensor(array, name=f"fused_{name}_{self.count}"))
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
        self.graph.register_initializer(value)
        return value

    def node(
        self,
        op: str,
        inputs: list[ir.Value | None],
        attributes: dict[str, int | float | list[int]] | None = None,
        *,
        domain: str = "",
        n_outputs: int = 1,
    ) -> ir.Node:
        self.count += 1
        node = ir.node(op, inputs, attributes, domain=domain, num_outputs=n_outputs, name=f"fused_{op}_{self.count}")
        for index, output in enumerate(node.outputs):
            output.name = f"{node.name}_out{index}"
        self.graph.append(node)
        return node

    def op(self, op: str, inputs: list[ir.Value | None], **attributes: int | float | list[int]) -> ir.Value:
        return self.node(op, inputs, attributes).outputs[0]

    def flat(self, value: ir.Value) -> ir.Value:
        """(B, H, T, d) -> (B, T, H * d); the projection itself where the graph only split and turned it."""
        width = _dim(value, 1) * _dim(value, 3)
        transpose = _producer(value, "Transpose")
        if transpose is not None and _perm(transpose) == [0, 2, 1, 3]:
            split = _input(transpose, 0)  # (B, T, H, d)
            reshape = _producer(split, "Reshape")
            if reshape is not None and len(_shape(_input(reshape, 0))) == 3 and _dim(_input(reshape, 0), 2) == width:
                return _input(reshape, 0)
        else:
            split = self.op("Transpose", [value], perm=[0, 2, 1, 3])
        shape = self.constant(np.array([0, 0, width], np.int64), "flat_shape")
        return self.op("Reshape", [split, shape])

    def finite_bias(self, bias: ir.Value) -> ir.Value:
        """Minus infinity made finite: a row that sees no key would be NaN in the fused kernels (it is padding)."""
        where = _producer(bias, "Where")
        if where is None or _scalar(where.inputs[2]) != -np.inf:
            return bias
        key = ("bias", id(bias))
        if key not in self.shared:
            smallest = self.constant(np.array(_SMALLEST, np.float32), "masked")
            self.shared[key] = self.op("Where", [where.inputs[0], where.inputs[1], smallest])
        return self.shared[key]

    def rotated(self, value: ir.Value) -> tuple[ir.Value, int]:
        """(B, H, T, d) -> (B, T, H * d) with its rotation as one node, and how many such nodes were written."""
        rotation = _find_rotation(value)
        if rotation is None:
            return self.flat(value), 0
        source, cos, sin = rotation
        inputs = [self.flat(source), self.positions(cos), self.table(cos), self.table(sin)]
        attributes: dict[str, int | float | list[int]] = {"num_heads": _dim(source, 1), "interleaved": 0}
        return self.node("RotaryEmbedding", [*inputs], attributes, domain=ORT_DOMAIN).outputs[0], 1

    def table(self, angles: ir.Value) -> ir.Value:
        """cos or sin (B or 1, T, d) of this very batch as the table (B * T, d / 2) that ``RotaryEmbedding`` reads.

        The table is made from the positions at hand and not for all positions, so a longer text needs no other file.
        """
        key = ("table", id(angles))
        if key not in self.shared:
            half = _dim(angles, 2) // 2
            ends = [self.constant(np.array([n], np.int64), "half") for n in (0, half, 2)]
            first_half = self.op("Slice", [angles, *ends])
            shape = self.constant(np.array([-1, half], np.int64), "table_shape")
            self.shared[key] = self.op("Reshape", [first_half, shape])
        return self.shared[key]

    def positions(self, angles: ir.Value) -> ir.Value:
        """Row of that table for every token: (B, T), or an offset of 0 where all texts share one row."""
        key = ("positions", id(angles))
        if key not in self.shared:
            if _shape(angles)[0] == 1:
                self.shared[key] = self.constant(np.array([0], np.int64), "offset")
            else:
                shape = self.node("Shape", [angles], {"start": 0, "end": 2}).outputs[0]
                size = self.op("ReduceProd", [shape], keepdims=0)
                zero, one = (self.constant(np.array(n, np.int64), "bound") for n in (0, 1))
                self.shared[key] = self.op("Reshape", [self.op("Range", [zero, size, one]), shape])
        return self.shared[key]

    def lengths(self, cache: _Cache) -> tuple[ir.Value, ir.Value]:
        """``seqlens_k`` (B,), which is the last valid index, and the total length, both int32."""
        key = ("lengths", 0)
        if key not in self.shared:
            ids = next(value for value in self.graph.inputs if value.name == "input_ids")
            past = self.node("Shape", [cache.past_key], {"start": 2, "end": 3}).outputs[0]
            new = self.node("Shape", [ids], {"start": 1, "end": 2}).outputs[0]
            batch = self.node("Shape", [ids], {"start": 0, "end": 1}).outputs[0]
            total = self.op("Cast", [self.op("Add", [past, new])], to=int(ir.DataType.INT32))  # (1,)
            one = self.constant(np.array([1], np.int32), "one")
            self.shared[key] = self.op("Expand", [self.op("Sub", [total, one]), batch])
            self.shared[("total", 0)] = self.op("Squeeze", [total])
        return self.shared[key], self.shared[("total", 0)]


def _write_cached(writer: _Writer, core: _Core, cache: _Cache) -> Counter[str]:
    query, n_query = writer.rotated(core.query)
    key, n_key = writer.rotated(cache.new_key)
    value = writer.flat(cache.new_value)
    last, total = writer.lengths(cache)
    bias = writer.finite_bias(core.bias) if core.bias is not None else None
    node = writer.node(
        "GroupQueryAttention",
        [query, key, value, cache.past_key, cache.past_value, last, total, None, None, None, bias],
        {"num_heads": core.n_heads, "kv_num_heads": cache.n_kv_heads, "scale": core.scale, "do_rotary": 0},
        domain=ORT_DOMAIN,
        n_outputs=3,
    )
    for old, new in zip((core.output, cache.present_key, cache.present_value), node.outputs, strict=True):
        _take_over(old, new)
    return Counter({"GroupQueryAttention": 1, "RotaryEmbedding": n_query + n_key})


def _write_uncached(writer: _Writer, core: _Core) -> Counter[str]:
    query, n_query = writer.rotated(core.query)
    key, n_key = writer.rotated(core.key)
    bias = writer.finite_bias(core.bias) if core.bias is not None else None
    node = writer.node(
        "MultiHeadAttention",
        [query, key, writer.flat(core.value), None, None, bias],
        {"num_heads": core.n_heads, "scale": core.scale},
        domain=ORT_DOMAIN,
    )
    _take_over(core.output, node.outputs[0])
    return Counter({"MultiHeadAttention": 1, "RotaryEmbedding": n_query + n_key})


def _take_over(old: ir.Value, new: ir.Value) -> None:
    """Let ``new`` stand wherever ``old`` stood, as a graph output with its name too.

    (B, T, H, d) and (B, T, H * d) are the same bytes in the same order, so the Reshape that follows still fits.
    """
    is_output, name = old.is_graph_output(), old.name
    new.type = old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    if is_output:
        new.shape = old.shape
        old.name = f"{name}_unfused"
        new.name = name


# --- reading values ----------------------------------------------------------------------------------------------


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None  # the operators read here have no optional inputs in these places
    return value


def _producer(value: ir.Value | None, op: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op else None


def _only_consumer(value: ir.Value, op: str) -> ir.Node | None:
    consumers = list(value.consumers())
    return consumers[0] if len(consumers) == 1 and consumers[0].op_type == op else None


def _is_product(value: ir.Value) -> bool:
    return _producer(_unscale(value)[0], "MatMul") is not None


def _perm(transpose: ir.Node) -> list[int]:
    return list(transpose.attributes.get_ints("perm") or [])


def _shape(value: ir.Value) -> list[int | None]:
    return [dim if isinstance(dim, int) else None for dim in (value.shape or ())]


def _dim(value: ir.Value, axis: int) -> int:
    """A dimension known beforehand; 0 where it is not."""
    shape = _shape(value)
    return (shape[axis] or 0) if axis < len(shape) else 0


def _constant(value: ir.Value | None) -> np.ndarray | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor.numpy() if tensor is not None else None


def _scalar(value: ir.Value | None) -> float | None:
    array = _constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def _integers(value: ir.Value | None) -> list[int] | None:
    array = _constant(value)
    return [int(n) for n in array.reshape(-1)] if array is not None else None
