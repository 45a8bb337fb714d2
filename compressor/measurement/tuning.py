"""Runtime settings found by measuring: one process for each setting, paired rounds, one axis after the other.

Threads, spinning, the memory arena, IO binding, batch size and sorting by length cost no accuracy to speak of and move
CPU-seconds by more than some compressions do. A rival setting displaces the one in place only when its whole interval
lies below 1; so what is found is a saving, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compressor import energy
from compressor.data.tokenize import Encoded, batches
from compressor.errors import EnergyError, StageError, UserError
from compressor.measurement import statistics as st
from compressor.measurement.arrays import save_batches
from compressor.measurement.session import find_meters
from compressor.measurement.workers import Job, WorkerProcess

Cost = Literal["cpu_s_per_token", "j_per_token"]
SETTLE_S = 0.1
TAKEN = "taken"
"""How the decision begins on the setting that a comparison leaves in place."""


@dataclass(frozen=True)
class RuntimeSettings:
    """One way to run a variant; the defaults are what `compressor.load` does with a variant that was never tuned.

    Attributes:
        threads: threads of one inference.
        allow_spinning: whether waiting threads burn CPU to wake faster.
        memory_arena: whether ONNX Runtime keeps freed memory for itself.
        io_binding: whether inputs and outputs are handed over as ONNX Runtime's own values.
        batch_size: texts (prompts) in one call.
        sort_by_length: whether texts of like length go together.
    """

    threads: int
    allow_spinning: bool = True
    memory_arena: bool = True
    io_binding: bool = False
    batch_size: int = 32
    sort_by_length: bool = False


@dataclass(frozen=True)
class Plan:
    """What is tried, and how long.

    Attributes:
        axes: for each axis, the changes that are tried on the best setting so far.
        cost: what is made least.
        latency_s_max: limit on the 95th percentile of one call: a batch of texts, or one decode step.
        rounds: paired rounds for each axis.
        window_s: seconds of one timed window.
    """

    axes: Sequence[Sequence[Mapping[str, Any]]]
    cost: Cost
    latency_s_max: float | None
    rounds: int
    window_s: float


@dataclass(frozen=True)
class Texts:
    """What is run: rows of tokens that no test split holds.

    Attributes:
        rows: encoded texts.
        pad_id: of the tokenizer.
        n_out: tokens to generate for each row; 0 for an encoder.
    """

    rows: Sequence[Encoded]
    pad_id: int
    n_out: int


@dataclass(frozen=True)
class Trial:
    """One setting, measured beside others.

    Attributes:
        axis: in which comparison, from 0.
        settings: how the variant was run.
        cpu_s_per_token: median over the rounds; real input tokens and generated ones count, padding does not.
        j_per_token: likewise, by a meter, where joules are what is made least; None otherwise.
        est_j_per_token: the same where no meter can measure them: a line in CPU and wall seconds.
        latency_s_p50: of one call.
        latency_s_p95: likewise.
        ratio: cost as a multiple of the setting in place, geometric mean over paired rounds; None for that one.
        ratio_ci95: its Student interval.
        decision: why it was taken or not.
    """

    axis: int
    settings: RuntimeSettings
    cpu_s_per_token: float
    j_per_token: float | None
    est_j_per_token: float | None
    latency_s_p50: float
    latency_s_p95: float
    ratio: float | None
    ratio_ci95: st.Bounds | None
    decision: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they are read back from a file."""
        bounds = None if self.ratio_ci95 is None else list(self.ratio_ci95)
        return {**asdict(self), "ratio_ci95": bounds}


@dataclass
class Timed:
    """What the windows of one setting gave: costs per token of each round, and the seconds of every call."""

    settings: RuntimeSettings
    cpu_s: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)
    est_joules: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)

    def costs(self, cost: Cost) -> list[float]:
        """One figure a round; of the joules a session measured or estimated, never of both."""
        return self.cpu_s if cost == "cpu_s_per_token" else self.joules or self.est_joules

    @property
    def latency_s_p95(self) -> float:
        return float(np.quantile(self.latencies_s, 0.95))


def tune_settings(
    job_of: Callable[[str, RuntimeSettings], Job],
    texts: Texts,
    default: RuntimeSettings,
    plan: Plan,
    *,
    seed: int,
    calibration: energy.Calibration | None,
    workdir: Path,
    on_axis: Callable[[int], None],
) -> tuple[RuntimeSettings, list[Trial]]:
    """The settings of least cost under the limit, and every trial on the way.

    Args:
        job_of: the job of a worker, by its name in messages and its settings.
        texts: what each setting runs.
        default: where the search starts; also the answer where nothing is cheaper.
        plan: what is tried.
        seed: of the orders of turns.
        calibration: watts of this machine for estimated joules.
        workdir: takes batches and logs.
        on_axis: told of each comparison that is done: one for each axis, and the last of the best with the default.

    Raises:
        UserError: the axes hold nothing but the defaults.
        StageError: no setting that was tried keeps the latency limit; the fastest is named.
        WorkerDied: a worker could not run the variant.
    """
    best, trials = default, list[Trial]()

    def compare(axis: int, entries: Sequence[RuntimeSettings]) -> RuntimeSettings:
        candidates = _measure(job_of, texts, entries, plan, [seed, axis], calibration, workdir)
        found = compare_settings(axis, candidates, plan)
        trials.extend(found)
        return next(trial.settings for trial in found if trial.decision.startswith(TAKEN))

    for axis, changes in enumerate(plan.axes):
        rivals = [rival for rival in dict.fromkeys(replace(best, **change) for change in changes) if rival != best]
        if rivals:
            best = compare(axis, [best, *rivals])
        on_axis(axis)
    if not trials:
        raise UserError(
            "there is nothing to try: the lists name no setting but the defaults",
            hint=f"give other values than {default}",
        )
    if best != default:
        # The best of many is flattered by luck, so it must beat the default once more, on windows of its own.
        best = compare(len(plan.axes), [default, best])
    on_axis(len(plan.axes))
    _check_limit(best, trials, plan.latency_s_max)
    return best, trials


def _measure(
    job_of: Callable[[str, RuntimeSettings], Job],
    texts: Texts,
    entries: Sequence[RuntimeSettings],
    plan: Plan,
    seed: list[int],
    calibration: energy.Calibration | None,
    workdir: Path,
) -> list[Timed]:
    """Every setting in a process of its own, all stopped but for the one whose turn it is."""
    meters = find_meters() if plan.cost == "j_per_token" else ()
    rng = np.random.default_rng(seed)
    timed = [Timed(settings) for settings in entries]
    with ExitStack() as stack:
        crew = []
        for number, settings in enumerate(entries):
            path, n_tokens = _write_batches(texts, settings, workdir)
            worker = stack.enter_context(
                WorkerProcess(job_of(f"setting {number}", settings), workdir / f"{number}.log")
            )
            worker.wait_until_ready()
            phase = "prefill" if texts.n_out else "forward"
            worker.ask("load", key="tune", path=str(path.resolve()), phase=phase, n_out=texts.n_out)
            worker.pause()
            crew.append((worker, n_tokens))
        for _ in range(plan.rounds):
            for turn in rng.permutation(len(crew)):
                worker, n_tokens = crew[turn]
                worker.resume()
                _take_turn(worker, n_tokens, timed[turn], texts.n_out, plan, meters, calibration)
                worker.pause()
    return timed


def _take_turn(
    worker: WorkerProcess,
    n_tokens: int,
    timed: Timed,
    n_out: int,
    plan: Plan,
    meters: Sequence[energy.Source],
    calibration: energy.Calibration | None,
) -> None:
    worker.ask("settle", key="tune", n_out=n_out, settle_s=min(SETTLE_S, plan.window_s))
    with energy.Window(meters) if meters else nullcontext() as window:
        answer = worker.ask("window", key="tune", n_out=n_out, window_s=plan.window_s)
    n_done = answer["passes"] * n_tokens
    timed.cpu_s.append(answer["cpu_s"] / n_done)
    timed.latencies_s += answer["latencies_s"]
    if plan.cost == "cpu_s_per_token":
        return
    if window is None:
        estimate = energy.estimate_with(calibration, cpu_s=answer["cpu_s"], wall_s=answer["wall_s"])
        if estimate.est_energy_gross_j is None:
            raise EnergyError(f"no joules can be estimated here: {estimate.reason}", hint="tune for cpu_s_per_token")
        timed.est_joules.append(estimate.est_energy_gross_j / n_done)
    elif isinstance(window.result, energy.MeasuredEnergy):
        timed.joules.append(window.result.energy_gross_j / n_done)
    else:
        raise EnergyError("a meter gave no joules for a window", hint="tune for cpu_s_per_token")


def _write_batches(texts: Texts, settings: RuntimeSettings, workdir: Path) -> tuple[Path, int]:
    """The rows as these settings batch them, and the real tokens of one pass (generated ones included)."""
    order: Literal["file", "length"] = "length" if settings.sort_by_length else "file"
    side: Literal["left", "right"] = "left" if texts.n_out else "right"
    made = list(batches(texts.rows, settings.batch_size, texts.pad_id, order=order, side=side))
    path = workdir / f"tune-{settings.batch_size}-{order}.npz"
    save_batches(path, made)
    n_real = sum(int(batch["attention_mask"].sum()) for batch in made)
    return path, n_real + texts.n_out * len(texts.rows)


def compare_settings(axis: int, candidates: Sequence[Timed], plan: Plan) -> list[Trial]:
    """One trial for each candidate; exactly one is taken. The first is the setting in place."""
    in_place = candidates[0]
    ratios = {id(one): st.paired_ratio(one.costs(plan.cost), in_place.costs(plan.cost)) for one in candidates[1:]}
    limit = plan.latency_s_max
    keeps = [one for one in candidates if limit is None or one.latency_s_p95 <= limit]
    if in_place in keeps:
        # The one in place stays unless a saving is shown.
        better = [one for one in keeps[1:] if (ci := ratios[id(one)].ci95) is not None and ci[1] < 1]
        chosen = min(better, key=lambda one: ratios[id(one)].value, default=in_place)
    elif keeps:
        chosen = min(keeps, key=lambda one: ratios[id(one)].value)
    else:
        chosen = min(candidates, key=lambda one: one.latency_s_p95)  # nearer to the limit, for the next axis
    trials = []
    for one in candidates:
        ratio = ratios.get(id(one))
        trials.append(
            Trial(
                axis=axis,
                settings=one.settings,
                cpu_s_per_token=float(np.median(one.cpu_s)),
                j_per_token=float(np.median(one.joules)) if one.joules else None,
                est_j_per_token=float(np.median(one.est_joules)) if one.est_joules else None,
                latency_s_p50=float(np.median(one.latencies_s)),
                latency_s_p95=one.latency_s_p95,
                ratio=None if ratio is None else ratio.value,
                ratio_ci95=None if ratio is None else ratio.ci95,
                decision=_decision(one, chosen, in_place, keeps, ratio),
            )
        )
    return trials


def _decision(
    one: Timed,
    chosen: Timed,
    in_place: Timed,
    keeps: Sequence[Timed],
    ratio: st.PairedRatio | None,
) -> str:
    over = "" if one in keeps else "over the latency limit"
    if one is chosen:
        why = "in place before, and nothing was shown to cost less" if one is in_place and not over else over
        return f"{TAKEN}: {why or 'the least cost'}"
    if over:
        return over
    if ratio is None or ratio.value > 1:
        return "costs more" if ratio is not None else "costs more than what was taken"
    return "costs less, but not the least" if _is_saving(ratio) else "no saving is shown: its interval reaches 1"


def _is_saving(ratio: st.PairedRatio) -> bool:
    return ratio.ci95 is not None and ratio.ci95[1] < 1


def _check_limit(best: RuntimeSettings, trials: Sequence[Trial], limit: float | None) -> None:
    if limit is None or not trials:
        return
    last = next(trial for trial in reversed(trials) if trial.settings == best)
    if last.latency_s_p95 > limit:
        fastest = min(trials, key=lambda trial: trial.latency_s_p95)
        raise StageError(
            f"no setting that was tried answers within latency_s_max = {limit:g} s: the fastest took "
            f"{fastest.latency_s_p95:.3g} s (95th percentile) with {fastest.settings}",
            hint="allow more time, smaller batch_sizes or more threads, or compress the model further",
        )
