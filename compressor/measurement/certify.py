"""`compressor.certify`: judge one file against its baseline again, on this machine, and certify it or say why not."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from compressor.checkpoints.manifest import CERTIFICATE_NAME, Content, Variant
from compressor.errors import UserError
from compressor.measurement.certificate import certificate_of
from compressor.measurement.folders import ROWS, common_task, open_any, open_rows
from compressor.measurement.judge import judge_suite
from compressor.measurement.profiles import PROFILES
from compressor.measurement.suite import CandidateSpec, Suite
from compressor.runtime.choose import choose_variant
from compressor.schema.certificate import Certificate, read_certificates
from compressor.schema.events import Emit, Note
from compressor.spec.evaluation import Evaluate, Goal, Target

BASELINE, FILE = "baseline", "file"


def certify(
    path: str | Path,
    *,
    baseline: str | Path,
    data: Any,
    columns: Mapping[str, str] | None = None,
    goals: Sequence[Goal | Mapping[str, Any]] = (),
    max_label_drop_points: float | None = None,
    precision: str | None = None,
    baseline_precision: str | None = None,
    evaluate: Evaluate | Mapping[str, Any] | None = None,
    target: Target | Mapping[str, Any] | None = None,
    max_tokens: int = 128,
    out: str | Path | None = None,
    on_event: Emit | None = None,
) -> Certificate:
    """Hold one file of a checkpoint against its baseline on the same rows, here.

    Integer kernels differ between processors and runtimes, so a certificate of another machine is a claim; this repeats
    it. Without limits of its own it takes those that the folder's certificate was held to.

    Args:
        path: a checkpoint folder, a plain Hugging Face folder, or a hub name.
        baseline: what it is held against; of the same kinds.
        data: the rows: a file, a `DataSource` or its mapping, or rows in memory.
        columns: task column -> column of the data, where they differ.
        goals: limits on quality, as a pipeline's `goals`.
        max_label_drop_points: points of recall that each label may lose.
        precision: which variant, as `compressor.load` takes it.
        baseline_precision: which variant of the baseline; its last one where absent.
        evaluate: rows, context and stride, as a pipeline's `evaluate`.
        target: provider and threads, as a pipeline's `target`.
        max_tokens: longest row in tokens.
        out: folder that keeps the answers for the next time; a temporary one by default.
        on_event: called with each event of `compressor.schema.events`.

    Raises:
        UserError: no limits, no such model or rows, or two models of different tasks.
        CheckpointError: a folder that is corrupt, or has no such variant.
    """
    emit = on_event or (lambda event: None)
    with ExitStack() as stack:
        run_dir = Path(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        one, other = open_any(path, run_dir, 1), open_any(baseline, run_dir, 0)
        task, labels = common_task([other, one])
        variant = choose_variant(one.content, where=str(path), precision=precision)
        before = _before(one.path, one.content.files[variant.path].sha256)
        limits, label_limit = _limits(goals, max_label_drop_points, before)
        same = _same_file(other.content, before)
        if baseline_precision is None and same is not None:
            base = same
        else:
            base = choose_variant(other.content, where=str(baseline), precision=baseline_precision)
        if before is not None and base is not same:
            text = f"{baseline} ({base.id}) is not the file that the folder's certificate was held against"
            emit(Note(stage="certify", text=text))
        source, test = open_rows(data, task, columns or {}, labels, max_tokens)
        settings = evaluate if isinstance(evaluate, Evaluate) else Evaluate.model_validate(evaluate or {})
        suite = Suite(
            name="certify",
            model=str(baseline),
            seed=0,
            metadata={},
            task=task,
            labels=labels,
            data=source,
            target=target if isinstance(target, Target) else Target.model_validate(target or {}),
            workloads=(ROWS,),
            evaluate=settings.model_copy(update={"max_label_drop_points": label_limit}),
            profile=PROFILES["smoke"],  # a certificate is about quality; cost is measured no longer than it must be
            goals=limits,
            leaves=None,
            pipeline={},
        )
        report = judge_suite(
            suite,
            [
                CandidateSpec(BASELINE, BASELINE, other, base.id, scratch=False),
                CandidateSpec(FILE, FILE, one, variant.id, scratch=False),
            ],
            baseline=BASELINE,
            test=test,
            other_splits={},
            stage_costs=(),
            failures=(),
            run_dir=run_dir,
            metrics={},
            emit=emit,
        )
    found = certificate_of(report, FILE)
    if found is None:
        why = "; ".join(f"{one.where}: {one.text}" for one in report.failures)
        raise UserError(f"the file could not be judged: {why}", where=str(path))
    return found


def _before(folder: Path, sha256: str) -> Certificate | None:
    """The certificate that lies in the folder and speaks of this very file."""
    return next((one for one in read_certificates(folder / CERTIFICATE_NAME) if one.of.sha256 == sha256), None)


def _same_file(content: Content, before: Certificate | None) -> Variant | None:
    """The variant that the certificate was held against."""
    if before is None or before.baseline is None:
        return None
    sha256 = before.baseline.sha256
    return next((one for one in content.variants if content.files[one.path].sha256 == sha256), None)


def _limits(
    goals: Sequence[Goal | Mapping[str, Any]], max_label_drop_points: float | None, before: Certificate | None
) -> tuple[tuple[Goal, ...], float | None]:
    """The limits to hold to: those given, else those of the certificate.

    Raises:
        UserError: neither.
    """
    given = tuple(goal if isinstance(goal, Goal) else Goal.model_validate(goal) for goal in goals)
    if given:
        return given, max_label_drop_points
    kept = () if before is None else before.limits
    found = tuple(Goal.model_validate(limit) for limit in kept if "metric" in limit)
    if not found:
        raise UserError(
            "there is no limit on quality to hold it to",
            hint="give one: --max-drop accuracy=1.0 (points) or --min-retained accuracy=0.97 (a share)",
        )
    own = next((float(limit["max_label_drop_points"]) for limit in kept if "max_label_drop_points" in limit), None)
    return found, max_label_drop_points if max_label_drop_points is not None else own
