"""Which file each other runtime looks for. One table, read by `compressor layout` and by the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from compressor.checkpoints.manifest import Content, Variant
from compressor.errors import CheckpointError, UnsupportedError
from compressor.methods.structure import Structure
from compressor.runtime.choose import choose_variant
from compressor.spec.tasks import TASKS

DoorName = Literal["tei", "transformersjs", "fastembed", "triton", "sentence-transformers", "openvino"]
DOOR_NAMES: tuple[DoorName, ...] = get_args(DoorName)

_JS = {"fp32": "", "fp16": "_fp16", "w8a8-dynamic": "_int8", "w8a8-static": "_quantized", "w4": "_q4"}
"""Endings of Transformers.js; it has none for the other schemes."""
_JS_DTYPES = {"": "fp32", "_fp16": "fp16", "_int8": "int8", "_quantized": "q8", "_q4": "q4"}


@dataclass(frozen=True)
class Door:
    """One runtime and what it looks for.

    Attributes:
        name: the word after `--for`.
        title: its own name.
        decoders: whether it generates from our graph.
        graph: where it looks for the one graph that it opens; None where it takes several.
    """

    name: DoorName
    title: str
    decoders: bool
    graph: str | None


DOORS: dict[DoorName, Door] = {
    "tei": Door("tei", "Text Embeddings Inference", decoders=False, graph="model.onnx"),
    "transformersjs": Door("transformersjs", "Transformers.js", decoders=True, graph=None),
    "fastembed": Door("fastembed", "fastembed", decoders=False, graph="onnx/model.onnx"),
    "triton": Door("triton", "Triton Inference Server", decoders=True, graph="1/model.onnx"),
    "sentence-transformers": Door("sentence-transformers", "sentence-transformers", decoders=False, graph=None),
    "openvino": Door("openvino", "OpenVINO", decoders=True, graph="model.onnx"),
}


def graphs_for(door: DoorName, content: Content, *, where: str, precision: str | None = None) -> dict[str, Variant]:
    """Where each graph goes: path below the laid-out folder -> variant.

    Args:
        door: who shall open it.
        content: of the checkpoint's manifest.
        where: folder or repository, for the errors.
        precision: as `compressor.load` takes it. A door of one graph gets that, one of several only that.

    Raises:
        UnsupportedError: a decoder for a door that serves encoders, one whose cache the door cannot build, or a scheme
            that it has no name for.
        CheckpointError: no such ONNX graph.
    """
    one = DOORS[door]
    if TASKS[content.task].is_decoder and not one.decoders:  # type: ignore[index]
        raise UnsupportedError(
            f"{one.title} serves encoders, and this is a {content.task} model",
            where=where,
            hint="use transformersjs, triton or openvino",
        )
    if door == "transformersjs" and TASKS[content.task].is_decoder:  # type: ignore[index]
        _check_even_cache(content, one, where)
    if not any(variant.runtime == "onnxruntime" for variant in content.variants):
        raise CheckpointError(
            "there is no ONNX graph here to lay out", where=where, hint="add an export stage to the pipeline"
        )
    chosen = choose_variant(content, where=where, precision=precision, runtime="onnxruntime")
    if one.graph is not None:
        return {one.graph: chosen}
    graphs = [chosen] if precision else [variant for variant in content.variants if variant.runtime == "onnxruntime"]
    named = _js_names(graphs) if door == "transformersjs" else _sentence_names(graphs)
    if not named:
        raise UnsupportedError(
            f"{one.title} has no file name for {', '.join(variant.scheme for variant in graphs)}",
            where=where,
            hint="lay out another precision",
        )
    return named


def _check_even_cache(content: Content, door: Door, where: str) -> None:
    """It makes the empty cache of a first call from the config, which has one number of heads for all layers."""
    if content.structure is None:
        return
    heads = {layer.n_kv_heads for layer in Structure.from_json(content.structure).layers}
    if len(heads) > 1:
        counts = ", ".join(map(str, sorted(heads)))
        raise UnsupportedError(
            f"{door.title} takes as many key/value heads in every layer, and here layers keep {counts}",
            where=where,
            hint="prune with `layout: uniform`, or heads alike and neurons freely; or use triton or openvino",
        )


def js_dtype(path: str) -> str:
    """What Transformers.js calls the precision of a file that `graphs_for` named."""
    return _JS_DTYPES[path.removeprefix("onnx/model").removesuffix(".onnx")]


def _js_names(graphs: list[Variant]) -> dict[str, Variant]:
    named = {f"onnx/model{_JS[one.scheme]}.onnx": one for one in graphs if one.scheme in _JS}
    dynamic = named.get("onnx/model_int8.onnx")
    if dynamic is not None:
        named.setdefault("onnx/model_quantized.onnx", dynamic)  # q8, the choice of browsers
    return named


def _sentence_names(graphs: list[Variant]) -> dict[str, Variant]:
    """`onnx/model.onnx` opens by default; the others by `model_kwargs={"file_name": ...}`."""
    return {one.path: one for one in graphs}
