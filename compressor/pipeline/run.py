"""Run a pipeline: stage after stage, each in its own folder, then judge what came out.

A stage is skipped when a verified checkpoint with the same fingerprint is there: the same inputs, settings, data,
library versions and stage version. Everything a stage needs is in that list, so a run that was killed goes on where it
was, and a changed setting redoes only what depends on it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compressor import energy
from compressor.checkpoints.files import full_disk_named, sha256_file
from compressor.checkpoints.fingerprint import fingerprint, library_versions
from compressor.checkpoints.store import Checkpoint
from compressor.data.splits import StageData
from compressor.errors import CompressorError, InterruptedRunError, UserError
from compressor.measurement.certificate import write_certificates
from compressor.measurement.judge import CandidateSpec, check_splits, judge
from compressor.measurement.session import check_energy_is_measurable
from compressor.measurement.suite import calibration_of
from compressor.methods.surgery import adapter_of_type
from compressor.pipeline.layout import (
    RunState,
    StepState,
    finished,
    partial_folder,
    publish,
    reserved,
    set_aside,
    stage_folder,
)
from compressor.pipeline.memory import put_in_files
from compressor.pipeline.plan import MODEL, Judged, Plan, Step, brings_student, make_plan, needed_for
from compressor.schema.events import (
    Emit,
    Note,
    RunFinished,
    RunStarted,
    StageFinished,
    StageSkipped,
    StageStarted,
)
from compressor.schema.report import EnergyFigure, Report, StageCost, write_report
from compressor.spec.load import load_pipeline
from compressor.spec.pipeline import Pipeline
from compressor.spec.sources import ModelSource, TokenizerSource
from compressor.spec.stages import Distill, Finetune, Prune, Stage, Tune
from compressor.spec.tasks import TASKS, TaskName
from compressor.stages.context import StageContext, StageInputs
from compressor.stages.dispatch import run_stage, stage_version
from compressor.stages.source import SOURCE_VERSION, make_source, prompt_texts, source_identity

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from compressor.measurement.cost_basis import CostBasis

Metric = Callable[[Any, Any], float]


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        run_dir: its folder.
        checkpoints: step id -> checkpoint, in the order in which they were made.
        report: None when the run was told to stop early (`until`).
    """

    run_dir: Path
    checkpoints: Mapping[str, Checkpoint]
    report: Report | None

    @property
    def selected(self) -> Checkpoint | None:
        """The checkpoint of the winning candidate, if there is one."""
        if self.report is None or self.report.selected is None:
            return None
        return self.checkpoints[self.report.candidate(self.report.selected).stage]


def run(
    pipeline: Pipeline | Mapping[str, Any] | Path | str,
    *,
    out: Path | str | None = None,
    overrides: Sequence[str] = (),
    until: str | None = None,
    force: Sequence[str] = (),
    require: Literal["measured"] | None = None,
    model: nn.Module | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    data: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    on_event: Emit | None = None,
) -> RunResult:
    """Take a model through the stages of a pipeline and judge every candidate.

    Args:
        pipeline: a YAML file, its content, or a validated `Pipeline`.
        out: the run's folder; `runs/<name>` where absent. The same folder again resumes.
        overrides: `a.b=c` changes to the YAML, as `--set` takes them.
        until: stop after this stage; no report is written.
        force: stages to do again although a finished checkpoint is there.
        require: `measured` refuses to start where energy can only be estimated.
        model: a live model in place of the one the pipeline names; needs `tokenizer`.
        tokenizer: the tokenizer that goes with `model`.
        data: split name -> rows (a `datasets.Dataset`, a list of dicts, a data frame) in place of files.
        metrics: further quality metrics: name -> f(predictions, references) -> float.
        on_event: called with each event of `compressor.schema.events`.

    Raises:
        PipelineError: the pipeline is wrong; nothing was done.
        ProvenanceError: measured energy was required and there is none to be had.
        UserError: a calibration that is not of this machine; nothing was done.
        CompressorError: a stage or the judging failed; finished stages are kept.
        InterruptedRunError: stopped by the user; run the same again to go on.
    """
    emit = on_event or (lambda event: None)
    if not isinstance(pipeline, Pipeline):
        # What is given in memory stands where the pipeline would name a file.
        in_memory = [f"data.{split}={{path: in memory}}" for split in data or ()]
        pipeline = load_pipeline(pipeline, overrides=[*overrides, *in_memory], metrics=tuple(metrics or ()))
    validated = pipeline
    run_dir = Path(out) if out is not None else Path("runs") / validated.name
    validated = put_in_files(validated, run_dir, model=model, tokenizer=tokenizer, data=data)
    check_energy_is_measurable(validated, require=require)
    validated = _with_prompts(validated, emit)
    stage_data = check_splits(validated)
    calibration = calibration_of(validated.energy)
    plan = make_plan(validated)
    steps = needed_for(plan, _known_stage(plan, until))
    forced = {_known_stage(plan, stage) for stage in force}
    state = _new_state(validated, steps)
    _make_run_folder(run_dir)
    emit(RunStarted(pipeline=validated.name, run_dir=str(run_dir), stages=tuple(step.id for step in state.steps)))
    try:
        with reserved(run_dir), full_disk_named(run_dir):
            session = _Session(validated, plan, run_dir, state, stage_data, calibration, emit)
            checkpoints, skipped = _run_steps(session, steps, forced)
            report = _judge(session, steps, checkpoints, skipped, metrics) if until is None else None
        state.status = "finished"
        return RunResult(run_dir=run_dir, checkpoints=checkpoints, report=report)
    except KeyboardInterrupt:
        state.status = "interrupted"
        raise InterruptedRunError(
            f"stopped; finished stages are kept in {run_dir}", hint="run the same command again to go on"
        ) from None
    except CompressorError:
        state.status = "failed"
        raise
    finally:
        # A workflow engine cancels with an exception of its own; whatever came through, nothing runs any more.
        state.stopped()
        state.write(run_dir)


def _with_prompts(pipeline: Pipeline, emit: Emit) -> Pipeline:
    """The pipeline with an embedder's prompts as texts; says which one the model itself puts before every text."""
    prompts = prompt_texts(pipeline.model, pipeline.data.prompts)
    if not prompts:
        return pipeline
    if pipeline.data.prompts is None:
        text = f"the model's default prompt {prompts['text']!r} goes before every text (data.prompts: {{}} puts none)"
        emit(Note(MODEL, text))
    return pipeline.model_copy(update={"data": pipeline.data.model_copy(update={"prompts": prompts})})


@dataclass(frozen=True)
class _Session:
    """What stays the same through one run."""

    pipeline: Pipeline
    plan: Plan
    run_dir: Path
    state: RunState
    data: StageData
    calibration: energy.Calibration | None
    emit: Emit


@dataclass(frozen=True)
class _Work:
    """One checkpoint to make, or to find made."""

    id: str
    kind: str
    fingerprint: str
    scratch: bool
    force: bool
    make: Callable[[Path, StageContext], Checkpoint]


def _make_run_folder(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder of the run: {error.strerror}",
            where=str(run_dir),
            hint="name another with --out: a folder, new or of an earlier run, on a disk that can be written",
        ) from error


def _run_steps(
    session: _Session, steps: Sequence[Step], forced: set[str | None]
) -> tuple[dict[str, Checkpoint], set[str]]:
    """Make every checkpoint, in order; returns them and the ids of those that were there already."""
    checkpoints: dict[str, Checkpoint] = {}
    skipped: set[str] = set()
    checkpoints[MODEL], _ = _make_or_find(session, _source_work(session))
    _check_architecture(steps, checkpoints[MODEL])
    for step in steps:
        if brings_student(step.config):
            work = _student_work(session, step, checkpoints)
            checkpoints[work.id], _ = _make_or_find(session, work)
        work = _step_work(session, step, checkpoints, force=step.id in forced)
        checkpoints[step.id], found = _make_or_find(session, work)
        if found:
            skipped.add(step.id)
    return checkpoints, skipped


def _check_architecture(steps: Sequence[Step], model: Checkpoint) -> None:
    """Refuse a model that a later stage cannot prune, before hours of training have gone into it.

    Raises:
        UnsupportedError: its type has no adapter; the supported ones are named.
    """
    for step in steps:
        if isinstance(step.config, Prune):
            adapter_of_type(model.content.model_type, where=f"stage {step.id}")


def _source_work(session: _Session) -> _Work:
    """The checkpoint of the pipeline's `model`."""
    return _model_work(session, MODEL, session.pipeline.model)


def _student_work(session: _Session, step: Step, checkpoints: Mapping[str, Checkpoint]) -> _Work:
    """The checkpoint of a distillation's `student`: for the same task, with the teacher's classes and tokenizer."""
    assert isinstance(step.config, Distill) and step.config.student is not None and step.teacher is not None
    teacher, student = checkpoints[step.teacher], step.config.student
    tokenizer = TokenizerSource(path=str(teacher.path)) if student.config is not None else None
    model = ModelSource(
        task=session.pipeline.model.task, labels=teacher.content.labels, tokenizer=tokenizer, **dict(student)
    )
    return _model_work(session, step.source, model, teacher if TASKS[model.task].kind == "embedding" else None)


def _model_work(session: _Session, step_id: str, model: ModelSource, pools_like: Checkpoint | None = None) -> _Work:
    trains_tokenizer = model.tokenizer is not None and model.tokenizer.vocab_size is not None
    return _Work(
        id=step_id,
        kind="source",
        fingerprint=fingerprint(
            kind="source",
            version=SOURCE_VERSION,
            config=model.model_dump(
                exclude={"how_to_get": True, "tokenizer": {"path"}}
            ),  # the files count, not where they lie
            inputs={"source": source_identity(model)} | ({"pools_like": pools_like.digest} if pools_like else {}),
            data={"train": session.data.digests["train"]} if trains_tokenizer else {},
            versions=library_versions(),
            seed=session.pipeline.seed,
        ),
        scratch=False,
        force=False,
        make=lambda out_dir, ctx: make_source(model, out_dir, ctx, pools_like=pools_like.path if pools_like else None),
    )


def _step_work(session: _Session, step: Step, checkpoints: Mapping[str, Checkpoint], *, force: bool) -> _Work:
    """The checkpoint of one stage. Everything it depends on is in the fingerprint."""
    pipeline = session.pipeline
    inputs = StageInputs(
        source=checkpoints[step.source], teacher=checkpoints[step.teacher] if step.teacher is not None else None
    )
    costs = _costs(session, step, inputs.source)
    return _Work(
        id=step.id,
        kind=step.config.stage,
        fingerprint=fingerprint(
            kind=step.config.stage,
            version=stage_version(step.config),
            config={
                "stage": step.config.model_dump(by_alias=True),
                **_tables(step.config),
                **({} if costs is None else {"costs": costs.digest()}),
                "task": pipeline.model.task,
                "labels": pipeline.model.labels,
                "max_tokens": pipeline.data.max_tokens,
                "calibration_rows": pipeline.data.calibration_rows,
            },
            inputs=inputs.digests() | _files_named(step.config, pipeline.model.task),
            data=session.data.digests,
            versions=library_versions(),
            seed=pipeline.seed,
        ),
        scratch=step.scratch,
        force=force,
        make=lambda out_dir, ctx: run_stage(step.config, inputs, out_dir, replace(ctx, costs=costs)),
    )


def _costs(session: _Session, step: Step, source: Checkpoint) -> CostBasis | None:
    """The measured costs that a stage chooses by: a saved input like a table in a file, made where it is missing."""
    if not isinstance(step.config, Prune) or step.config.budget is None or not step.config.budget.is_measured:
        return None
    from compressor.stages.costing import cost_basis  # brings torch

    pipeline = session.pipeline
    try:
        return cost_basis(
            step.config,
            source,
            workloads=pipeline.workloads,
            data=session.data,
            task=TASKS[pipeline.model.task],
            max_tokens=pipeline.data.max_tokens,
            target=pipeline.target,
            calibration=session.calibration,
            emit=session.emit,
        )
    except CompressorError as error:
        error.where = f"stage {step.id}" if error.where is None else error.where
        raise


def _tables(config: Stage) -> dict[str, str]:
    """Digests of the saved tables that a stage is given: with these, what it makes no longer depends on a clock.

    Raises:
        UserError: there is no such file.
    """
    if not isinstance(config, Tune) or config.table is None:
        return {}
    path = Path(config.table)
    if not path.is_file():
        raise UserError("no such tuning table", where=f"stages.{config.id}.table", hint=f"check the path {path}")
    return {"table": sha256_file(path)}


def _files_named(config: Stage, task: TaskName) -> dict[str, str]:
    """Digests of what a stage's settings name by its path."""
    augment = config.training.augment if isinstance(config, Distill | Finetune) else None
    return {} if augment is None else {"augment": source_identity(ModelSource(task=task, path=augment.model))}


def _make_or_find(session: _Session, work: _Work) -> tuple[Checkpoint, bool]:
    """Make a checkpoint unless a verified one with this fingerprint is there; says which it was."""
    state = session.state.step(work.id)
    folder = stage_folder(session.run_dir, work.id, work.fingerprint, scratch=work.scratch)
    state.folder, state.fingerprint = str(folder.relative_to(session.run_dir)), work.fingerprint
    if work.force and folder.exists():
        set_aside(folder)
    found = finished(folder, work.fingerprint)
    if found is not None:
        state.status, state.digest = "skipped", found.digest
        session.state.write(session.run_dir)
        session.emit(StageSkipped(stage=work.id, path=str(folder)))
        return found, True
    state.status = "running"
    session.state.write(session.run_dir)
    try:
        session.emit(StageStarted(stage=work.id, kind=work.kind))
        with full_disk_named(folder), partial_folder(folder) as (out_dir, workdir):
            work.make(out_dir, _context(session, work.fingerprint, workdir))
            checkpoint = publish(folder)
    except KeyboardInterrupt:
        state.status = "interrupted"
        raise
    except CompressorError as error:
        error.where = error.where or f"stage {work.id}"  # what a method raises knows no stage
        state.status, state.error = "failed", str(error)
        raise
    state.status, state.digest = "finished", checkpoint.digest
    session.state.write(session.run_dir)
    record = checkpoint.record
    session.emit(StageFinished(stage=work.id, path=str(folder), wall_s=record.wall_s, cpu_s=record.cpu_s))
    return checkpoint, False


def _context(session: _Session, identity: str, workdir: Path) -> StageContext:
    pipeline = session.pipeline
    return StageContext(
        data=session.data,
        task=TASKS[pipeline.model.task],
        labels=pipeline.model.labels,
        max_tokens=pipeline.data.max_tokens,
        calibration_rows=pipeline.data.calibration_rows,
        seed=pipeline.seed,
        target=pipeline.target,
        fingerprint=identity,
        versions=library_versions(),
        emit=session.emit,
        workdir=workdir,
        cache_dir=session.run_dir / "cache",
        calibration=session.calibration,
    )


def _judge(
    session: _Session,
    steps: Sequence[Step],
    checkpoints: Mapping[str, Checkpoint],
    skipped: set[str],
    metrics: Mapping[str, Metric] | None,
) -> Report:
    """Judge every candidate and write the report."""
    report = judge(
        session.pipeline,
        [_candidate_spec(judged, checkpoints[judged.step]) for judged in session.plan.candidates],
        baseline=session.plan.baseline,
        stage_costs=[_stage_cost(checkpoints[step.id], skipped=step.id in skipped) for step in steps],
        failures=(),
        run_dir=session.run_dir,
        metrics=metrics,
        emit=session.emit,
    )
    path = session.run_dir / "report.json"
    write_report(report, path)
    for step in steps:
        if not step.scratch:
            write_certificates(report, checkpoints[step.id])
    session.state.report = path.name
    session.emit(RunFinished(report_path=str(path), selected=report.selected))
    return report


def _candidate_spec(judged: Judged, checkpoint: Checkpoint) -> CandidateSpec:
    own = [variant.id for variant in checkpoint.content.variants if variant.stage == judged.step]
    return CandidateSpec(
        id=judged.id, stage=judged.step, checkpoint=checkpoint, variant_id=own[-1], scratch=judged.scratch
    )


def _stage_cost(checkpoint: Checkpoint, *, skipped: bool) -> StageCost:
    record = checkpoint.record
    return StageCost(
        stage=record.stage,
        wall_s=record.wall_s,
        cpu_s=record.cpu_s,
        energy=EnergyFigure(result=record.energy, reason=record.energy_reason),
        skipped=skipped,
    )


def _known_stage(plan: Plan, stage: str | None) -> str | None:
    known = [step.id for step in plan.steps if not step.scratch]
    if stage is not None and stage not in known:
        raise UserError(f"this pipeline has no stage {stage!r}", hint=f"its stages are: {', '.join(known)}")
    return stage


def _new_state(pipeline: Pipeline, steps: Sequence[Step]) -> RunState:
    return RunState(
        name=pipeline.name,
        steps=[
            StepState(id=MODEL, kind="source", scratch=False),
            *(StepState(id=step.source, kind="source", scratch=False) for step in steps if brings_student(step.config)),
            *(StepState(id=step.id, kind=step.config.stage, scratch=step.scratch) for step in steps),
        ],
        pipeline=pipeline.model_dump(mode="json", by_alias=True),
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )
