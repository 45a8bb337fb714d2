"""A second path through attention for calls without padding, which need no mask.

ONNX Runtime's CPU kernel of `MultiHeadAttention` keeps scores in the cache (flash attention) only where nothing is
added to them. A mask that hides nothing is a tensor of zeros: adding it changes no number and costs that kernel. So
each attention becomes an `If` on whether its own bias is all zeros, whatever it was made of (padding, windows,
positions). One text alone has no padding, and neither have texts of one length.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from compressor.errors import StageError
from compressor.graphs.files import load_onnx, save_onnx

BIAS = 5
"""Position of the additive mask among the inputs of `MultiHeadAttention`."""


def add_unpadded_path(path: str | Path, out: str | Path) -> int:
    """Give every masked attention of a fused fp32 graph its path without a mask.

    Args:
        path: a fused graph.
        out: the file to write; it may be ``path``.

    Returns:
        How many attentions have two paths now.

    Raises:
        CheckpointError: ``path`` is not an ONNX file.
        StageError: no attention with a mask, or the disk is full.
    """
    model = load_onnx(path)
    nodes: list[onnx.NodeProto] = []
    asked: dict[str, str] = {}
    n_paths = 0
    for node in model.graph.node:
        if not _is_masked(node):
            nodes.append(node)
            continue
        bias = node.input[BIAS]
        if bias not in asked:
            asked[bias] = f"{bias}/is_zero"
            nodes += _is_zero(bias, asked[bias])
        nodes.append(_two_paths(node, asked[bias]))
        n_paths += 1
    if not n_paths:
        raise StageError(
            "has no attention with a mask that a call without padding could do without",
            where=str(path),
            hint="leave out `unpadded_path`; it is for fused encoders",
        )
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # they go with the old list
    del model.graph.node[:]
    model.graph.node.extend(copies)
    save_onnx(model, out)
    return n_paths


def _is_masked(node: onnx.NodeProto) -> bool:
    """A plain attention whose only extra is the bias: no cache, no projection bias, no lengths."""
    if node.op_type != "MultiHeadAttention" or len(node.output) != 1:
        return False
    return [position for position, name in enumerate(node.input) if name] == [0, 1, 2, BIAS]


def _is_zero(bias: str, answer: str) -> list[onnx.NodeProto]:
    """Whether the sum of magnitudes is 0; hidden positions make it huge or infinite."""
    total, zero = f"{answer}/sum", f"{answer}/zero"
    return [
        helper.make_node("ReduceL1", [bias], [total], f"{answer}/ReduceL1", keepdims=0),
        helper.make_node("Constant", [], [zero], f"{answer}/Constant", value_float=0.0),
        helper.make_node("Equal", [total, zero], [answer], f"{answer}/Equal"),
    ]


def _two_paths(node: onnx.NodeProto, is_zero: str) -> onnx.NodeProto:
    branches = {}
    for branch, n_inputs in (("then", BIAS - 2), ("else", len(node.input))):
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        del copy.input[n_inputs:]
        copy.name, copy.output[0] = f"{node.name}/{branch}", f"{node.output[0]}/{branch}"
        given = helper.make_tensor_value_info(copy.output[0], TensorProto.FLOAT, None)
        branches[f"{branch}_branch"] = helper.make_graph([copy], f"{node.name}/{branch}", [], [given])
    return helper.make_node("If", [is_zero], [node.output[0]], f"{node.name}/If", **branches)
