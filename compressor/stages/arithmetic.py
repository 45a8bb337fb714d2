"""Which INT8 arithmetic to take: those that are about as exact as the best, and of them the cheapest.

Measured here and now, on calibration rows and in a process for each, so the choice holds for this processor and this
version of ONNX Runtime and is marked with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.graphs.choose import ARITHMETICS, Int8Option
from compressor.measurement.workers import GraphJob, WorkerProcess

AS_EXACT = 1.5
"""An option counts as exact while its error is at most this multiple of the least one's."""
NO_DIFFERENCE = 0.05
"""Options whose costs differ by less than this are told apart by their error."""
ROUNDS = 3
WINDOW_S = 0.4
"""Of one timed window; the kernel counts CPU time in ticks of a few milliseconds."""


@dataclass(frozen=True)
class Chosen:
    """What was taken, and the figures behind it.

    Attributes:
        name: of the arithmetic.
        table: for each option its error, cost and size, for the record.
    """

    name: str
    table: tuple[dict[str, Any], ...]


def choose_arithmetic(
    options: Sequence[Int8Option], *, threads: int, shape: dict[str, int], vocab_size: int, workdir: Path
) -> Chosen:
    """Time every option and choose.

    Args:
        options: files with their errors.
        threads: of one inference.
        shape: `batch`, `n_new` and `n_past` of the call that is timed.
        vocab_size: of the model.
        workdir: takes the workers' logs.

    Raises:
        WorkerDied: an option could not be run.
    """
    cpu_s = _time(options, threads, {**shape, "vocab_size": vocab_size, "window_s": WINDOW_S}, workdir)
    table = tuple(
        {
            "arithmetic": option.name,
            "relative_error": option.relative_error,
            "kl": option.parity.kl_mean,
            "top1_agreement": option.parity.top1_agreement,
            "cpu_s_per_call": cpu_s[option.name],
            "size_bytes": option.size_bytes,
        }
        for option in options
    )
    return Chosen(
        cheapest_exact({option.name: (option.relative_error, cpu_s[option.name]) for option in options}), table
    )


def cheapest_exact(measured: dict[str, tuple[float, float]]) -> str:
    """The rule, on (error, CPU seconds) of each option."""
    least_error = min(error for error, _ in measured.values())
    exact = {name: pair for name, pair in measured.items() if pair[0] <= AS_EXACT * least_error}
    least_cost = min(cost for _, cost in exact.values())
    cheap = {name: pair for name, pair in exact.items() if pair[1] <= (1 + NO_DIFFERENCE) * least_cost}
    return min(cheap, key=lambda name: cheap[name])


def _time(options: Sequence[Int8Option], threads: int, call: dict[str, Any], workdir: Path) -> dict[str, float]:
    """Least CPU seconds of a call over the rounds; a process each, stopped but for the one whose turn it is."""
    with ExitStack() as stack:
        workers = {}
        for option in options:
            job = GraphJob(option.name, threads, "CPUExecutionProvider", dict(ARITHMETICS[option.name].settings))
            worker = stack.enter_context(WorkerProcess(job, workdir / f"arithmetic-{option.name}.log"))
            worker.wait_until_ready()
            worker.ask("open", path=str(option.path.resolve()))
            worker.pause()
            workers[option.name] = worker
        found: dict[str, list[float]] = {name: [] for name in workers}
        for number in range(ROUNDS):
            for name in list(workers)[:: 1 if number % 2 == 0 else -1]:
                workers[name].resume()
                found[name].append(workers[name].ask("time", **call)["cpu_s"])
                workers[name].pause()
    return {name: min(values) for name, values in found.items()}
