"""fp16, dynamic and static INT8 and weight-only INT8/INT4 of an ONNX file; INT8 and INT4 by ONNX Runtime's quantisers.

What the quantisers leave to their caller is done here: stale shapes of the exporter are dropped, a language-model
head that shares the embedding's matrix is made visible to them, and that matrix is stored once afterwards. Every
function returns the facts of the file it wrote, read back from it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, create_calibrator
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import QuantizationMode

from compressor.errors import DataError, StageError
from compressor.graphs.embeddings import SMALLEST_TABLE, quantise_embeddings
from compressor.graphs.facts import GraphFacts, inspect_onnx, quantised_ops
from compressor.graphs.files import disk_errors_named, hushed, save_onnx
from compressor.graphs.half import to_bfloat16, to_half
from compressor.graphs.nbits import ACCURACY_LEVEL, write_grids
from compressor.graphs.prepare import (
    constant_products,
    drop_stale_shapes,
    head_nodes,
    load_unquantised,
    prepare,
    remove_unused,
)
from compressor.methods.rounding import BlockGrid

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}

Feed = dict[str, NDArray[np.generic]]


def convert_fp16(path: str | Path, out: str | Path) -> GraphFacts:
    """Store weights and compute in fp16, with fp32 inputs and outputs; norms and softmax stay in fp32.

    Raises:
        UnsupportedError: the graph is already quantised, or holds operators of unknown type.
        StageError: nothing was converted, or the disk is full.
    """
    model = load_unquantised(path)
    drop_stale_shapes(model)
    if not to_half(model):
        raise StageError("fp16 converted no weight", where=str(path), hint="the graph has no fp32 weights")
    save_onnx(model, out)
    return inspect_onnx(out)


def store_bf16(path: str | Path, out: str | Path) -> GraphFacts:
    """Store matrices in bfloat16 and compute in fp32: half the file with the whole range of fp32.

    For models whose activations leave the range of fp16 (Gemma 3). ONNX Runtime's CPU has no bfloat16 kernels, so every
    matrix is widened once, when a session loads.

    Raises:
        UnsupportedError: the graph is already quantised.
        StageError: nothing was converted, or the disk is full.
    """
    model = load_unquantised(path)
    if not to_bfloat16(model):
        raise StageError("bf16 converted no weight", where=str(path), hint="the graph has no fp32 matrices")
    save_onnx(model, out)
    return inspect_onnx(out)


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
        StageError: nothing was quantised, no table is large enough, or the disk is full.
    """
    model = prepare(path, include_lm_head=include_lm_head, exclude=exclude)
    kept = [*exclude, *([] if include_lm_head else head_nodes(model.graph))]
    with hushed(), disk_errors_named(out):  # it copies the graph through a temporary folder
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
    widen: Collection[str] = (),
    grids: Mapping[str, BlockGrid] | None = None,
) -> GraphFacts:
    """w8 or w4: weights in blocks of ``block_size`` along the input (``MatMulNBits``), activations in fp32.

    ``accuracy_level=4`` lets the kernel quantise activations to INT8 block by block; without it the CPU kernel is
    several times slower.

    Args:
        path: an fp32 graph, fused or not.
        out: the file to write.
        bits: of a weight.
        block_size: inputs that share a scale.
        is_symmetric: without zero points.
        include_lm_head: the product that yields ``logits``, also where it shares the embedding's matrix.
        include_embeddings: store large embedding tables as INT8, one scale per row.
        exclude: names of nodes to leave in fp32.
        widen: names of nodes to give 8 bits where ``bits`` is 4.
        grids: node -> weights that were rounded already (GPTQ and the like); the others go to the nearest.

    Raises:
        UnsupportedError: the graph is already quantised.
        UserError: a name in ``exclude`` that the graph does not have.
        StageError: nothing was quantised, no table is large enough, or the disk is full.
    """
    model = prepare(path, include_lm_head=include_lm_head, exclude=exclude)
    kept = {*exclude, *([] if include_lm_head else head_nodes(model.graph))}
    width = {name: 8 if name in widen else bits for name in grids or {} if name not in kept}
    rounded = {name: grid for name, grid in (grids or {}).items() if grid.bits == width.get(name)}
    if rounded:
        write_grids(model, rounded)
    for n_bits, left_out in ((8, kept | (set(constant_products(model.graph)) - set(widen))), (bits, kept)):
        quantizer = MatMulNBitsQuantizer(
            model,
            bits=n_bits,
            block_size=block_size,
            is_symmetric=is_symmetric,
            accuracy_level=ACCURACY_LEVEL,
            nodes_to_exclude=sorted(left_out),
            op_types_to_quantize=("MatMul",),
        )
        with hushed():
            quantizer.process()
        model = quantizer.model.model
    return _finish(model, path, out, include_embeddings=include_embeddings, scheme=f"w{bits}")


def quantise_static(
    path: str | Path,
    out: str | Path,
    *,
    feeds: Iterable[Feed],
    method: Literal["minmax", "percentile", "entropy"] = "minmax",
    percentile: float = 99.99,
    per_channel: bool = True,
    include_lm_head: bool = True,
    include_embeddings: bool = False,
    exclude: Collection[str] = (),
) -> GraphFacts:
    """w8a8-static: INT8 weights, UINT8 inputs of the products with ranges fixed by calibration (QDQ).

    Outputs of the products stay in fp32: they go into residual sums, where a fixed range costs most.

    Args:
        path: an fp32 graph, fused or not.
        out: the file to write.
        feeds: calibration inputs by name, from training data and never from evaluation data. No padding: the
            calibrator cannot see the mask, and what a model computes on padding would widen every range.
        method: ``minmax``, ``percentile`` (clips rare outliers) or ``entropy`` (least KL divergence of histograms).
        percentile: share of values inside the range, in percent.
        per_channel: one weight scale per output column instead of one per matrix.
        include_lm_head: quantise the product that yields ``logits``.
        include_embeddings: store large embedding tables as INT8, one scale per row.
        exclude: names of nodes to leave in fp32.

    Raises:
        DataError: no feed, a feed with padding, or one whose names or shapes are not the graph's.
        UnsupportedError: the graph is already quantised.
        UserError: a name in ``exclude`` that the graph does not have.
        StageError: nothing was quantised, no table is large enough, or the disk is full.
    """
    model = prepare(path, include_lm_head=include_lm_head, exclude=exclude)
    rows = _checked_feeds(model, feeds)
    kept = {*exclude, *([] if include_lm_head else head_nodes(model.graph))}
    nodes = [name for name in constant_products(model.graph) if name not in kept]
    if not nodes:
        raise _quantised_nothing("w8a8-static", path)
    chosen = set(nodes)
    inputs = {node.input[0] for node in model.graph.node if node.name in chosen}
    # shape inference ends at the first fused operator, and the calibrator leaves out what it has no type for
    model.graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs)
    with hushed(), disk_errors_named(out):
        ranges = _calibrate(model, rows, _METHODS[method], percentile)
        quantizer = QDQQuantizer(
            model,
            per_channel,
            False,
            QuantType.QInt8,
            QuantType.QUInt8,
            ranges,
            nodes,
            [],
            ["MatMul"],
            {"DefaultTensorType": TensorProto.FLOAT, "OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )
        quantizer.quantize_model()
    return _finish(quantizer.model.model, path, out, include_embeddings=include_embeddings, scheme="w8a8-static")


def _calibrate(
    model: onnx.ModelProto, feeds: Sequence[Feed], method: CalibrationMethod, percentile: float
) -> TensorsData:
    """Ranges of all activations over the feeds.

    ``quantize_static`` would search the entropy threshold over as many bins as there are levels, which leaves one
    choice: the full range.
    """
    with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
        plain = Path(folder) / "model.onnx"
        save_onnx(model, plain)
        options: dict[str, float | bool] = {"symmetric": False}
        if method is not CalibrationMethod.MinMax:
            options["num_bins"] = 2048
        if method is CalibrationMethod.Percentile:
            options["percentile"] = percentile
        calibrator = create_calibrator(
            plain,
            ["MatMul"],
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=method,
            extra_options=options,
        )
        for feed in feeds:  # one by one: histograms of several calls at once need texts of one length
            calibrator.collect_data(_Reader([feed]))
        return calibrator.compute_data()


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Feeds, one after the other, as ONNX Runtime's calibrators ask for them."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self.feeds, None)


def _checked_feeds(model: onnx.ModelProto, feeds: Iterable[Feed]) -> list[Feed]:
    names = [value.name for value in model.graph.input]
    rows = []
    for index, feed in enumerate(feeds):
        missing = [name for name in names if name not in feed]
        if missing:
            raise DataError(f"calibration feed {index} has no {', '.join(missing)}", hint="feed every graph input")
        if (feed["attention_mask"] == 0).any():
            raise DataError(
                f"calibration feed {index} contains padding, which would widen the ranges",
                hint="feed texts one by one, or batches of equal length",
            )
        _check_shapes(model, feed, index)
        rows.append({name: feed[name] for name in names})
    if not rows:
        raise DataError("no calibration feed", hint="give at least a few dozen texts of the training split")
    return rows


def _check_shapes(model: onnx.ModelProto, feed: Feed, index: int) -> None:
    """Every dimension as the graph has it, and those with one name equally long in all inputs."""
    lengths: dict[str, int] = {}
    for value in model.graph.input:
        wanted = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        shape = feed[value.name].shape
        fits = len(shape) == len(wanted) and all(
            lengths.setdefault(dim, size) == size if isinstance(dim, str) else dim == size
            for dim, size in zip(wanted, shape, strict=True)
        )
        if not fits:
            known = [f"{name} {size}" for name, size in lengths.items() if name in wanted]
            raise DataError(
                f"calibration feed {index} has {value.name} of shape {shape}, and the graph takes "
                f"({', '.join(str(dim) for dim in wanted)})" + (f" with {', '.join(known)}" if known else ""),
                hint="feed what the tokenizer gives for one text",
            )


def _quantised_nothing(scheme: str, path: str | Path) -> StageError:
    return StageError(
        f"{scheme} quantised nothing: no product with a constant matrix was left",
        where=str(path),
        hint="shorten the list of excluded nodes",
    )


def _finish(
    model: onnx.ModelProto, path: str | Path, out: str | Path, *, include_embeddings: bool, scheme: str
) -> GraphFacts:
    if not quantised_ops(model.graph):
        raise _quantised_nothing(scheme, path)
    if include_embeddings and not quantise_embeddings(model.graph):
        raise StageError(
            f"has no embedding table of {SMALLEST_TABLE} numbers or more to quantise",
            where=str(path),
            hint="leave the embeddings in fp32",
        )
    remove_unused(model.graph)
    save_onnx(model, out)
    return inspect_onnx(out)
