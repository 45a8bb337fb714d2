"""Export: the torch model as one ONNX file, fused, and held against the model it came from.

Exports that are made only to measure a torch stage in ONNX Runtime go through this same function.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedModel

from compressor.checkpoints.files import carry_files
from compressor.checkpoints.manifest import Variant
from compressor.checkpoints.store import Checkpoint
from compressor.graphs.export import export_decoder, export_encoder
from compressor.graphs.facts import inspect_onnx
from compressor.graphs.fuse import FusionReport, fuse
from compressor.graphs.unpadded import add_unpadded_path
from compressor.methods.smoothquant import check_smoothable, collect_channel_max
from compressor.methods.smoothquant import smooth as fold_scales
from compressor.runtime.onnx_runner import open_onnx
from compressor.runtime.runners import n_cores, open_torch
from compressor.runtime.torch_models import load_module, quiet_transformers, with_head
from compressor.schema.events import Note, Progress
from compressor.spec.stages import Export, Smooth
from compressor.stages.context import SourceInput, StageContext
from compressor.stages.cost import measure_cost
from compressor.stages.parity import check_conversion
from compressor.stages.rows import calibration_batches
from compressor.stages.sealing import made_by, seal_variant

VARIANT = "onnx-fp32"
GRAPH = "onnx/model.onnx"
N_STEPS = 3


def export(config: Export, inputs: SourceInput, out_dir: Path, ctx: StageContext) -> Checkpoint:
    """Write `onnx/model.onnx` beside the source's files.

    Raises:
        UnsupportedError: an operator or a cache that cannot be exported, or `smooth` on a model whose norms come last.
        StageError: `unpadded_path` for a graph without masked attention.
        ParityError: the graph does not say what the torch model says.
    """
    source, path = inputs.source, out_dir / GRAPH
    if config.smooth is not None:
        check_smoothable(source.content.model_type)
    with measure_cost(ctx.workdir, ctx.calibration) as meter, quiet_transformers():
        emit = meter.watching(ctx.emit)
        emit(Progress(config.id, "export", 0, N_STEPS))
        carry_files(source.path, out_dir, exclude_prefixes=("onnx/",))
        module = load_module(source)
        plain = module
        if config.smooth is not None:
            plain, module = module, _smoothed(load_module(source), config.smooth, source, ctx)
        if ctx.task.is_decoder:
            export_decoder(module, path)
        else:
            export_encoder(with_head(module, source.path, ctx.task), path, output_names=ctx.task.outputs)
        emit(Progress(config.id, "export", 1, N_STEPS))
        fusion = fuse(path, path) if config.fuse else None
        if fusion is not None and not fusion.counts:
            emit(Note(config.id, f"nothing was fused: {fusion.reason}"))
        n_paths = add_unpadded_path(path, path) if config.unpadded_path else None
        emit(Progress(config.id, "export", 2, N_STEPS))
        threads = ctx.target.threads or n_cores()
        parity = check_conversion(
            open_torch(with_head(plain, source.path, ctx.task), ctx.task, threads=threads),
            open_onnx(path, is_decoder=ctx.task.is_decoder, threads=threads, provider=ctx.target.provider, settings={}),
            source,
            ctx,
            scheme="fp32",
        )
        facts = inspect_onnx(path)
        emit(Progress(config.id, "export", N_STEPS, N_STEPS))
    variant = Variant(
        id=VARIANT,
        path=GRAPH,
        runtime="onnxruntime",
        scheme="fp32",
        stage=config.id,
        parameters=facts.n_parameters,
        size_bytes=facts.size_bytes,
        facts={
            "opset": facts.opset,
            "ir_version": facts.ir_version,
            "dtype_bytes": facts.dtype_bytes,
            "fusion": None if fusion is None else _fusion_facts(fusion),
            "smoothed": None if config.smooth is None else config.smooth.alpha,
            **({} if n_paths is None else {"unpadded_paths": n_paths}),
        },
    )
    return seal_variant(
        source,
        out_dir,
        variant,
        made=made_by(
            config,
            inputs={"source": source.digest},
            splits=("calibration",),
            realised={
                "parameters": facts.n_parameters,
                "operators": facts.op_counts,
                "fusion": None if fusion is None else asdict(fusion),
                "parity": {"against": "torch-fp32", **parity},
            },
        ),
        ctx=ctx,
        cost=meter.cost,
    )


def _smoothed(module: PreTrainedModel, smooth: Smooth, source: Checkpoint, ctx: StageContext) -> PreTrainedModel:
    """The same model with its outlier channels folded into weights; parity is held against the model as it was."""
    return fold_scales(module, collect_channel_max(module, calibration_batches(source, ctx)), smooth.alpha)


def _fusion_facts(fusion: FusionReport) -> dict[str, object]:
    """What the file is; how far its numbers moved was measured here and goes into the record."""
    return {
        "counts": fusion.counts,
        "fused_by": fusion.fused_by,
        "nodes_before": fusion.n_nodes_before,
        "nodes": fusion.n_nodes_after,
        "limits": list(fusion.limits),
    }
