"""Quantisation of an ONNX graph: another file beside the one it was made from.

What the scheme promised is read back from the file. Conversions to fp16 must agree with the fp32 graph; schemes that
lose something are judged by goals, with KL and top-1 on calibration text on record. What the pipeline leaves open
(arithmetic, which nodes keep more bits) is decided by measuring on calibration and validation rows.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from compressor.checkpoints.files import carry_files
from compressor.checkpoints.manifest import Variant
from compressor.checkpoints.precisions import precisions_of
from compressor.checkpoints.store import Checkpoint
from compressor.energy.processor import instruction_set, read_cpu_flags
from compressor.errors import StageError, UnsupportedError
from compressor.graphs.activations import wide_activations
from compressor.graphs.choose import ARITHMETICS, write_int8_options
from compressor.graphs.facts import count_nodes_by_provider, count_unfused, vocabulary_size
from compressor.graphs.places import products_of_sublayers
from compressor.methods.surgery import layers_of
from compressor.runtime.onnx_runner import OnnxRunner, open_onnx
from compressor.runtime.runners import n_cores
from compressor.runtime.torch_models import load_module
from compressor.schema.events import Note, Progress
from compressor.spec.stages import Quantize
from compressor.stages.arithmetic import choose_arithmetic
from compressor.stages.context import SourceInput, StageContext
from compressor.stages.cost import measure_cost
from compressor.stages.feeds import calibration_feeds
from compressor.stages.mixing import Search, choose_mixture
from compressor.stages.parity import check_conversion
from compressor.stages.rounding import gptq_grids, rounded_export
from compressor.stages.schemes import GRAPHS, Decision, check_settings, write_scheme
from compressor.stages.sealing import made_by, seal_variant

N_STEPS = 3
CALIBRATION_ROWS = 128
"""Rows that fix static ranges and Gram matrices; percentile and entropy keep all their activations in memory."""
WIDTH_ROWS, WIDTH_TOKENS = 8, 128
ERROR_ROWS = 32
"""Rows on which ways to multiply are compared."""


def quantize(config: Quantize, inputs: SourceInput, out_dir: Path, ctx: StageContext) -> Checkpoint:
    """Write `onnx/model_<scheme>.onnx` beside the source's files.

    Raises:
        UnsupportedError: a scheme that the provider cannot run or that has no such setting (both before any work), or
            a graph that is quantised already.
        UserError: a node in `exclude` that the graph does not have.
        DataError: a calibration set that is too small, or no validation rows for `until`.
        StageError: nothing was quantised, no embedding table that should have been, or no mixture keeps the goal.
        ParityError: fp16 moved the numbers too far, or a result is not finite.
    """
    source = inputs.source
    check_settings(config, ctx.target.provider)
    graph = source.path / _fp32_variant(source).path
    path, threads = out_dir / GRAPHS[config.scheme], ctx.target.threads or n_cores()
    with measure_cost(ctx.workdir, ctx.calibration) as meter:
        emit = meter.watching(ctx.emit)
        emit(Progress(config.id, "quantise", 0, N_STEPS))
        carry_files(source.path, out_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="quantise-", dir=ctx.workdir) as folder:
            decided, base, found = _decide(config, source, graph, ctx, Path(folder), threads)
            emit(Progress(config.id, "quantise", 1, N_STEPS))
            facts = write_scheme(config.scheme, config, base, path, decided, embeddings=config.embeddings)
        emit(Progress(config.id, "quantise", 2, N_STEPS))
        settings = dict(ARITHMETICS[decided.arithmetic].settings)
        reference, candidate = (
            open_onnx(file, is_decoder=ctx.task.is_decoder, threads=threads, provider=ctx.target.provider, settings=own)
            for file, own in ((graph, {}), (path, settings))
        )
        parity = check_conversion(reference, candidate, source, ctx, scheme=config.scheme)
        causes = _causes(config, source, graph, path, reference, ctx)
        if found.get("arithmetic"):
            ctx.emit(Note(config.id, f"arithmetic: {decided.arithmetic}"))
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
            **_tuned_facts(config, decided),
            **causes,
        },
        settings=settings,
    )
    return seal_variant(
        source,
        out_dir,
        variant,
        made=made_by(
            config,
            inputs={"source": source.digest},
            splits=("calibration", "validation") if config.until is not None else ("calibration",),
            realised={
                "parameters": facts.n_parameters,
                "operators": facts.op_counts,
                "parity": {"against": "onnx-fp32", **parity},
                **found,
            },
        ),
        ctx=ctx,
        cost=meter.cost,
    )


def _decide(
    config: Quantize, source: Checkpoint, graph: Path, ctx: StageContext, folder: Path, threads: int
) -> tuple[Decision, Path, dict[str, Any]]:
    """What the pipeline leaves open, the graph to quantise, and the figures behind it."""
    found: dict[str, Any] = {}
    runner = open_onnx(
        graph, is_decoder=ctx.task.is_decoder, threads=threads, provider="CPUExecutionProvider", settings={}
    )
    named = _named(config, source, graph)
    decided = Decision(exclude=named, arithmetic="u8s8" if config.arithmetic == "auto" else config.arithmetic)
    if config.exclude == "searched":
        found["fp32_nodes"] = list(named)
    if config.scheme == "w8a8-static":
        decided = replace(decided, feeds=calibration_feeds(runner, source, ctx, CALIBRATION_ROWS))
    if config.method == "gptq":
        feeds = calibration_feeds(runner, source, ctx, CALIBRATION_ROWS)
        widths = (4, 8) if config.scheme == "w4" and config.exclude == "auto" else (4 if config.scheme == "w4" else 8,)
        decided = replace(decided, grids=gptq_grids(graph, feeds, widths, include_lm_head=config.lm_head))
    elif config.method != "rtn":
        graph, grids = rounded_export(config, source, ctx, folder)
        decided = replace(decided, grids={config.scheme: grids})
    if config.arithmetic == "auto":
        decided, found["arithmetic"] = _choose_arithmetic(config, decided, runner, source, graph, ctx, folder, threads)
    if config.exclude == "auto":
        mixture = choose_mixture(Search(config, decided, source, graph, ctx, folder, threads))
        decided, found["mixture"] = mixture.decision, mixture.record
    return decided, graph, found


def _named(config: Quantize, source: Checkpoint, graph: Path) -> tuple[str, ...]:
    """Nodes to leave in fp32, as far as they are known before anything is measured here."""
    if config.exclude == "auto":
        return ()
    if config.exclude != "searched":
        return config.exclude
    chosen = precisions_of(source)
    module = load_module(source)
    if chosen is None or len(chosen) != len(layers_of(module)):
        layers = "none" if chosen is None else f"{len(chosen)} layers"
        raise StageError(
            f"precisions were chosen for {layers}, and the model has {len(layers_of(module))}",
            where=f"stages.{config.id}.exclude",
            hint="let no stage between the search and the export add or remove layers",
        )
    wide = {(number, kind) for number, layer in enumerate(chosen) for kind, one in layer.items() if one == "fp32"}
    return products_of_sublayers(graph, module, wide)


def _choose_arithmetic(
    config: Quantize,
    decided: Decision,
    runner: OnnxRunner,
    source: Checkpoint,
    graph: Path,
    ctx: StageContext,
    folder: Path,
    threads: int,
) -> tuple[Decision, dict[str, Any]]:
    feeds = calibration_feeds(runner, source, ctx, ERROR_ROWS)
    options = write_int8_options(
        graph,
        folder,
        feeds,
        output=ctx.task.outputs[-1],
        per_channel=config.per_channel,
        include_lm_head=config.lm_head,
        exclude=decided.exclude,
    )
    # a row for an encoder; the step after a prompt for a decoder, where most of its time goes
    length = min(ctx.max_tokens, 64)
    shape = (
        {"batch": 1, "n_new": 1, "n_past": length}
        if ctx.task.is_decoder
        else {"batch": 8, "n_new": length, "n_past": 0}
    )
    chosen = choose_arithmetic(
        options, threads=threads, shape=shape, vocab_size=vocabulary_size(graph), workdir=ctx.workdir
    )
    record = {"chosen": chosen.name, "call": shape, "threads": threads, "options": list(chosen.table)}
    return replace(decided, arithmetic=chosen.name), record


def _tuned_facts(config: Quantize, decided: Decision) -> dict[str, Any]:
    """The machine that a file was tuned on: on another one the same arithmetic may saturate, or cost more."""
    if config.scheme != "w8a8-dynamic":
        return {}
    facts: dict[str, Any] = {"arithmetic": decided.arithmetic}
    if config.arithmetic == "auto" or config.exclude == "auto":
        facts["instruction_set"] = instruction_set(read_cpu_flags())
    return facts


def _causes(
    config: Quantize, source: Checkpoint, graph: Path, path: Path, runner: OnnxRunner, ctx: StageContext
) -> dict[str, Any]:
    """What may make 8-bit activations inexact or dear here, counted; a verdict names it where they turn out so."""
    if not config.scheme.startswith("w8a8"):
        return {}
    feeds = calibration_feeds(runner, source, ctx, WIDTH_ROWS, max_tokens=min(ctx.max_tokens, WIDTH_TOKENS))
    wide = wide_activations(graph, feeds, include_lm_head=config.lm_head)
    found: dict[str, Any] = {"wide_activations": len(wide), "unfused_products": count_unfused(path)}
    if ctx.target.provider != "CPUExecutionProvider":
        placed = count_nodes_by_provider(path, feeds[0], ctx.target.provider)
        found |= {"provider": ctx.target.provider, "nodes_by_provider": placed}
    return found


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
