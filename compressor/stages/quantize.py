"""Quantisation of an ONNX graph: another file beside the one it was made from.

What the scheme promised is read back from the file. Conversions to fp16 must agree with the fp32 graph; schemes that
lose something are judged by goals, with KL and top-1 on calibration text on record.
"""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

from compressor.checkpoints.files import carry_files
from compressor.checkpoints.manifest import Variant
from compressor.checkpoints.store import Checkpoint
from compressor.errors import UnsupportedError
from compressor.graphs.facts import GraphFacts
from compressor.graphs.quantise import convert_fp16, quantise_dynamic, quantise_static, quantise_weights, store_bf16
from compressor.runtime.onnx_runner import open_onnx
from compressor.runtime.runners import n_cores
from compressor.schema.events import Progress
from compressor.spec.stages import Quantize, Scheme
from compressor.stages.context import SourceInput, StageContext
from compressor.stages.cost import measure_cost
from compressor.stages.feeds import calibration_feeds
from compressor.stages.parity import check_conversion
from compressor.stages.sealing import Made, seal_variant

GRAPHS: dict[Scheme, str] = {
    "fp16": "onnx/model_fp16.onnx",
    "bf16": "onnx/model_bf16.onnx",
    "w8a8-dynamic": "onnx/model_int8.onnx",
    "w8a8-static": "onnx/model_quantized.onnx",
    "w8": "onnx/model_w8.onnx",
    "w4": "onnx/model_q4.onnx",
}
"""File names as Optimum and Transformers.js look for them."""
EVERYWHERE = (
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
    "OpenVINOExecutionProvider",
)
PROVIDERS: dict[Scheme, tuple[str, ...]] = {
    "fp16": EVERYWHERE,
    "bf16": EVERYWHERE,
    "w8a8-dynamic": ("CPUExecutionProvider",),
    "w8a8-static": ("CPUExecutionProvider", "TensorrtExecutionProvider", "OpenVINOExecutionProvider"),
    "w8": ("CPUExecutionProvider", "CUDAExecutionProvider"),
    "w4": ("CPUExecutionProvider", "CUDAExecutionProvider"),
}
"""Execution providers with kernels for what a scheme writes."""
N_STEPS = 2
STATIC_ROWS = 128
"""Calibration rows that fix static ranges; percentile and entropy keep all their activations in memory."""


def quantize(config: Quantize, inputs: SourceInput, out_dir: Path, ctx: StageContext) -> Checkpoint:
    """Write `onnx/model_<scheme>.onnx` beside the source's files.

    Raises:
        UnsupportedError: a scheme that the provider cannot run or that has no such setting (both before any work), or
            a graph that is quantised already.
        UserError: a node in `exclude` that the graph does not have.
        StageError: nothing was quantised, or no embedding table that should have been.
        ParityError: fp16 moved the numbers too far, or a result is not finite.
    """
    source = inputs.source
    _check_provider(config.scheme, ctx.target.provider)
    _check_settings(config)
    graph = source.path / _fp32_variant(source).path
    path = out_dir / GRAPHS[config.scheme]
    with measure_cost(ctx.workdir, ctx.calibration) as meter:
        emit = meter.watching(ctx.emit)
        emit(Progress(config.id, "quantise", 0, N_STEPS))
        carry_files(source.path, out_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = _write(config, source, graph, path, ctx)
        emit(Progress(config.id, "quantise", 1, N_STEPS))
        threads = ctx.target.threads or n_cores()
        reference, candidate = (
            open_onnx(file, is_decoder=ctx.task.is_decoder, threads=threads, provider=ctx.target.provider, settings={})
            for file in (graph, path)
        )
        parity = check_conversion(reference, candidate, source, ctx, scheme=config.scheme)
        emit(Progress(config.id, "quantise", N_STEPS, N_STEPS))
    variant = Variant(
        id=f"onnx-{config.scheme}",
        path=GRAPHS[config.scheme],
        runtime="onnxruntime",
        scheme=config.scheme,
        stage=config.id,
        parameters=facts.n_parameters,
        size_bytes=facts.size_bytes,
        facts={
            "opset": facts.opset,
            "ir_version": facts.ir_version,
            "dtype_bytes": facts.dtype_bytes,
            "quantised_operators": facts.quantised_op_counts,
        },
    )
    return seal_variant(
        source,
        out_dir,
        variant,
        made=Made(
            stage=config.id,
            kind=config.stage,
            config=config.model_dump(mode="json", by_alias=True),
            inputs={"source": source.digest},
            splits=("calibration",),
            realised={
                "parameters": facts.n_parameters,
                "operators": facts.op_counts,
                "parity": {"against": "onnx-fp32", **parity},
            },
        ),
        ctx=ctx,
        cost=meter.cost,
    )


def _write(config: Quantize, source: Checkpoint, graph: Path, path: Path, ctx: StageContext) -> GraphFacts:
    match config.scheme:
        case "fp16":
            return convert_fp16(graph, path)
        case "bf16":
            return store_bf16(graph, path)
        case "w8a8-dynamic":
            return quantise_dynamic(
                graph,
                path,
                per_channel=config.per_channel,
                reduce_range=config.arithmetic == "u8s8-reduced",
                include_lm_head=config.lm_head,
                include_embeddings=config.embeddings,
                exclude=config.exclude,
            )
        case "w8" | "w4":
            return quantise_weights(
                graph,
                path,
                bits=8 if config.scheme == "w8" else 4,
                include_lm_head=config.lm_head,
                include_embeddings=config.embeddings,
                exclude=config.exclude,
            )
        case "w8a8-static":
            runner = open_onnx(
                graph, is_decoder=ctx.task.is_decoder, threads=n_cores(), provider="CPUExecutionProvider", settings={}
            )
            return quantise_static(
                graph,
                path,
                feeds=calibration_feeds(runner, source, ctx, STATIC_ROWS),
                method=config.calibration_method,
                per_channel=config.per_channel,
                include_lm_head=config.lm_head,
                include_embeddings=config.embeddings,
                exclude=config.exclude,
            )
        case _:
            assert_never(config.scheme)


def _check_provider(scheme: Scheme, provider: str) -> None:
    if provider not in PROVIDERS[scheme]:
        able = [name for name, providers in PROVIDERS.items() if provider in providers]
        raise UnsupportedError(
            f"{provider} has no kernels for {scheme}",
            where="target.provider",
            hint=f"it runs: {', '.join(able)}" if able else "use CPUExecutionProvider",
        )


def _check_settings(config: Quantize) -> None:
    """A setting that does nothing would be believed."""
    set_for_nothing = {"embeddings": config.embeddings, "lm_head": not config.lm_head, "exclude": bool(config.exclude)}
    names = [name for name, is_set in set_for_nothing.items() if is_set]
    if config.scheme in ("fp16", "bf16") and names:
        raise UnsupportedError(
            f"{config.scheme} converts the entire model and takes no {', '.join(names)}",
            where=f"stages.{config.id}",
            hint="remove it, or choose another scheme",
        )


def _fp32_variant(source: Checkpoint) -> Variant:
    """The graph to quantise: the one that the source's own stage made."""
    own = [variant for variant in source.content.variants if variant.stage == source.record.stage]
    if len(own) != 1 or own[0].runtime != "onnxruntime" or own[0].scheme != "fp32":
        schemes = ", ".join(variant.scheme for variant in own) or "nothing"
        raise UnsupportedError(
            f"{source.record.stage!r} left {schemes}, and only an fp32 ONNX graph can be quantised",
            hint="start from the export: from: <id of an export stage>",
        )
    return own[0]
