"""Rounding that looks at calibration data, before weights are stored in few bits.

GPTQ is our own and works on the graph: whatever was pruned or fused is rounded as it stands. AWQ and AutoRound are
neural-compressor's and work on the torch module, which is then exported anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from onnx import numpy_helper

from compressor.checkpoints.store import Checkpoint
from compressor.errors import StageError, UnsupportedError
from compressor.graphs.activations import collect_grams
from compressor.graphs.export import export_decoder
from compressor.graphs.fuse import fuse
from compressor.graphs.prepare import constant_products, prepare
from compressor.graphs.quantise import Feed
from compressor.methods.rounding import BlockGrid, find_grid, gptq
from compressor.runtime.torch_models import load_module, quiet_transformers
from compressor.spec.stages import Quantize
from compressor.stages.context import StageContext
from compressor.stages.rows import calibration_batches

BLOCK_SIZE = 32
Grids = dict[str, BlockGrid]


def gptq_grids(graph: Path, feeds: Sequence[Feed], widths: Iterable[int], *, include_lm_head: bool) -> dict[str, Grids]:
    """Every product of the graph rounded by GPTQ: scheme -> node -> grid."""
    grams = collect_grams(graph, feeds, include_lm_head=include_lm_head)
    weights = stored_weights(graph, include_lm_head=include_lm_head)
    return {
        f"w{bits}": {
            node: gptq(weight, grams[node], bits=bits, block_size=BLOCK_SIZE) for node, weight in weights.items()
        }
        for bits in widths
    }


def rounded_export(config: Quantize, source: Checkpoint, ctx: StageContext, folder: Path) -> tuple[Path, Grids]:
    """The torch model rounded by neural-compressor, exported and fused, and the grids that its weights lie on.

    Raises:
        MissingPackageError: neural-compressor is not installed.
        UnsupportedError: a model that is no language model.
        StageError: the rounded weights lie on no grid that `MatMulNBits` can store.
    """
    from compressor.stages.neural_compressor import round_module

    if not ctx.task.is_decoder:
        raise UnsupportedError(
            f"{config.method} is made for language models, and this is {ctx.task.name}",
            where=f"stages.{config.id}.method",
            hint="use gptq",
        )
    assert config.method in ("awq", "autoround")
    bits = 4 if config.scheme == "w4" else 8
    path = folder / "rounded.onnx"
    with quiet_transformers():
        module = round_module(
            load_module(source),
            calibration_batches(source, ctx),
            method=config.method,
            bits=bits,
            block_size=BLOCK_SIZE,
        )
        export_decoder(module, path)
    fuse(path, path)
    found = {
        node: find_grid(weight, bits=bits, block_size=BLOCK_SIZE)
        for node, weight in stored_weights(path, include_lm_head=False).items()
    }
    grids = {node: grid for node, grid in found.items() if grid is not None}
    if not grids:
        raise StageError(
            f"{config.method} left no weights on a grid of {bits} bits in blocks of {BLOCK_SIZE}",
            where=f"stages.{config.id}.method",
            hint="use gptq",
        )
    return path, grids


def stored_weights(graph: Path, *, include_lm_head: bool) -> dict[str, torch.Tensor]:
    """The matrix of every product, (K, N), by node."""
    model = prepare(graph, include_lm_head=include_lm_head, exclude=())
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        node: torch.from_numpy(numpy_helper.to_array(stored[weight]).copy())
        for node, (_, weight) in constant_products(model.graph).items()
    }
