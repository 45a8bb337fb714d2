"""Which nodes keep more bits: measured one by one on calibration rows, decided by quality on validation rows.

The damage of each node gives an order, most mended per byte first; bisection finds the fewest steps of it after which
the goal holds; the file that comes of it is measured again, and takes further steps where the goal does not hold yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from compressor.checkpoints.store import Checkpoint
from compressor.errors import StageError
from compressor.graphs.choose import ARITHMETICS, PRECISE
from compressor.graphs.sensitivity import Raise, fewest_steps, levels_after, measure_damage, order_raises
from compressor.graphs.switches import Switchboard, merge_precisions
from compressor.runtime.onnx_runner import OnnxRunner, open_onnx
from compressor.runtime.runners import Array
from compressor.spec.stages import Quantize, Scheme
from compressor.stages.context import StageContext
from compressor.stages.feeds import as_feed, calibration_feeds
from compressor.stages.schemes import Decision, write_scheme
from compressor.stages.validating import Validation, open_validation

ENCODER_ROWS = 32
DECODER_TOKENS, WINDOW_TOKENS = 256, 128
"""Calibration text on which every node's damage is measured: rows, or tokens in windows."""
_BITS = {"w4": 4, "w8": 8, "w8a8-dynamic": 8, "w8a8-static": 8}


@dataclass(frozen=True)
class Mixture:
    """What a search decided, for the file and for the record."""

    decision: Decision
    record: dict[str, Any]


def choose_mixture(
    config: Quantize, decision: Decision, source: Checkpoint, graph: Path, ctx: StageContext, folder: Path, threads: int
) -> Mixture:
    """Leave as few nodes alone as the goal on validation rows needs.

    Args:
        config: of the stage, with `until`.
        decision: arithmetic, calibration inputs and rounding, as they will be in the file.
        source: the fp32 checkpoint.
        graph: its graph.
        folder: takes files of the search, which may be as large as three times the fp32 graph.
        threads: of a run.

    Raises:
        StageError: no mixture keeps the goal.
        DataError, UnsupportedError: as `open_validation`.
    """
    assert config.until is not None, "the pipeline gives `until` with `exclude: auto`"
    schemes: tuple[Scheme, ...] = (config.scheme, "w8") if config.scheme == "w4" else (config.scheme,)
    runner = open_onnx(
        graph, is_decoder=ctx.task.is_decoder, threads=threads, provider="CPUExecutionProvider", settings={}
    )
    output = ctx.task.outputs[-1]
    validation = open_validation(config.until, source, ctx, lambda batch: runner.forward(batch)[output])
    board = _switchboard(config, decision, schemes, graph, folder, threads)
    ladder = (*range(1, len(schemes) + 1), 0)
    bits = {0: 32} | {level: _BITS[scheme] for level, scheme in enumerate(schemes, 1)}
    feeds = _feeds(runner, source, ctx)
    damages = measure_damage(board, feeds, ladder[:-1], output)
    order = order_raises(damages, ladder, bits)
    nodes = [name for name, _ in board.nodes]

    def is_kept(n_steps: int) -> bool:
        return validation.keeps(
            validation.measure(_run(board, runner, levels_after(order, n_steps, nodes, ladder[0]), output))
        )

    n_steps = fewest_steps(len(order), is_kept)
    found, n_steps, value = _confirm(
        config, decision, graph, folder, order, n_steps, nodes, ladder, validation, ctx, threads
    )
    return Mixture(
        found,
        {
            "metric": config.until.metric,
            "fp32": validation.reference,
            "quantised": value,
            "steps": n_steps,
            "nodes": len(nodes),
            "fp32_nodes": list(found.exclude),
            "w8_nodes": list(found.widen),
            "damage": [{**asdict(one), "level": schemes[one.level - 1]} for one in damages],
        },
    )


def _feeds(runner: OnnxRunner, source: Checkpoint, ctx: StageContext) -> list[dict[str, Array]]:
    if not ctx.task.is_decoder:
        return calibration_feeds(runner, source, ctx, ENCODER_ROWS)
    width = min(WINDOW_TOKENS, ctx.max_tokens)
    return calibration_feeds(runner, source, ctx, -(-DECODER_TOKENS // width), max_tokens=width)


def _switchboard(
    config: Quantize, decision: Decision, schemes: Sequence[Scheme], graph: Path, folder: Path, threads: int
) -> Switchboard:
    files = [folder / f"level-{scheme}.onnx" for scheme in schemes]
    for scheme, file in zip(schemes, files, strict=True):
        write_scheme(scheme, config, graph, file, decision, embeddings=False)
    path = folder / "switches.onnx"
    nodes = merge_precisions(graph, files, path, include_lm_head=config.lm_head)
    for file in files:
        file.unlink()
    return Switchboard(path, nodes, threads=threads, is_precise=PRECISE in ARITHMETICS[decision.arithmetic].settings)


def _confirm(
    config: Quantize,
    decision: Decision,
    graph: Path,
    folder: Path,
    order: Sequence[Raise],
    n_steps: int,
    nodes: Sequence[str],
    ladder: Sequence[int],
    validation: Validation,
    ctx: StageContext,
    threads: int,
) -> tuple[Decision, int, float]:
    """The file itself decides: its kernels may differ a little from those of the switchboard."""
    while n_steps < len(order):
        levels = levels_after(order, n_steps, nodes, ladder[0])
        mixed = replace(
            decision,
            exclude=tuple(name for name in nodes if levels[name] == 0),
            widen=tuple(name for name in nodes if len(ladder) > 2 and levels[name] == 2),
        )
        path = folder / "mixture.onnx"
        write_scheme(config.scheme, config, graph, path, mixed, embeddings=config.embeddings)
        runner = open_onnx(
            path,
            is_decoder=ctx.task.is_decoder,
            threads=threads,
            provider="CPUExecutionProvider",
            settings=ARITHMETICS[decision.arithmetic].settings,
        )
        value = validation.measure(lambda batch, runner=runner: runner.forward(batch)[ctx.task.outputs[-1]])  # type: ignore[misc]
        if validation.keeps(value):
            return mixed, n_steps, value
        n_steps += 1
    assert config.until is not None
    raise StageError(
        f"do not quantise here: {config.scheme} keeps {config.until.metric} on the validation rows "
        f"({validation.reference:.4g} in fp32) within the limit only with every product in fp32",
        where=f"stages.{config.id}.until",
        hint="loosen the limit, or choose another scheme",
    )


def _run(board: Switchboard, runner: OnnxRunner, levels: Mapping[str, int], output: str) -> Any:
    def run(batch: Mapping[str, Array]) -> Array:
        return board.run(as_feed(runner, batch), levels, output)

    return run
