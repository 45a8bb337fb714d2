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


@dataclass(frozen=True)
class Search:
    """What a search starts from.

    Attributes:
        config: of the stage, with `until`.
        decision: arithmetic, calibration inputs and rounding, as they will be in the file.
        source: the fp32 checkpoint.
        graph: its graph.
        ctx: of the stage.
        folder: takes files of the search, which may be as large as three times the fp32 graph.
        threads: of a run.
    """

    config: Quantize
    decision: Decision
    source: Checkpoint
    graph: Path
    ctx: StageContext
    folder: Path
    threads: int

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """What a node can be in, from fewest bits up, fp32 left out: level 1, 2, ... of the switchboard."""
        return (self.config.scheme, "w8") if self.config.scheme == "w4" else (self.config.scheme,)

    @property
    def ladder(self) -> tuple[int, ...]:
        """Levels from the one that all nodes start at up to fp32."""
        return (*range(1, len(self.schemes) + 1), 0)

    @property
    def output(self) -> str:
        """The output that is compared."""
        return self.ctx.task.outputs[-1]

    def open(self, path: Path, settings: Mapping[str, Any]) -> OnnxRunner:
        """A runner of one of the files."""
        is_decoder = self.ctx.task.is_decoder
        provider = "CPUExecutionProvider"
        return open_onnx(path, is_decoder=is_decoder, threads=self.threads, provider=provider, settings=settings)

    def mixed(self, levels: Mapping[str, int]) -> Decision:
        """The decision with these nodes at these levels."""
        exclude = tuple(name for name, level in levels.items() if level == 0)
        return replace(self.decision, exclude=exclude, widen=tuple(n for n, level in levels.items() if level == 2))


def choose_mixture(search: Search) -> Mixture:
    """Leave as few nodes alone as the goal on validation rows needs.

    Raises:
        StageError: no mixture keeps the goal.
        DataError: as `open_validation`.
    """
    config, ladder, output = search.config, search.ladder, search.output
    assert config.until is not None, "the pipeline gives `until` with `exclude: auto`"
    runner = search.open(search.graph, {})
    validation = open_validation(config.until, search.source, search.ctx, lambda batch: runner.forward(batch)[output])
    board = _switchboard(search)
    damages = measure_damage(board, _feeds(search, runner), ladder[:-1], output)
    bits = {0: 32} | {level: _BITS[scheme] for level, scheme in enumerate(search.schemes, 1)}
    order = order_raises(damages, ladder, bits)
    nodes = [name for name, _ in board.nodes]

    def is_kept(n_steps: int) -> bool:
        levels = levels_after(order, n_steps, nodes, ladder[0])
        return validation.keeps(validation.measure(lambda batch: board.run(as_feed(runner, batch), levels, output)))

    n_steps = fewest_steps(len(order), is_kept)
    found, n_steps, value = _confirm(search, order, n_steps, nodes, validation)
    record = {
        "metric": config.until.metric,
        "fp32": validation.reference,
        "quantised": value,
        "steps": n_steps,
        "nodes": len(nodes),
        "fp32_nodes": list(found.exclude),
        "w8_nodes": list(found.widen),
        "damage": [{**asdict(one), "level": search.schemes[one.level - 1]} for one in damages],
    }
    return Mixture(found, record)


def _feeds(search: Search, runner: OnnxRunner) -> list[dict[str, Array]]:
    if not search.ctx.task.is_decoder:
        return calibration_feeds(runner, search.source, search.ctx, ENCODER_ROWS)
    width = min(WINDOW_TOKENS, search.ctx.max_tokens)
    n_windows = -(-DECODER_TOKENS // width)
    return calibration_feeds(runner, search.source, search.ctx, n_windows, max_tokens=width)


def _switchboard(search: Search) -> Switchboard:
    files = [search.folder / f"level-{scheme}.onnx" for scheme in search.schemes]
    for scheme, file in zip(search.schemes, files, strict=True):
        write_scheme(scheme, search.config, search.graph, file, search.decision, embeddings=False)
    path = search.folder / "switches.onnx"
    nodes = merge_precisions(search.graph, files, path, include_lm_head=search.config.lm_head)
    for file in files:
        file.unlink()
    is_precise = PRECISE in ARITHMETICS[search.decision.arithmetic].settings
    return Switchboard(path, nodes, threads=search.threads, is_precise=is_precise)


def _confirm(
    search: Search, order: Sequence[Raise], n_steps: int, nodes: Sequence[str], validation: Validation
) -> tuple[Decision, int, float]:
    """The file itself decides: its kernels may differ a little from those of the switchboard."""
    path, config = search.folder / "mixture.onnx", search.config
    while n_steps < len(order):
        mixed = search.mixed(levels_after(order, n_steps, nodes, search.ladder[0]))
        write_scheme(config.scheme, config, search.graph, path, mixed, embeddings=config.embeddings)
        value = _measure(search, path, validation)
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


def _measure(search: Search, path: Path, validation: Validation) -> float:
    runner = search.open(path, ARITHMETICS[search.decision.arithmetic].settings)
    return validation.measure(lambda batch: runner.forward(batch)[search.output])
