"""torch -> ONNX: encoders of every head, decoders with their key/value cache.

One exporter (``torch.onnx.export(dynamo=True)``), our own tensor names. Inputs and outputs are passed by name: a
tokenizer returns ``token_type_ids`` in another place than ``forward`` takes it, and a graph that mixes them up loads,
runs and is wrong. Shapes are read from the module as it stands, so pruned layers need nothing special.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch
from onnx import helper, numpy_helper
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn
from torch.export import Dim
from transformers import DynamicCache

from compressor.errors import UnsupportedError
from compressor.graphs.culprit import find_culprit
from compressor.graphs.files import file_bytes, hushed, save_onnx

OPSET = 20  # the newest that the runtimes of 2025 (ONNX Runtime 1.22) read
MAX_IR_VERSION = 10

ENCODER_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

# one symbol for all tensors that share a dimension: with names alone the exporter compares them at run time, per layer
_BATCH, _SEQUENCE, _PAST = Dim("batch_size"), Dim("sequence_length"), Dim("past_sequence_length", min=0)
_TOTAL = "total_sequence_length"  # past + new; the exporter takes no sum of two symbols and names it itself


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        path: the ONNX file.
        input_names: in the order of the graph.
        output_names: in the order of the graph.
        size_bytes: of the file and its external data.
    """

    path: Path
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    size_bytes: int


class _Encoder(nn.Module):
    """Plain tensors in by name, the named outputs out."""

    def __init__(self, model: nn.Module, output_names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.output_names = tuple(output_names)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        outputs = self.model(**inputs)
        return tuple(getattr(outputs, name) for name in self.output_names)


class _Decoder(nn.Module):
    """Flat past tensors in, logits and flat present tensors out; the cache object lives only inside."""

    def __init__(self, model: nn.Module, layers: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.layers = tuple(layers)

    def forward(
        self,
        input_ids: Tensor,  # (B, T)
        attention_mask: Tensor,  # (B, P + T)
        past: list[tuple[Tensor, Tensor]],  # per layer (B, H_kv, P, d)
        position_ids: Tensor | None = None,  # (B, T)
    ) -> tuple[Tensor, ...]:
        cache = DynamicCache()
        for layer, (key, value) in zip(self.layers, past, strict=True):
            cache.update(key, value, layer)
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if position_ids is not None:
            inputs["position_ids"] = position_ids
        outputs = self.model(**inputs, past_key_values=cache, use_cache=True)
        present = outputs.past_key_values
        flat = [tensor for i in self.layers for tensor in (present.layers[i].keys, present.layers[i].values)]
        return (outputs.logits, *flat)


def export_encoder(model: nn.Module, path: str | Path, *, output_names: Sequence[str] = ("logits",)) -> ExportResult:
    """Write an encoder with any head as ONNX with dynamic batch and sequence.

    Inputs are those of ``input_ids``, ``attention_mask``, ``token_type_ids`` (int64, (B, T)) that the model uses;
    ``position_ids`` is never exposed, since RoBERTa counts from its padding id and a server would feed 0, 1, 2.

    Args:
        model: a transformers encoder, dense or pruned, whose output has the attributes ``output_names``.
        path: the file to write.
        output_names: names of the outputs, such as ``logits``, ``last_hidden_state`` or ``start_logits, end_logits``.

    Raises:
        UnsupportedError: an output that the model does not have, or an operator that cannot be exported.
    """
    names = _encoder_input_names(model)
    with _ready_to_export(model) as module:
        wrapper = _Encoder(module, output_names)
        ids = torch.arange(14).reshape(2, 7) % _vocab_size(model)  # (2, 7)
        inputs = {name: torch.zeros_like(ids) for name in names}
        inputs["input_ids"] = ids
        inputs["attention_mask"] = torch.ones_like(ids)
        inputs["attention_mask"][1, 5:] = 0
        with torch.no_grad():
            outputs = module(**inputs)
        missing = [name for name in output_names if not isinstance(getattr(outputs, name, None), Tensor)]
        if missing:
            have = ", ".join(key for key, value in outputs.items() if isinstance(value, Tensor))
            raise UnsupportedError(
                f"{type(model).__name__} has no output {', '.join(missing)}; it has {have}",
                hint="choose the output_names of this head",
            )
        axes: dict[int, Any] = {0: _BATCH, 1: _SEQUENCE}
        graph = _export(
            wrapper,
            args=tuple(inputs[name] for name in names),
            dynamic_shapes=[axes for _ in names],
            input_names=names,
            output_names=list(output_names),
            what=type(model).__name__,
        )
    return _save(graph, path)


def export_decoder(model: nn.Module, path: str | Path) -> ExportResult:
    """Write a causal language model with its key/value cache as one ONNX file for prefill and decode.

    Names are those of Optimum's ``ORTModelForCausalLM`` and of Transformers.js: ``input_ids, attention_mask,
    position_ids`` (where the model takes them), ``past_key_values.{i}.key`` and ``.value`` (B, H_kv, P, d) ->
    ``logits`` (B, T, V), ``present.{i}.key`` and ``.value`` (B, H_kv, P + T, d). P may be 0. The number of key/value
    heads may differ from layer to layer; it is read from a run of the model. Sliding-window layers get the full cache
    and mask it.

    Raises:
        UnsupportedError: a cache other than one of keys and values (convolution or recurrent states), or an operator
            that cannot be exported.
    """
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    with _ready_to_export(model) as module:
        layers, shapes = _cache_shapes(module)
        past = [(torch.randn(2, heads, 3, size), torch.randn(2, heads, 3, size)) for heads, size in shapes]
        ids = torch.arange(8).reshape(2, 4) % _vocab_size(model)
        mask = torch.ones(2, 7, dtype=torch.long)
        mask[1, :2] = 0
        past_axes = {0: _BATCH, 2: _PAST}
        args: tuple[Any, ...] = (ids, mask, past)
        shapes_spec: list[Any] = [
            {0: _BATCH, 1: _SEQUENCE},
            {0: _BATCH, 1: Dim.DYNAMIC},
            [(past_axes, past_axes)] * len(past),
        ]
        past_names = [f"past_key_values.{i}.{part}" for i in layers for part in ("key", "value")]
        names = ["input_ids", "attention_mask", *past_names]
        if takes_positions:
            args = (*args, torch.arange(3, 7).repeat(2, 1))
            shapes_spec.append({0: _BATCH, 1: _SEQUENCE})
            names.append("position_ids")
        present_names = [f"present.{i}.{part}" for i in layers for part in ("key", "value")]
        graph = _export(
            _Decoder(module, layers),
            args=args,
            dynamic_shapes=shapes_spec,
            input_names=names,
            output_names=["logits", *present_names],
            what=type(model).__name__,
        )
    graph.graph.input[1].type.tensor_type.shape.dim[1].dim_param = _TOTAL
    return _save(graph, path)


def _encoder_input_names(model: nn.Module) -> list[str]:
    taken = inspect.signature(model.forward).parameters
    names = [name for name in ENCODER_INPUTS if name in taken]
    if "input_ids" not in names or "attention_mask" not in names:
        raise UnsupportedError(
            f"{type(model).__name__}.forward takes {', '.join(taken)}; it must take input_ids and attention_mask"
        )
    # one token type (RoBERTa) or none (DeBERTa-v3) carries nothing, and their tokenizers return none
    if "token_type_ids" in names and getattr(getattr(model, "config", None), "type_vocab_size", 0) < 2:
        names.remove("token_type_ids")
    return names


def _cache_shapes(model: nn.Module) -> tuple[list[int], list[tuple[int, int]]]:
    """The layers that cache keys and values, and (n_kv_heads, head size) of each."""
    ids = torch.zeros(1, 2, dtype=torch.long)
    with torch.no_grad():
        cache = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True).past_key_values
    layers, shapes = [], []
    for index, layer in enumerate(getattr(cache, "layers", ())):
        if type(layer).__name__ not in ("DynamicLayer", "DynamicSlidingWindowLayer"):
            raise UnsupportedError(
                f"{type(model).__name__} keeps a {type(layer).__name__} in layer {index} of its cache; only caches of "
                "keys and values can be exported",
                hint="hybrid models (convolution or recurrent states) are not supported",
            )
        if layer.keys is None or layer.values is None:
            continue
        if layer.keys.shape != layer.values.shape:
            raise UnsupportedError(f"{type(model).__name__}: keys and values of layer {index} differ in shape")
        layers.append(index)
        shapes.append((layer.keys.shape[1], layer.keys.shape[3]))
    if not layers or layers[0] != 0:
        raise UnsupportedError(
            f"{type(model).__name__} has no key/value cache in its first layer; transformers counts past tokens there",
            hint="keep the attention of layer 0",
        )
    return layers, shapes


@contextlib.contextmanager
def _ready_to_export(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode on the CPU in fp32, and back as it was afterwards."""
    parameter = next(model.parameters())
    if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
        raise UnsupportedError(
            f"the model is {parameter.dtype} on {parameter.device}; export takes fp32 on the CPU",
            hint="export in fp32 and convert the graph with the fp16 scheme",
        )
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)


def _vocab_size(model: nn.Module) -> int:
    return int(getattr(getattr(model, "config", None), "vocab_size", 0) or 1)


def _export(
    wrapper: nn.Module,
    *,
    args: tuple[Any, ...],
    dynamic_shapes: Any,
    input_names: list[str],
    output_names: list[str],
    what: str,
) -> onnx.ModelProto:
    try:
        with hushed(), torch.no_grad():
            program = torch.onnx.export(
                wrapper,
                args,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dynamic_shapes,
                input_names=input_names,
                output_names=output_names,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UnsupportedError(
            f"{what} cannot be exported: {_cause(error)}{find_culprit(wrapper, args, dynamic_shapes, str(error))}",
            hint="write this module in standard tensor operators, without branches on values",
        ) from error
    assert program is not None
    program.model.ir_version = min(program.model.ir_version, MAX_IR_VERSION)
    ClearMetadataAndDocStringPass()(program.model)  # stack traces, with paths of the machine that exported
    graph = onnx_ir.to_proto(program.model)
    _tie_transposed(graph.graph)
    return graph


def _tie_transposed(graph: onnx.GraphProto) -> None:
    """Store an embedding and the head that is its transpose once: the exporter folds small ones into two matrices."""
    tables = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    matrices = [tensor for tensor in graph.initializer if len(tensor.dims) == 2]
    for table in [tensor for tensor in matrices if tensor.name in tables]:
        values = numpy_helper.to_array(table).T
        for copy in [tensor for tensor in matrices if list(tensor.dims) == list(values.shape)]:
            if copy.name not in tables and np.array_equal(numpy_helper.to_array(copy), values):
                graph.node.insert(0, helper.make_node("Transpose", [table.name], [copy.name], perm=[1, 0]))
                graph.initializer.remove(copy)
                matrices.remove(copy)


def _cause(error: BaseException) -> str:
    """The innermost reason of an exporter's error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])}"[:600]


def _save(graph: onnx.ModelProto, path: str | Path) -> ExportResult:
    save_onnx(graph, path)
    return ExportResult(
        path=Path(path),
        input_names=tuple(value.name for value in graph.graph.input),
        output_names=tuple(value.name for value in graph.graph.output),
        size_bytes=file_bytes(path),
    )
