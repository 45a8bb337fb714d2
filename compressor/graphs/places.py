"""Which products of a graph belong to which sublayers of the model that it was exported from.

The exporter folds and renames, so the answer is in the numbers: a stored matrix is that of a linear map when every byte
of it is.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper
from transformers import PreTrainedModel

from compressor.errors import StageError
from compressor.graphs.prepare import constant_products, prepare
from compressor.methods.structure import KINDS
from compressor.methods.surgery import adapter_for, layers_of, read_structure
from compressor.methods.surgery.slicing import linear_at, weight_of


def products_of_sublayers(
    path: str | Path, model: PreTrainedModel, wanted: Collection[tuple[int, str]]
) -> tuple[str, ...]:
    """Names of the nodes that multiply by the matrices of some sublayers, as the quantisers' ``exclude`` takes them.

    Args:
        path: the model's fp32 graph, fused or not.
        model: with the weights that were exported.
        wanted: sublayers as (layer, kind).

    Raises:
        StageError: a matrix of the model that no product of the graph has.
    """
    if not wanted:
        return ()
    graph = prepare(path, include_lm_head=False, exclude=()).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes = defaultdict(list)
    for name, (_, matrix) in constant_products(graph).items():
        nodes[_fingerprint(numpy_helper.to_array(stored[matrix]))].append(name)
    adapter, found = adapter_for(model), []
    for number, (layer, described) in enumerate(zip(layers_of(model), read_structure(model).layers, strict=True)):
        for kind in KINDS:
            if kind in described.skip:
                continue
            for place in adapter.paths(kind):
                weight = weight_of(linear_at(layer, place)).detach().cpu().numpy()  # (out, in)
                same = nodes[_fingerprint(weight.T)]  # equal matrices stand in the order of the layers
                if not same:
                    raise StageError(
                        f"has no product with the matrix {place} of layer {number}",
                        where=str(path),
                        hint="name the nodes that stay in fp32 in `exclude`",
                    )
                name = same.pop(0)
                if (number, kind) in wanted:
                    found.append(name)
    return tuple(found)


def _fingerprint(matrix: NDArray[np.generic]) -> str:
    """Of the shape and every byte."""
    return hashlib.sha256(repr(matrix.shape).encode() + np.ascontiguousarray(matrix).tobytes()).hexdigest()
