"""The graphs behind a cost table: made by the export, fusion and quantisation that real models go through.

A stack is a stock model of a few layers and a tiny vocabulary whose layers hold one kind of sublayer alone. It keeps
the norms and residual sums of the real graph, and what it has besides (the frame) is timed on its own and taken off.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from transformers import PreTrainedModel

from compressor.checkpoints.files import digest_json
from compressor.errors import StageError
from compressor.graphs.export import export_decoder, export_encoder
from compressor.graphs.files import load_onnx, save_onnx
from compressor.graphs.fuse import fuse
from compressor.graphs.places import products_of_sublayers
from compressor.graphs.quantise import quantise_dynamic
from compressor.measurement.cost_table import EMPTY, FRAME, Precision
from compressor.methods.structure import ATTENTION, FFN, KINDS, LayerStructure, Structure, full_layer
from compressor.methods.surgery import adapter_for, apply_structure, head_dim_of, layers_of, read_structure

Sizes = tuple[tuple[int, int, int], ...]
"""Query heads, key/value heads and neurons of each layer."""
STACK_VOCAB = 64
SWEEP_ROWS = 1024


@dataclass(frozen=True)
class Whole:
    """A whole model to time.

    Attributes:
        sizes: of its layers; None for the dense model.
        precision: of its products.
        wide: sublayers that stay in fp32 where the others do not, as (layer, kind).
    """

    sizes: Sizes | None = None
    precision: Precision = "fp32"
    wide: frozenset[tuple[int, str]] = frozenset()

    @property
    def name(self) -> str:
        """Of its graph."""
        if self.sizes is None:
            return f"dense-{self.precision}"
        left = f"-{digest_json(sorted(self.wide))[:12]}" if self.wide else ""
        return f"whole-{digest_json([list(layer) for layer in self.sizes])[:12]}-{self.precision}{left}"

    def precision_of(self, layer: int, kind: str) -> Precision:
        """Of one sublayer."""
        return "fp32" if (layer, kind) in self.wide else self.precision


def model_shape(model: PreTrainedModel) -> dict[str, Any]:
    """What a table's rows depend on, of a model: equal shapes share a table."""
    structure, adapter = read_structure(model), adapter_for(model)
    config = model.config
    whole = [number for number, layer in enumerate(structure.layers) if layer.n_heads]
    return {
        "model_type": str(config.model_type),
        "class": type(model).__name__,
        "n_layers": len(structure.layers),
        "hidden_size": int(config.hidden_size),
        "head_dim": head_dim_of(layers_of(model)[whole[0]], adapter) if whole else 0,
        "max_heads": max(layer.n_heads for layer in structure.layers),
        "max_kv_heads": max(layer.n_kv_heads for layer in structure.layers),
        "max_ffn_width": max(layer.ffn_width for layer in structure.layers),
        "vocab_size": int(config.vocab_size),
        "activation": str(
            next((getattr(config, key) for key in ("hidden_act", "activation_function") if hasattr(config, key)), "")
        ),
    }


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of fp32 weights that a call reads whole: not those of embeddings, unless the head is tied to them."""
    table = model.get_input_embeddings()
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers' own
    assert isinstance(table.weight, Tensor)
    is_tied = head is not None and head.weight is table.weight
    total = sum(parameter.numel() for parameter in model.parameters())
    return 4 * (total if is_tied else total - int(table.weight.numel()))


def make_stack(model: PreTrainedModel, kind: str, size: int, n_layers: int) -> PreTrainedModel:
    """A model of the same class with `n_layers` layers that hold one kind of sublayer; random weights.

    Args:
        model: whose config is taken.
        kind: `attention`, `ffn`, or `frame` for neither.
        size: query heads or FFN neurons.
    """
    adapter = adapter_for(model)
    config = copy.deepcopy(model.config)
    for key in adapter.per_layer_keys:
        values = getattr(config, key, None)
        if values is not None:
            setattr(config, key, list(values[:n_layers]))
    setattr(config, adapter.depth_key, n_layers)
    config.vocab_size = STACK_VOCAB
    for key in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id"):
        if getattr(config, key, None) is not None:
            setattr(config, key, 0)
    stack: PreTrainedModel = type(model)(config).eval()  # type: ignore[no-untyped-call]
    full = read_structure(stack)
    layer = _only(full.layers[0], kind, size)
    return apply_structure(stack, Structure(full.layers_kept, (layer,) * n_layers))


def _only(full: LayerStructure, kind: str, size: int) -> LayerStructure:
    if kind == ATTENTION:
        return full_layer(size, size * full.n_kv_heads // full.n_heads, 0)
    return full_layer(0, 0, size if kind == FFN else 0)


def without_sublayers(model: PreTrainedModel) -> PreTrainedModel:
    """The whole model with every sublayer gone: embeddings, norms that stay, head."""
    return sliced(model, [(0, 0, 0)] * len(layers_of(model)))


def sliced(model: PreTrainedModel, sizes: Sequence[tuple[int, int, int]]) -> PreTrainedModel:
    """A copy cut to (query heads, key/value heads, neurons) per layer; which units stay does not matter to a cost."""
    small = copy.deepcopy(model)
    kept = read_structure(small).layers_kept
    return apply_structure(small, Structure(kept, tuple(full_layer(*layer) for layer in sizes)))


def write_graph(
    model: PreTrainedModel,
    path: Path,
    *,
    is_decoder: bool,
    outputs: Sequence[str],
    precision: Precision = "fp32",
    quantisation: Mapping[str, Any] | None = None,
    wide: Collection[tuple[int, str]] = (),
    sweep_bytes: int = 0,
) -> None:
    """Export, fuse and (for INT8) quantise, as the stages do.

    Args:
        outputs: the outputs that an encoder is used for.
        quantisation: arguments of `quantise_dynamic`.
        wide: sublayers to leave in fp32, as (layer, kind).
        sweep_bytes: further weights that every call reads.
    """
    if is_decoder:
        export_decoder(model, path)
    else:
        export_encoder(model, path, output_names=tuple(outputs))
    fuse(path, path)
    if precision == "int8":
        whole = path.with_suffix(".fp32.onnx")
        shutil.move(path, whole)
        present = {
            (number, kind)
            for number, layer in enumerate(read_structure(model).layers)
            for kind in KINDS
            if kind not in layer.skip
        }
        try:
            quantise_dynamic(
                whole, path, exclude=products_of_sublayers(whole, model, present & set(wide)), **(quantisation or {})
            )
        except StageError:
            if present - set(wide):
                raise
            shutil.move(whole, path)  # an encoder without sublayers has no product left to quantise
        whole.unlink(missing_ok=True)
    if sweep_bytes:
        _add_sweep(path, sweep_bytes)


def _add_sweep(path: Path, n_bytes: int) -> None:
    """Add a product with a matrix of this size: every call reads it once, which pushes all else out of the caches."""
    model = load_onnx(path)
    width = SWEEP_ROWS
    matrix = np.zeros((width, max(1, n_bytes // 4 // width)), np.float32)
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(matrix, "sweep.weight"),
            numpy_helper.from_array(np.array([1, width], np.int64), "sweep.shape"),
        ]
    )
    steps = [
        helper.make_node("Cast", ["input_ids"], ["sweep.ids"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["sweep.ids"], ["sweep.one"], keepdims=1),
        helper.make_node("Expand", ["sweep.one", "sweep.shape"], ["sweep.row"]),
        helper.make_node("MatMul", ["sweep.row", "sweep.weight"], ["sweep.product"]),
        helper.make_node("ReduceMax", ["sweep.product"], ["sweep"], keepdims=0),
    ]
    model.graph.node.extend(steps)
    model.graph.output.append(helper.make_tensor_value_info("sweep", TensorProto.FLOAT, []))
    save_onnx(model, path)


def graph_for(model: PreTrainedModel, kind: str, size: int, n_sublayers: int) -> PreTrainedModel:
    """The module that a row of a table times."""
    if kind == EMPTY:
        return without_sublayers(model)
    return make_stack(model, kind if kind != FRAME else "frame", size, n_sublayers)
