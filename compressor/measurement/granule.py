"""The granule of a device: the step of FFN widths below which its kernels charge for what is not there.

Measured once for a device and its settings: two products around a GELU, a little wider than a multiple of 64 each time,
held against the line between that multiple and the next. On AVX2 misaligned widths cost 10 to 18 %.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compressor.checkpoints.files import digest_json, write_whole
from compressor.graphs.files import save_onnx
from compressor.measurement.cost_table import CallShape
from compressor.measurement.device import Device
from compressor.measurement.graph_rounds import Clock, Graph, opened, run_rounds

COARSE = 64
STEPS = (8, 16, 32)
"""Granules that are tried, the finest first; `COARSE` where each of them costs extra."""
ALLOWED = 0.03
"""How far above the line a width may be."""
BASE, HIDDEN, TOKENS, OPSET = 512, 384, 64, 20
ROUNDS, WINDOW_S = 8, 0.1


def device_granule(device: Device, folder: Path, *, rounds: int = ROUNDS, window_s: float = WINDOW_S) -> int:
    """The granule of this device, measured now or read from the folder, where it is kept.

    Args:
        device: how the machine is used.
        folder: of cost tables.
        rounds, window_s: of the measurement.
    """
    path = folder / f"granule-{digest_json(asdict(device))[:16]}.json"
    if path.exists():
        return int(json.loads(path.read_text(encoding="utf-8"))["granule"])
    costs = _measure(device, rounds, window_s)
    granule = granule_of(costs)
    folder.mkdir(parents=True, exist_ok=True)
    read = {str(width): cost for width, cost in costs.items()}
    record = {"device": asdict(device), "granule": granule, "relative_cpu_s": read}
    write_whole(path, json.dumps(record, indent=1) + "\n")
    return granule


def granule_of(costs: dict[int, float]) -> int:
    """The finest step whose width lies on the line between the multiples of 64 around it.

    Args:
        costs: width -> cost, for `BASE`, `BASE` + each of `STEPS`, and `BASE` + 64.
    """
    low, high = costs[BASE], costs[BASE + COARSE]
    for step in STEPS:
        on_line = low + (high - low) * step / COARSE
        if costs[BASE + step] <= on_line * (1 + ALLOWED):
            return step
    return COARSE


def _measure(device: Device, rounds: int, window_s: float) -> dict[int, float]:
    """CPU-seconds of a call for each width, in rounds over all of them."""
    widths = [BASE, *(BASE + step for step in STEPS), BASE + COARSE]
    call = CallShape("forward", 1, TOKENS, 0, float(TOKENS), 1.0)
    with tempfile.TemporaryDirectory(prefix="granule-") as name:
        graphs = []
        for width in widths:
            path = Path(name) / f"{width}.onnx"
            save_onnx(_two_products(width), path)
            graphs.append(Graph(str(width), path, 2))
        with opened(graphs, Clock(device, window_s), Path(name), one_process=True) as crew:
            found = run_rounds(crew, [call], rounds, seed=0)
    logs = np.log([[turns[str(width)][call.key].cpu_s for width in widths] for turns in found])  # (rounds, widths)
    steady = logs - logs.mean(axis=1, keepdims=True)  # what a round has in common is the machine's
    return {width: float(cost) for width, cost in zip(widths, np.exp(np.median(steady, axis=0)), strict=True)}


def _two_products(width: int) -> onnx.ModelProto:
    """(B, T) ids -> (B, T, H) -> width -> (B, T, H), as in a feed-forward sublayer."""
    rng = np.random.default_rng(0)
    weights = {
        "spread": rng.standard_normal((1, 1, HIDDEN)),
        "up": rng.standard_normal((HIDDEN, width)),
        "down": rng.standard_normal((width, HIDDEN)),
    }
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    tensors.append(numpy_helper.from_array(np.array([2], np.int64), "last"))
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["floats", "last"], ["column"]),
        helper.make_node("Mul", ["column", "spread"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "up"], ["wide"]),
        helper.make_node("Gelu", ["wide"], ["active"]),
        helper.make_node("MatMul", ["active", "down"], ["out"]),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", "tokens", HIDDEN])
    graph = helper.make_graph(nodes, "ffn", [ids], [out], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
