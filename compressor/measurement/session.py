"""Cost sessions: who runs when, for how long, and what each window took.

All candidates' workers live at once and are stopped but for the one whose turn it is. A round is a complete block: each
candidate once, and the baseline twice (A/A), in an order drawn from the seed. Ratios are taken within a session only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from compressor import energy
from compressor.errors import EnergyError, ProvenanceError, UserError
from compressor.measurement.guard import Load, load_between, mean_load, read_cpu_times
from compressor.measurement.inputs import PreparedWorkload
from compressor.measurement.profiles import Profile
from compressor.measurement.workers import Job, WorkerDied, WorkerProcess
from compressor.schema.events import Emit, Progress
from compressor.schema.report import Failure, Phase
from compressor.spec.pipeline import Pipeline
from compressor.spec.stages import Prune

TWIN = "A/A twin of the baseline"


@dataclass(frozen=True)
class Turn:
    """One timed window of one candidate.

    Attributes:
        n_out: tokens generated in each pass; 0 for a forward pass.
        passes: whole passes in the window.
        wall_s: its length.
        cpu_s: the worker's own CPU seconds.
        latencies_s: of every call: a batch forward, a prefill, or a decode step.
        energy: what a meter said; None where energy is estimated from the sums instead.
    """

    n_out: int
    passes: int
    wall_s: float
    cpu_s: float
    latencies_s: tuple[float, ...]
    energy: energy.EnergyResult | None


@dataclass
class Run:
    """One candidate's part in a session: for each phase, for each round, its turns."""

    turns: dict[Phase, list[list[Turn]]] = field(default_factory=dict)
    is_steady: bool = True
    peak_memory_bytes: int | None = None
    threads: int | None = None
    """Of one inference, where the candidate brings its own; those of the session where None."""


@dataclass(frozen=True)
class Session:
    """One workload, measured.

    Attributes:
        id: names the session in the report.
        prepared: the workload.
        threads: of one inference.
        runs: candidate -> its part; the baseline's second worker is `TWIN`.
        order: candidates of each round, in the order of their turns.
        load: mean use of the machine by others during the turns; None where it cannot be read.
    """

    id: str
    prepared: PreparedWorkload
    threads: int
    runs: Mapping[str, Run]
    order: tuple[tuple[str, ...], ...]
    load: Load | None


def find_meters() -> tuple[energy.Source, ...]:
    """The meters of this machine whose readings may be called measured; empty where there is none."""
    try:
        return energy.choose_sources(require="measured")
    except ProvenanceError:
        return ()


def check_energy_is_measurable(pipeline: Pipeline, *, require: Literal["measured"] | None = None) -> None:
    """Refuse, before any work, what an estimate cannot serve.

    Raises:
        ProvenanceError: measured energy is required, and only an estimate is to be had.
        UserError: a goal or a pruning's budget in joules that only an estimate could judge, where the pipeline does not
            accept that.
    """
    if require == "measured":
        energy.choose_sources(require="measured")
    goals = [i for i, goal in enumerate(pipeline.goals) if goal.metric == "j_per_token"]
    budgets = [stage.id for stage in pipeline.stages if isinstance(stage, Prune) and _in_joules(stage)]
    if pipeline.energy.accept == "estimated":
        return
    if goals:
        require_meter("goal", where=f"goals.{goals[0]}.metric", accept="--set energy.accept=estimated")
    if budgets:
        where = f"stages.{budgets[0]}.budget.joules_per_token"
        require_meter("budget", where=where, accept="--set energy.accept=estimated")


def require_meter(what: str, *, where: str | None = None, accept: str) -> None:
    """Refuse to hold anything in joules that no meter here can measure.

    Args:
        what: `goal` or `budget`.
        where: its key in the pipeline.
        accept: what a user adds to hold it on estimates all the same.

    Raises:
        UserError: there is no meter.
    """
    if not find_meters():
        raise UserError(
            f"a {what} in joules, but no meter here can measure them, and an estimated ratio is the ratio of CPU time",
            where=where,
            hint=f"set the {what} on cpu_s_per_token, or accept estimates: {accept}",
        )


def _in_joules(stage: Prune) -> bool:
    return stage.budget is not None and stage.budget.joules_per_token is not None


def run_sessions(
    jobs: Mapping[str, Callable[[int], Job]],
    workloads: Sequence[tuple[PreparedWorkload, int, Sequence[str]]],
    *,
    baseline: str,
    profile: Profile,
    seed: int,
    name: str,
    meters: Sequence[energy.Source],
    workdir: Path,
    emit: Emit,
) -> tuple[list[Session], list[Failure]]:
    """Measure every workload.

    Args:
        jobs: candidate -> the job of its worker at a number of threads.
        workloads: what to run, at how many threads, by which candidates (the baseline among them).
        baseline: runs twice.
        profile: rounds and windows.
        seed: of the orders.
        name: prefix of the sessions' ids.
        meters: from `find_meters`.
        workdir: takes the workers' logs.
        emit: told of progress.

    Returns:
        The sessions, and what could not be measured; a worker that dies costs the others nothing.
    """
    sessions: list[Session] = []
    failures: list[Failure] = []
    for threads in sorted({threads for _, threads, _ in workloads}):
        group = [(number, entry) for number, entry in enumerate(workloads) if entry[1] == threads]
        wanted = list(dict.fromkeys(candidate for _, (_, _, ids) in group for candidate in ids))
        with ExitStack() as stack:
            crew = _start(jobs, [*wanted, TWIN], baseline, threads, workdir, stack, failures)
            for number, (prepared, _, ids) in group:
                here = {id_: crew[id_] for id_ in [*ids, TWIN] if id_ in crew}
                rng = np.random.default_rng([seed, number])
                block = _Block(prepared, here, crew, profile, rng, meters, emit, failures)
                sessions.append(block.measure(f"{name}/{prepared.workload.id}", threads))
    return sessions, failures


def _start(
    jobs: Mapping[str, Callable[[int], Job]],
    ids: Sequence[str],
    baseline: str,
    threads: int,
    workdir: Path,
    stack: ExitStack,
    failures: list[Failure],
) -> dict[str, WorkerProcess]:
    """Start the workers one after the other, each stopped as soon as it is ready."""
    crew: dict[str, WorkerProcess] = {}
    for id_ in ids:
        job = jobs[baseline if id_ == TWIN else id_](threads)
        log = workdir / f"worker-{len(crew)}-{threads}-threads.log"
        worker = stack.enter_context(WorkerProcess(replace(job, candidate=id_), log))
        try:
            worker.wait_until_ready()
        except WorkerDied as death:
            failures.append(failure_of(id_, death))
            continue
        worker.pause()
        crew[id_] = worker
    return crew


def failure_of(candidate: str, death: WorkerDied) -> Failure:
    """A death, as the report tells it."""
    return Failure(where=candidate, error=type(death).__name__, text=death.message)


class _Block:
    """The randomised complete blocks of one workload."""

    def __init__(
        self,
        prepared: PreparedWorkload,
        here: dict[str, WorkerProcess],
        crew: dict[str, WorkerProcess],
        profile: Profile,
        rng: np.random.Generator,
        meters: Sequence[energy.Source],
        emit: Emit,
        failures: list[Failure],
    ) -> None:
        self.prepared, self.here, self.crew = prepared, here, crew
        self.profile, self.rng, self.meters, self.emit, self.failures = profile, rng, meters, emit, failures
        self.runs = {id_: Run(threads=worker.job.threads) for id_, worker in here.items()}
        self.loads: list[Load] = []
        self.plan = turn_plan(prepared, profile)

    def measure(self, session_id: str, threads: int) -> Session:
        """Load, warm up, run the rounds."""
        is_small = self.prepared.workload.candidates == "ends"
        rounds = self.profile.ends_rounds if is_small else self.profile.rounds
        total = rounds + 1
        for id_ in list(self.here):
            self._guarded(id_, self._prepare)
        self._progress(1, total)
        idle_before = self._idle()
        order = []
        for done in range(rounds):
            ids = [str(id_) for id_ in self.rng.permutation(sorted(self.here))]
            for id_ in ids:
                if id_ in self.here:
                    self._guarded(id_, self._take_turn)
            order.append(tuple(ids))
            self._progress(done + 2, total)
        idle_after = self._idle()
        for id_ in list(self.here):
            self._guarded(id_, self._ask_about)
        runs = {id_: _with_idle(self.runs[id_], idle_before, idle_after) for id_ in self.here}
        return Session(session_id, self.prepared, threads, runs, tuple(order), mean_load(self.loads))

    def _progress(self, done: int, total: int) -> None:
        self.emit(Progress(stage="measure", task=f"workload {self.prepared.workload.id}", done=done, total=total))

    def _guarded(self, id_: str, act: Callable[[str, WorkerProcess], None]) -> None:
        """Wake one worker for one act; its death is noted and the others go on."""
        worker = self.here[id_]
        worker.resume()
        try:
            act(id_, worker)
        except WorkerDied as death:
            self.failures.append(failure_of(id_, death))
            del self.here[id_], self.crew[id_]
        else:
            worker.pause()

    def _prepare(self, id_: str, worker: WorkerProcess) -> None:
        phase: Phase = "forward" if self.plan[0][0] == "forward" else "prefill"
        key = self.prepared.workload.id
        lengths = sorted({turn[1] for turn in self.plan[:2]})
        path = self.prepared.own_paths.get(id_, self.prepared.path)
        worker.ask("load", key=key, path=str(path.resolve()), phase=phase, n_out=lengths[-1])
        for n_out in lengths:
            answer = worker.ask(
                "warm_up",
                key=key,
                n_out=n_out,
                period_s=self.profile.warm_up_period_s,
                max_periods=self.profile.max_warm_up_periods,
            )
            self.runs[id_].is_steady &= bool(answer["steady"])

    def _take_turn(self, id_: str, worker: WorkerProcess) -> None:
        key = self.prepared.workload.id
        worker.ask("settle", key=key, n_out=self.plan[0][1], settle_s=self.profile.settle_s)
        turns: dict[Phase, list[Turn]] = {}
        for phase, n_out, window_s in self.plan:
            turns.setdefault(phase, []).append(self._window(worker, n_out, window_s))
        for phase, taken in turns.items():
            self.runs[id_].turns.setdefault(phase, []).append(taken)

    def _window(self, worker: WorkerProcess, n_out: int, window_s: float) -> Turn:
        before = read_cpu_times()
        key = self.prepared.workload.id
        asked_ns = time.monotonic_ns()
        try:
            with energy.Window(self.meters) if self.meters else nullcontext() as window:
                answer = worker.ask("window", key=key, n_out=n_out, window_s=window_s)
            result = None if window is None else window.result
        except EnergyError as fault:
            # The reading is invalid, for this reason; the window's times are as good as any.
            result = energy.InvalidEnergy(fault.message, "meter", (time.monotonic_ns() - asked_ns) / 1e9)
        after = read_cpu_times()
        if before is not None and after is not None:
            self.loads.append(load_between(before, after, measured_cpu_s=answer["cpu_s"]))
        return Turn(n_out, answer["passes"], answer["wall_s"], answer["cpu_s"], tuple(answer["latencies_s"]), result)

    def _ask_about(self, id_: str, worker: WorkerProcess) -> None:
        self.runs[id_].peak_memory_bytes = worker.ask("about")["peak_memory_bytes"]

    def _idle(self) -> tuple[energy.DomainLog, ...]:
        """Raw log of the meters while every worker is stopped; empty where energy is estimated."""
        if not self.meters:
            return ()
        with energy.Window(self.meters) as window:
            time.sleep(self.profile.window_s)
        return tuple(log for part in window.result.windows for log in part.logs)


def turn_plan(prepared: PreparedWorkload, profile: Profile) -> list[tuple[Phase, int, float]]:
    """What a candidate does in its turn: phase, tokens generated in each pass, seconds.

    The lengths of a decode turn share one window between them: it is their line that is wanted.
    """
    if prepared.phase == "forward":
        return [("forward", 0, profile.window_s)]
    lengths = prepared.output_tokens
    return [
        ("prefill", 1, profile.window_s),
        *(("decode", n_out, profile.window_s / len(lengths)) for n_out in lengths),
    ]


def _with_idle(run: Run, before: Sequence[energy.DomainLog], after: Sequence[energy.DomainLog]) -> Run:
    """The same run, its measured turns with net energy."""
    if not before or not after:
        return run
    turns = {
        phase: [
            [
                replace(turn, energy=energy.with_idle(turn.energy, before, after))
                if isinstance(turn.energy, energy.MeasuredEnergy)
                else turn
                for turn in taken
            ]
            for taken in rounds
        ]
        for phase, rounds in run.turns.items()
    }
    return replace(run, turns=turns)
