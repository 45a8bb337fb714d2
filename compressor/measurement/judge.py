"""Judge candidates: quality on the test split, cost in sessions, goals, the winner, verdicts. One function, one report.

The only room that opens the test split. A candidate that fails is told in `failures`; the others' results are kept.
"""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from compressor.checkpoints.store import Checkpoint
from compressor.data.splits import StageData, TestData, drop_leaks, find_leaks, open_stage_data, open_test_data
from compressor.data.tokenize import load_tokenizer
from compressor.errors import EnergyError, UserError
from compressor.measurement.answers import Answering, Answers, collect_answers
from compressor.measurement.assemble import assemble, candidate_of, headline_of, session_records
from compressor.measurement.certificate import with_certificates
from compressor.measurement.costs import measurement_of
from compressor.measurement.doors import with_doors
from compressor.measurement.encoder_rows import prepare_encoder_rows
from compressor.measurement.environment import read_environment
from compressor.measurement.gates import hold_readings, hold_to_gates
from compressor.measurement.inputs import (
    DECODE_PATH_TOKENS,
    PreparedRows,
    prepare_windows,
    prepare_workload,
)
from compressor.measurement.labels import with_labels
from compressor.measurement.quality import (
    Judged,
    Metric,
    choose_metrics,
    judge_decode_path,
    judge_labels,
    judge_tokens,
)
from compressor.measurement.session import Session, find_meters, run_sessions
from compressor.measurement.suite import CandidateSpec, Suite, suite_of
from compressor.measurement.task_quality import judge_task
from compressor.measurement.vocabularies import ROW_ANSWERS, Vocabulary, in_own_ids, vocabularies_of
from compressor.measurement.workers import Job
from compressor.schema.events import CandidateMeasured, Emit, Note
from compressor.schema.report import Failure, Measurement, Quality, Report, StageCost
from compressor.spec.pipeline import Pipeline
from compressor.spec.tasks import TASKS

__all__ = ["CandidateSpec", "Suite", "judge", "judge_suite", "suite_of"]


def judge(
    pipeline: Pipeline,
    candidates: Sequence[CandidateSpec],
    *,
    baseline: str,
    stage_costs: Sequence[StageCost],
    failures: Sequence[Failure],
    run_dir: Path,
    metrics: Mapping[str, Metric] | None,
    emit: Emit,
) -> Report:
    """Judge the candidates of a pipeline.

    Args:
        pipeline: its data, workloads, goals.
        candidates: what to judge; the baseline among them.
        baseline: id of the candidate that the others are held against.
        stage_costs: what the stages took, for the report.
        failures: what failed before, for the report.
        run_dir: takes the cache of answers.
        metrics: the user's own: name -> f(predictions, references).
        emit: told of progress.

    Raises:
        DataError: the test split cannot be read, or shares rows with another split.
        UserError: an unknown metric, too little text for a workload, or a joule goal that only an estimate could judge.
    """
    suite = suite_of(pipeline)
    stages_saw, test = _open_all_splits(pipeline)
    return judge_suite(
        suite,
        candidates,
        baseline=baseline,
        test=test,
        other_splits=dict(stages_saw.digests),
        stage_costs=stage_costs,
        failures=failures,
        run_dir=run_dir,
        metrics=metrics or {},
        emit=emit,
    )


def check_splits(pipeline: Pipeline) -> StageData:
    """Read every split before any work: a run of hours should not end on a test file that is missing or leaks.

    Returns:
        What stages may see: all of it but the test split.

    Raises:
        DataError: a split cannot be read, or the test split shares rows with another.
    """
    return _open_all_splits(pipeline)[0]


def _open_all_splits(pipeline: Pipeline) -> tuple[StageData, TestData]:
    task, labels = TASKS[pipeline.model.task], pipeline.model.labels
    stages_saw = open_stage_data(pipeline.data, task, labels, pipeline.seed)
    test = open_test_data(pipeline.data, task, labels)
    if pipeline.data.leaks == "drop":
        stages_saw = drop_leaks(stages_saw, test)
    find_leaks(stages_saw, test)
    return stages_saw, test


def judge_suite(
    suite: Suite,
    candidates: Sequence[CandidateSpec],
    *,
    baseline: str,
    test: TestData,
    other_splits: Mapping[str, str],
    stage_costs: Sequence[StageCost],
    failures: Sequence[Failure],
    run_dir: Path,
    metrics: Mapping[str, Metric],
    emit: Emit,
) -> Report:
    """As `judge`, for a suite that need not come from a pipeline."""
    meters = find_meters()
    names = choose_metrics(suite.task, suite.evaluate.metrics, metrics, test.rows)
    judged = Judged(test.name, baseline, suite.seed, names, metrics)
    environment = read_environment()
    run_dir.mkdir(parents=True, exist_ok=True)
    jobs = {spec.id: partial(_job, spec, suite) for spec in candidates}
    with tempfile.TemporaryDirectory(dir=run_dir, prefix="measuring-") as folder:
        work = _Work(suite, tuple(candidates), baseline, test, jobs, run_dir, Path(folder), emit)
        alive, quality, lost = _judge_quality(work, judged)
        sessions, lost_in_costs = _measure_costs(work, alive, meters)
        measurements, unresolved = _measurements(work, alive, sessions)
    found = tuple(candidate_of(spec, run_dir, quality[spec.id], measurements[spec.id]) for spec in alive)
    for one in found:
        emit(CandidateMeasured(candidate=one.id, values=headline_of(one)))
    environment |= {"threads": suite.threads, "sessions": session_records(sessions, baseline, suite.seed)}
    report = assemble(
        suite,
        found,
        baseline=baseline,
        environment=environment,
        data={
            "test": {"name": test.name, "digest": test.digest, "rows": len(test.rows)},
            **{split: {"digest": digest} for split, digest in other_splits.items()},
        },
        stage_costs=tuple(stage_costs),
        failures=(*failures, *lost, *lost_in_costs, *unresolved),
        sessions=sessions,
    )
    return with_doors(with_certificates(report, alive, suite), alive)


@dataclass(frozen=True)
class _Work:
    """What stays the same through one judging."""

    suite: Suite
    candidates: tuple[CandidateSpec, ...]
    baseline: str
    test: TestData
    jobs: Mapping[str, Callable[[int], Job]]
    run_dir: Path
    folder: Path
    emit: Emit


def _job(spec: CandidateSpec, suite: Suite, threads: int) -> Job:
    """A candidate's job: its tuned threads stand in for the suite's, and not for those that a workload asks for."""
    settings = dict(spec.checkpoint.variant(spec.variant_id).settings)
    if threads == suite.threads:
        threads = settings.get("threads", threads)
    return Job(spec.id, spec.checkpoint.path, spec.variant_id, threads, suite.target.provider, settings)


def _one_tokenizer(candidates: Sequence[CandidateSpec], texts: Sequence[str]) -> Any:
    """The tokenizer of all candidates.

    Raises:
        UserError: two candidates split the same text into other tokens, so that costs per token cannot be compared.
    """
    folders: dict[str, Checkpoint] = {}
    for spec in candidates:
        entry = spec.checkpoint.content.files.get("tokenizer.json")
        folders.setdefault(entry.sha256 if entry else str(spec.checkpoint.path), spec.checkpoint)
    first, *others = [load_tokenizer(checkpoint.path) for checkpoint in folders.values()]
    for other, checkpoint in zip(others, list(folders.values())[1:], strict=True):
        if first(list(texts))["input_ids"] != other(list(texts))["input_ids"]:
            raise UserError(
                "its tokenizer splits the test text into other tokens than the first candidate's",
                where=str(checkpoint.path),
                hint="measure them one at a time: costs per token of two tokenizers cannot be compared",
            )
    return first


# Quality -------------------------------------------------------------------------------------------------------------


def _judge_quality(
    work: _Work, judged: Judged
) -> tuple[tuple[CandidateSpec, ...], dict[str, tuple[Quality, ...]], list[Failure]]:
    """Quality of every candidate; those that answered, their rows, and the failures."""
    suite, evaluate = work.suite, work.suite.evaluate
    rows: Dataset = work.test.rows
    if evaluate.rows is not None:
        rows = rows.select(range(min(evaluate.rows, len(rows))))
    parts: list[Answering] = []
    asked: dict[str, tuple[PreparedRows, PreparedRows | None]] = {}
    for number, vocabulary in enumerate(vocabularies_of(work.candidates)):
        folder = work.folder / f"vocabulary-{number}"
        folder.mkdir(exist_ok=True)
        main, decode_path = _questions(work, rows, vocabulary, folder)
        parts.append(Answering(main, vocabulary.candidates))
        if decode_path is not None:
            parts.append(Answering(decode_path, [spec for spec in vocabulary.candidates if _is_dynamic(spec)]))
        asked |= {spec.id: (main, decode_path) for spec in vocabulary.candidates}
    answers, failures = collect_answers(
        parts,
        work.jobs,
        threads=suite.threads,
        cache_dir=work.run_dir / "cache" / "quality",
        workdir=work.folder,
        emit=work.emit,
    )
    alive = tuple(spec for spec in work.candidates if (spec.id, asked[spec.id][0].kind) in answers)
    quality = {}
    for spec in alive:
        main, decode_path = asked[spec.id]
        is_paired = main is asked[work.baseline][0] or suite.task.kind in ROW_ANSWERS
        base = answers.get((work.baseline, main.kind)) if spec.id != work.baseline and is_paired else None
        quality[spec.id] = _quality_rows(judged, work, main, decode_path, spec, answers, base)
        if suite.task.kind == "class" and main.labels is not None:
            logits = answers[spec.id, main.kind]["logits"]
            other = None if base is None else base["logits"].argmax(axis=1)
            names = suite.labels or tuple(str(number) for number in range(logits.shape[1]))
            quality[spec.id] = with_labels(
                quality[spec.id], logits.argmax(axis=1), other, main.labels, names=names, against=work.baseline
            )
    return alive, quality, failures


def _questions(
    work: _Work, rows: Dataset, vocabulary: Vocabulary, folder: Path
) -> tuple[PreparedRows, PreparedRows | None]:
    """The test rows as one vocabulary reads them; for a language model also the part that goes through its cache."""
    suite, evaluate = work.suite, work.suite.evaluate
    tokenizer = _one_tokenizer(vocabulary.candidates, rows["text"][:16])
    if suite.task.is_decoder:
        cut = partial(prepare_windows, rows, tokenizer, context=evaluate.context, stride=evaluate.stride, folder=folder)
        return cut(n_tokens=None), cut(n_tokens=DECODE_PATH_TOKENS)
    return prepare_encoder_rows(
        rows,
        tokenizer,
        suite.task,
        n_classes=len(_classes(work)),
        batch=suite.workloads[0].batch,
        max_tokens=suite.data.max_tokens,
        seed=suite.seed,
        folder=folder,
    ), None


def _is_dynamic(spec: CandidateSpec) -> bool:
    """Whether activations are quantised by what is seen at once, so that the decode path answers otherwise."""
    return spec.checkpoint.variant(spec.variant_id).scheme == "w8a8-dynamic"


def _classes(work: _Work) -> tuple[str, ...]:
    """Names of the head's classes, the pipeline's or the checkpoint's own."""
    return work.suite.labels or work.candidates[0].checkpoint.content.labels or ()


def _quality_rows(
    judged: Judged,
    work: _Work,
    main: PreparedRows,
    decode_path: PreparedRows | None,
    spec: CandidateSpec,
    answers: Mapping[tuple[str, str], Answers],
    baseline: Answers | None,
) -> tuple[Quality, ...]:
    own = answers[spec.id, main.kind]
    task = work.suite.task
    if task.kind == "class":
        return judge_labels(judged, main, own, baseline)
    if not task.is_decoder:
        return judge_task(judged, task, main, own, baseline, _classes(work))
    found = judge_tokens(judged, main, own, baseline)
    if decode_path is not None and (spec.id, decode_path.kind) in answers:
        found = (*found, judge_decode_path(judged, decode_path, answers[spec.id, decode_path.kind], own))
    return found


# Costs ---------------------------------------------------------------------------------------------------------------


def _measure_costs(
    work: _Work, alive: Sequence[CandidateSpec], meters: Sequence[Any]
) -> tuple[list[Session], list[Failure]]:
    suite = work.suite
    if not alive:
        return [], []
    baseline = next((spec for spec in alive if spec.id == work.baseline), alive[0])
    tokenizer, vocabularies = load_tokenizer(baseline.checkpoint.path), vocabularies_of(alive)
    reading = next(one for one in vocabularies if baseline in one.candidates)
    rows = work.test.rows
    planned = [
        (
            in_own_ids(
                prepare_workload(workload, rows, tokenizer, suite.task, suite.data.max_tokens, work.folder),
                vocabularies,
                reading,
                work.folder,
            ),
            workload.threads or suite.threads,
            suite.runs_on(workload, alive, work.baseline),
        )
        for workload in suite.workloads
    ]
    if not meters:
        work.emit(Note(stage="measure", text="no meter here can measure energy: joules are estimates, and say so"))
    sessions, failures = run_sessions(
        work.jobs,
        planned,
        baseline=work.baseline,
        profile=suite.profile,
        seed=suite.seed,
        name=dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ"),
        meters=meters,
        workdir=work.folder,
        emit=work.emit,
    )
    return [hold_readings(session) for session in sessions], failures


def _measurements(
    work: _Work, alive: Sequence[CandidateSpec], sessions: Sequence[Session]
) -> tuple[dict[str, list[Measurement]], list[Failure]]:
    found: dict[str, list[Measurement]] = {spec.id: [] for spec in alive}
    failures = []
    for session in sessions:
        for spec in alive:
            if spec.id not in session.runs:
                continue
            for phase in session.runs[spec.id].turns:
                try:
                    row = measurement_of(
                        spec.id,
                        session,
                        phase,
                        baseline=work.baseline,
                        source=_source_of(spec, alive),
                        profile=work.suite.profile,
                        seed=work.suite.seed,
                        calibration=work.suite.calibration,
                    )
                except EnergyError as error:
                    failures.append(Failure(where=spec.id, error=type(error).__name__, text=str(error)))
                else:
                    found[spec.id].append(_gated(row, spec, work.suite))
    # Sessions run by thread count; a reader looks for the order of the pipeline, whose first workload is the main one.
    order = [workload.id for workload in work.suite.workloads]
    for rows in found.values():
        rows.sort(key=lambda row: order.index(row.workload))
    return found, failures


def _gated(row: Measurement, spec: CandidateSpec, suite: Suite) -> Measurement:
    variant = spec.checkpoint.variant(spec.variant_id)
    on_cpu = suite.target.device == "cpu"
    return hold_to_gates(row, scheme=variant.scheme, parameters=variant.parameters, on_cpu=on_cpu)


def _source_of(spec: CandidateSpec, candidates: Sequence[CandidateSpec]) -> str | None:
    """The fp32 graph that a quantised or converted candidate was made from, where it is a candidate too."""
    variant = spec.checkpoint.variant(spec.variant_id)
    if variant.runtime == "torch" or variant.scheme == "fp32":
        return None
    made_from = spec.checkpoint.record.inputs.get("source")
    for other in candidates:
        candidate = other.checkpoint.variant(other.variant_id)
        is_near = other.checkpoint.digest == made_from or other.checkpoint.path == spec.checkpoint.path
        if is_near and candidate.runtime == variant.runtime and candidate.scheme == "fp32":
            return other.id
    return None
