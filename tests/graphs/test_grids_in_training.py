"""What training rounds to under a scheme is what the scheme's file holds: the same grid, found by other code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from graph_families import Exported
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx_runs import Arrays, empty_past, texts, torch_logits
from torch import nn

from compressor.graphs.quantise import quantise_dynamic, quantise_static, quantise_weights
from compressor.training.quantisation_aware import Scheme, fake_quantised, input_limits

Get = Callable[[str], Exported]
Floats = NDArray[np.floating]
INPUTS = {
    "bert": ("input_ids", "attention_mask", "token_type_ids"),
    "gpt2": ("input_ids", "attention_mask", "position_ids"),
}
N_PRODUCTS = {"bert": 2 * 6 + 2, "gpt2": 2 * 4 + 1}


def feeds_of(one: Exported, name: str) -> list[Arrays]:
    """Texts without padding, and for a decoder an empty past."""
    found = []
    for seed, length in enumerate((9, 21)):
        feed = {**texts(1, length, seed=seed), "position_ids": np.arange(length)[None]}
        found.append({**feed, **empty_past(one.path, 1)} if name == "gpt2" else feed)
    return found


def write(scheme: Scheme, source: Path, out: Path, feeds: list[Arrays]) -> None:
    match scheme:
        case "w8a8-dynamic":
            quantise_dynamic(source, out)
        case "w8a8-static":
            quantise_static(source, out, feeds=feeds)
        case "w8" | "w4":
            quantise_weights(source, out, bits=8 if scheme == "w8" else 4)


def stored_weights(path: Path) -> list[Floats]:
    """Every quantised matrix of a file as its kernels read it, (K, N)."""
    graph = onnx.load(str(path)).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            about = {each.name: helper.get_attribute_value(each) for each in node.attribute}
            codes, scales = stored[node.input[1]], stored[node.input[2]].reshape(about["N"], -1, 1)  # (N, blocks, 1)
            if about["bits"] == 4:
                codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
            values = (codes.astype(np.float32) - 2 ** (about["bits"] - 1)) * scales
            found.append(values.reshape(about["N"], -1)[:, : about["K"]].T)
        elif node.op_type == "MatMulInteger":
            scale = stored[node.input[1].replace("_quantized", "_scale")]
            found.append(stored[node.input[1]].astype(np.float32) * scale)
        elif node.op_type == "DequantizeLinear" and node.input[0] in stored:
            found.append(stored[node.input[0]].astype(np.float32) * stored[node.input[1]])
    return found


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.parametrize("scheme", ["w8a8-dynamic", "w8a8-static", "w8", "w4"])
def test_training_rounds_every_weight_as_the_file_does(
    exported: Get, name: str, scheme: Scheme, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, out = exported(name), tmp_path / "model.onnx"
    feeds = feeds_of(one, name)
    write(scheme, one.path, out, feeds)
    ids = [{key: torch.from_numpy(feed[key]) for key in INPUTS[name][:2]} for feed in feeds]
    limits = input_limits(one.model, ids)
    assert len(limits) == N_PRODUCTS[name]

    multiplied: list[Floats] = []
    linear = nn.functional.linear

    def watched(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        multiplied.append(weight.T.numpy())
        return linear(inputs, weight, bias)

    plain = torch_logits(one.model, feeds[0], *INPUTS[name])
    with fake_quantised(one.model, scheme, limits), monkeypatch.context() as patched:
        patched.setattr(nn.functional, "linear", watched)
        rounded = torch_logits(one.model, feeds[0], *INPUTS[name])
    assert not np.array_equal(rounded, plain)
    np.testing.assert_array_equal(torch_logits(one.model, feeds[0], *INPUTS[name]), plain)  # nothing stays behind

    stored = stored_weights(out)
    assert len(stored) == len(multiplied) == N_PRODUCTS[name]
    for weight in multiplied:
        same = [np.isclose(weight, other, rtol=1e-5).mean() for other in stored if other.shape == weight.shape]
        assert max(same) > 0.999  # all but numbers half-way between two steps, which a last bit decides
    if scheme == "w8a8-static":
        graph = onnx.load(str(out)).graph
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        scales = [values[node.input[1]] for node in graph.node if node.op_type == "QuantizeLinear"]
        for low, high in limits.values():
            assert min(abs((high - low) / 255 / scale - 1) for scale in scales) < 1e-4
