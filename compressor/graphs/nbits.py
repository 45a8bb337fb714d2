"""Products with rounded weights as `MatMulNBits`, written from codes and scales."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compressor.graphs.prepare import replace_node
from compressor.methods.rounding import BlockGrid

ORT_DOMAIN = "com.microsoft"
ACCURACY_LEVEL = 4
"""Lets the kernel quantise activations to INT8 block by block; without it the CPU kernel is several times slower."""


def write_grids(model: onnx.ModelProto, grids: Mapping[str, BlockGrid]) -> None:
    """Put `MatMulNBits` in the place of the named products, in place; their matrices are left unread."""
    graph = model.graph
    nodes = {node.name: node for node in graph.node if node.name in grids}
    for name, grid in grids.items():
        node = nodes[name]
        weight = node.input[1]
        n_inputs, n_outputs = grid.codes.shape
        packed, scales = f"{weight}_w{grid.bits}", f"{weight}_w{grid.bits}_scales"
        if not any(tensor.name == packed for tensor in graph.initializer):
            graph.initializer.append(numpy_helper.from_array(pack(grid), packed))
            flat = np.ascontiguousarray(grid.scales.float().numpy().T).reshape(-1)  # (N * n_blocks,)
            graph.initializer.append(numpy_helper.from_array(flat, scales))
        product = helper.make_node(
            "MatMulNBits",
            [node.input[0], packed, scales],
            list(node.output),
            f"{name}_Q{grid.bits}",
            domain=ORT_DOMAIN,
            K=n_inputs,
            N=n_outputs,
            bits=grid.bits,
            block_size=grid.block_size,
            accuracy_level=ACCURACY_LEVEL,
        )
        replace_node(graph, node, [product])
    if not any(entry.domain == ORT_DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(ORT_DOMAIN, 1))


def pack(grid: BlockGrid) -> NDArray[np.uint8]:
    """(N, n_blocks, bytes of a block), low half of a byte first; a block that is not full is filled with zeros."""
    n_inputs, n_outputs = grid.codes.shape
    n_blocks = -(-n_inputs // grid.block_size)
    codes = np.full((n_outputs, n_blocks * grid.block_size), 2 ** (grid.bits - 1), np.uint8)
    codes[:, :n_inputs] = grid.codes.numpy().T
    blocks = codes.reshape(n_outputs, n_blocks, grid.block_size)
    if grid.bits == 4:
        return (blocks[..., 0::2] | (blocks[..., 1::2] << 4)).astype(np.uint8)
    return np.ascontiguousarray(blocks)
