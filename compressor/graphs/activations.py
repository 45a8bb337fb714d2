"""What enters the products of a graph on calibration inputs: Gram matrices, and numbers far beyond all others."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from compressor.errors import DataError
from compressor.graphs.files import save_onnx
from compressor.graphs.prepare import constant_products, prepare

WIDE = 8.0

Feed = Mapping[str, NDArray[np.generic]]


def collect_grams(path: str | Path, feeds: Iterable[Feed], *, include_lm_head: bool) -> dict[str, torch.Tensor]:
    """Sum of x x^T over all tokens of the feeds, (K, K) fp64, for the input x of every product; by node.

    Products that read the same input share one tensor.

    Args:
        path: the fp32 graph.
        feeds: calibration inputs without padding.
        include_lm_head: also for a head that shares the embedding's matrix.

    Raises:
        DataError: no feed.
    """
    sums: dict[str, torch.Tensor] = {}
    products, batches = _product_inputs(path, feeds, include_lm_head=include_lm_head)
    for inputs in batches:
        for name, value in inputs.items():
            tokens = torch.from_numpy(value.reshape(-1, value.shape[-1]))  # (n, K)
            gram = (tokens.T @ tokens).double()
            sums[name] = sums[name] + gram if name in sums else gram
    return {node: sums[source] for node, source in products.items()}


def wide_activations(
    path: str | Path, feeds: Iterable[Feed], *, include_lm_head: bool, limit: float = WIDE
) -> dict[str, float]:
    """Products whose input has a few numbers far beyond all others, and how far: largest over 99.9th percentile.

    One scale for a whole tensor must reach the largest number; at 8 bits, a factor of 8 leaves all others 5 bits.

    Raises:
        DataError: no feed.
    """
    widest: dict[str, float] = {}
    products, batches = _product_inputs(path, feeds, include_lm_head=include_lm_head)
    for inputs in batches:
        for name, value in inputs.items():
            magnitudes = np.abs(value).ravel()
            usual = float(np.quantile(magnitudes, 0.999))
            widest[name] = max(widest.get(name, 0.0), float(magnitudes.max()) / usual if usual > 0 else 0.0)
    return {node: widest[source] for node, source in products.items() if widest[source] > limit}


def _product_inputs(
    path: str | Path, feeds: Iterable[Feed], *, include_lm_head: bool
) -> tuple[dict[str, str], Iterator[dict[str, NDArray[np.floating]]]]:
    """Node -> name of its input; and for each feed the inputs by name."""
    model = prepare(path, include_lm_head=include_lm_head, exclude=())
    products = {node: source for node, (source, _) in constant_products(model.graph).items()}
    inputs = list(dict.fromkeys(products.values()))
    given = {value.name for value in model.graph.output}
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs if name not in given
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="inputs-") as folder:
        file = Path(folder) / "model.onnx"
        save_onnx(model, file)
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    rows = [{name: feed[name] for name in names} for feed in feeds]
    if not rows:
        raise DataError("no calibration feed", hint="give at least a few dozen texts of the training split")
    return products, (dict(zip(inputs, session.run(inputs, row), strict=True)) for row in rows)
