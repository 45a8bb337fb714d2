"""Fewer nodes and faster ones with the same results.

Our own attention fusion runs first; then whichever of ``onnxscript``'s rewriter and ONNX Runtime's optimizer fuses more
of what is left (norms, GELU), then the other. Fusions that run slower than their parts are taken apart again. The
furthest result whose numbers hold is kept. A fused file holds operators of ONNX Runtime's own domain: the unfused one
is the portable one.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
from numpy.typing import NDArray
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from onnxruntime.transformers import optimizer as ort_optimizer
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxscript.rewriter.ort_fusions import optimize_for_ort

from compressor.errors import StageError
from compressor.graphs.files import hushed, load_onnx, save_onnx
from compressor.graphs.fuse_attention import fuse_attention
from compressor.graphs.residuals import split_slow_fusions

FUSED_OPS = (
    "Attention",
    "BiasGelu",
    "EmbedLayerNormalization",
    "FastGelu",
    "Gelu",
    "GroupQueryAttention",
    "MultiHeadAttention",
    "QuickGelu",
    "RotaryEmbedding",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
)
TOLERANCE = 1e-4  # of the largest output
GROUP_QUERY_LIMIT = "GroupQueryAttention takes several new tokens after a past only at batch 1"

Feed = dict[str, NDArray[np.generic]]

_TINY = float(np.finfo(np.float32).tiny)
_SESSION_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)
_LIBRARY_ERRORS = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class FusionReport:
    """What became of the graph.

    Attributes:
        counts: fused nodes by operator; empty when the unfused graph was kept.
        split: fusions found and taken apart again because their parts run faster, by operator.
        fused_by: the passes that made the result, such as ``attention + onnxscript``; empty when unfused.
        n_nodes_before, n_nodes_after: nodes of the two files.
        max_relative_diff: largest output difference on the samples, relative to the largest output.
        reason: why passes were left out, or why the graph stayed as it was; None when nothing went wrong.
        limits: what the fused file cannot do and the unfused one can.
    """

    counts: dict[str, int]
    split: dict[str, int]
    fused_by: str
    n_nodes_before: int
    n_nodes_after: int
    max_relative_diff: float
    reason: str | None = None
    limits: tuple[str, ...] = field(default=())


def fuse(path: str | Path, out: str | Path, *, samples: Sequence[Feed] = (), skip_norms: bool = False) -> FusionReport:
    """Fuse attention, rotary positions, norms and GELU where the numbers stay the same.

    Every result is loaded in ONNX Runtime and compared on ``samples`` before it is kept; one that is off by more than
    1e-4 of the largest output is dropped, and the report says so.

    Args:
        path: an exported fp32 graph; heads and widths may differ from layer to layer.
        out: the file to write; it may be ``path``.
        samples: inputs by name; without them, random ones of several shapes, with padding and with a past.
        skip_norms: keep norms fused with their residual sum and biases with their GELU, although the CPU kernels of
            ONNX Runtime 1.31 are slower that way (see ``residuals``).

    Raises:
        CheckpointError: ``path`` is not an ONNX file.
        StageError: the unfused graph does not run on the samples, or the disk is full.
    """
    model = load_onnx(path)
    samples = samples or probe_feeds(model)
    try:
        expected = _run(model, samples, out)
    except _SESSION_ERRORS as error:
        raise StageError(f"does not run in ONNX Runtime ({_first_line(error)})", where=str(path)) from error
    faults: list[str] = []
    for name, fused in _chain(model, faults):
        split = {} if skip_norms else dict(split_slow_fusions(fused))
        try:
            difference = _max_relative_difference(expected, _run(fused, samples, out), samples)
        except _SESSION_ERRORS as error:
            faults.append(f"{name}: does not run ({_first_line(error)})")
            continue
        if difference > TOLERANCE:
            faults.append(f"{name}: outputs differ by {difference:.2g} of the largest, {TOLERANCE:g} is allowed")
            continue
        save_onnx(fused, out)
        counts = _count_fused(fused)
        return FusionReport(
            counts=dict(sorted(counts.items())),
            split=split,
            fused_by=name,
            n_nodes_before=len(model.graph.node),
            n_nodes_after=len(fused.graph.node),
            max_relative_diff=difference,
            reason="; ".join(faults) or None,
            limits=(GROUP_QUERY_LIMIT,) if counts["GroupQueryAttention"] else (),
        )
    save_onnx(model, out)
    n_nodes = len(model.graph.node)
    return FusionReport({}, {}, "", n_nodes, n_nodes, 0.0, "; ".join(faults) or "no pass found anything to fuse")


def probe_feeds(model: onnx.ModelProto, *, seed: int = 0) -> list[Feed]:
    """Random inputs for an exported graph: unequal lengths, and for a decoder an empty past, one step and a chunk."""
    rng = np.random.default_rng(seed)
    inputs = {value.name: value for value in model.graph.input}
    is_decoder = any(name.startswith("past_key_values.") for name in inputs)
    shapes = [(2, 9, 0), (2, 1, 6), (1, 3, 5)] if is_decoder else [(2, 9, 0), (1, 5, 0)]  # (B, T, P)
    return [_probe(inputs, _vocab_size(model), shape, rng) for shape in shapes]


def _probe(
    inputs: dict[str, onnx.ValueInfoProto], vocab_size: int, shape: tuple[int, int, int], rng: np.random.Generator
) -> Feed:
    batch, length, past = shape
    mask = np.ones((batch, length + past), np.int64)
    if batch > 1:
        is_decoder = any(name.startswith("past_key_values.") for name in inputs)
        mask[1, :2] = 0 if is_decoder else 1  # decoders are padded on the left,
        mask[1, 6:] = 1 if is_decoder else 0  # encoders on the right
    feed: Feed = {}
    for name, value in inputs.items():
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if name == "input_ids":
            feed[name] = rng.integers(0, vocab_size, (batch, length))
        elif name == "attention_mask":
            feed[name] = mask
        elif name == "position_ids":
            feed[name] = np.maximum(mask.cumsum(1) - 1, 0)[:, past:]
        elif name.startswith("past_key_values."):
            feed[name] = rng.standard_normal((batch, dims[1], past, dims[3])).astype(np.float32)
        elif name == "token_type_ids":
            feed[name] = np.zeros((batch, length), np.int64)
        else:
            raise StageError(f"takes an input {name!r} that we do not know", hint="give samples for this graph")
    return feed


def _vocab_size(model: onnx.ModelProto) -> int:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Gather" and node.input[1] == "input_ids" and node.input[0] in tensors:
            return int(tensors[node.input[0]].dims[0])
    return 2


def _chain(model: onnx.ModelProto, faults: list[str]) -> list[tuple[str, onnx.ModelProto]]:
    """The graph after each pass that fused something, the furthest first.

    Attention first, then whichever of the two libraries fuses more, then the other one on top.
    """
    attention = _with_attention(model)
    chain = [("attention", attention)] if attention is not None else []
    passes = {"onnxscript": _with_onnxscript, "onnxruntime": _with_onnxruntime}
    while passes:
        name, base = chain[-1] if chain else ("", model)
        results: list[tuple[int, str, onnx.ModelProto]] = []
        for label, apply in passes.items():
            try:
                with hushed():
                    result = apply(base)
            except _LIBRARY_ERRORS as error:
                faults.append(f"{label}: {type(error).__name__} ({_first_line(error)})")
                continue
            results.append((sum(_count_fused(result).values()), label, result))
        n_fused, label, result = max(results, key=lambda entry: entry[0], default=(0, "", base))
        if n_fused <= sum(_count_fused(base).values()):
            break
        chain.append((f"{name} + {label}".removeprefix(" + "), result))
        del passes[label]
    return chain[::-1]


def _with_attention(model: onnx.ModelProto) -> onnx.ModelProto | None:
    graph = onnx_ir.from_proto(model)
    return onnx_ir.to_proto(graph) if fuse_attention(graph) else None


def _with_onnxscript(model: onnx.ModelProto) -> onnx.ModelProto:
    graph, _ = optimize_for_ort(onnx_ir.from_proto(model))
    ClearMetadataAndDocStringPass()(graph)
    return onnx_ir.to_proto(graph)


def _with_onnxruntime(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    options = FusionOptions("bert")  # its norm and GELU patterns serve every family
    options.enable_attention = False
    options.enable_embed_layer_norm = False  # it would hide the embedding tables from the quantisers
    fused: onnx.ModelProto = ort_optimizer.optimize_by_fusion(copy, "bert", optimization_options=options).model
    return fused


def _count_fused(model: onnx.ModelProto) -> Counter[str]:
    # standard Gelu (opset 20) was in the graph already
    return Counter(
        node.op_type
        for node in model.graph.node
        if node.op_type in FUSED_OPS and (node.domain or node.op_type != "Gelu")
    )


def _run(model: onnx.ModelProto, samples: Sequence[Feed], near: str | Path) -> list[list[NDArray[np.float32]]]:
    """Outputs for each sample, from a session over a temporary file on the disk of ``near``: it may be above 2 GB."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a candidate that fails is our finding, not the user's
    options.intra_op_num_threads = 1
    Path(near).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=Path(near).parent, prefix=".fuse-") as folder:
        file = Path(folder) / "candidate.onnx"
        save_onnx(model, file)
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return [session.run(names, {value.name: feed[value.name] for value in session.get_inputs()}) for feed in samples]


def _max_relative_difference(
    expected: list[list[NDArray[np.float32]]], actual: list[list[NDArray[np.float32]]], samples: Sequence[Feed]
) -> float:
    """Over all outputs and samples; outputs per token are compared on real tokens only."""
    worst = 0.0
    for reference, candidate, feed in zip(expected, actual, samples, strict=True):
        mask = feed["attention_mask"]
        length = feed["input_ids"].shape[1]
        for before, after in zip(reference, candidate, strict=True):
            if before.shape != after.shape:
                return float("inf")
            if before.ndim == 3:  # (B, T, V)
                before, after = before[mask[:, -length:] != 0], after[mask[:, -length:] != 0]
            elif before.ndim == 4:  # present (B, H_kv, P + T, d)
                before, after = before.swapaxes(1, 2)[mask != 0], after.swapaxes(1, 2)[mask != 0]
            difference = float(np.abs(before.astype(np.float64) - after).max())
            if not np.isfinite(difference):
                return float("inf")
            worst = max(worst, difference / max(float(np.abs(before).max()), _TINY))
    return worst


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
