"""Certify what a report shows: every metric and every label against the baseline, with intervals. Fails closed.

Nothing here measures. A candidate is certified where all of its limits on quality are *met*, which needs the whole 95 %
interval of the difference on the right side; where anything is missing it is not certified, and the reason is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.checkpoints.files import write_whole
from compressor.checkpoints.manifest import CERTIFICATE_NAME
from compressor.checkpoints.store import Checkpoint
from compressor.measurement.goals import find_quality, is_cost, judge_goal
from compressor.measurement.suite import CandidateSpec, Suite
from compressor.schema.certificate import Certificate, CertifiedFigure, CertifiedFile, FolderCertificates
from compressor.schema.report import Candidate, LabelQuality, Quality, Report
from compressor.spec.evaluation import Goal


def with_certificates(report: Report, specs: Sequence[CandidateSpec], suite: Suite) -> Report:
    """The report with a certificate for each candidate that is more than scratch."""
    files = {spec.id: _file(spec) for spec in specs}
    limit = suite.evaluate.max_label_drop_points
    goals = [goal for goal in suite.goals if not is_cost(goal)]
    found = tuple(
        certify_candidate(
            report, one, files=files, goals=goals, max_label_drop_points=limit, machine=_machine(report, one, suite)
        )
        for one in report.candidates
        if not one.scratch
    )
    return report.model_copy(update={"certificates": found})


def certify_candidate(
    report: Report,
    candidate: Candidate,
    *,
    files: Mapping[str, CertifiedFile],
    goals: Sequence[Goal],
    max_label_drop_points: float | None,
    machine: Mapping[str, Any],
) -> Certificate:
    """What the report shows of one candidate, held to the limits.

    Args:
        files: candidate id -> its file; the baseline's among them.
        goals: limits on quality.
        max_label_drop_points: how many points of recall each label may lose; None where labels are only told.
        machine: where it was judged.
    """
    base = next((one for one in report.candidates if one.id == report.baseline), None)
    figures: list[CertifiedFigure] = []
    for row in candidate.quality:
        own = None if base is None else find_quality(base, row.metric)
        figures.append(_figure(report, row, own, candidate, base, goals))
        figures += [_label_figure(label, own, max_label_drop_points) for label in row.labels]
    reasons = _reasons(report, candidate, base, goals, figures, machine)
    if (
        max_label_drop_points is not None
        and candidate.id != report.baseline
        and all(one.label is None for one in figures)
    ):
        reasons.append("its labels were not judged one by one")
    limits = [goal.model_dump(exclude_none=True) for goal in goals]
    if max_label_drop_points is not None:
        limits.append({"max_label_drop_points": max_label_drop_points})
    return Certificate(
        certified=not reasons,
        reasons=tuple(reasons),
        of=files[candidate.id],
        baseline=files.get(report.baseline),
        figures=tuple(figures),
        limits=tuple(limits),
        data=dict(report.data.get("test", {})),
        machine=dict(machine),
        created=report.created,
    )


def _figure(
    report: Report,
    row: Quality,
    own: Quality | None,
    candidate: Candidate,
    base: Candidate | None,
    goals: Sequence[Goal],
) -> CertifiedFigure:
    limits = [goal for goal in goals if goal.metric == row.metric]
    results = [judge_goal(goal, candidate, base, "", {}) for goal in limits] if base is not None else []
    # The worst of several limits on one metric.
    worst = max(results, key=lambda result: ("met", "not_shown", "missed").index(result.status), default=None)
    paired = row.paired
    return CertifiedFigure(
        metric=row.metric,
        label=None,
        n=row.n,
        value=row.value,
        baseline=None if own is None else own.value,
        delta=None if paired is None else paired.delta,
        delta_low=None if paired is None else paired.ci95.low,
        delta_high=None if paired is None else paired.ci95.high,
        limit=None if worst is None else worst.text,
        status="no limit" if worst is None else worst.status,
    )


def _label_figure(label: LabelQuality, base: Quality | None, limit: float | None) -> CertifiedFigure:
    own = next((one for one in base.labels if one.label == label.label), None) if base is not None else None
    paired = label.paired
    status: Any = "no limit"
    if limit is not None:
        low, high = (None, None) if paired is None else (100 * paired.ci95.low, 100 * paired.ci95.high)
        if low is None or high is None:
            status = "not_shown"
        else:
            status = "met" if low >= -limit else "missed" if high < -limit else "not_shown"
    return CertifiedFigure(
        metric="recall",
        label=label.label,
        n=label.n,
        value=label.recall,
        baseline=None if own is None else own.recall,
        delta=None if paired is None else paired.delta,
        delta_low=None if paired is None else paired.ci95.low,
        delta_high=None if paired is None else paired.ci95.high,
        limit=None if limit is None else f"at most {limit:g} points below the baseline",
        status=status,
    )


def _reasons(
    report: Report,
    candidate: Candidate,
    base: Candidate | None,
    goals: Sequence[Goal],
    figures: Sequence[CertifiedFigure],
    machine: Mapping[str, Any],
) -> list[str]:
    """Everything that stands against a certificate."""
    reasons = []
    if base is None:
        reasons.append(f"the baseline {report.baseline} could not be judged")
    if candidate.id == report.baseline:
        reasons.append("it is the baseline itself: there is nothing that it could have kept or lost")
        return reasons
    if not goals:
        reasons.append("it was held to no limit on quality (goals: in the pipeline)")
    if not candidate.quality:
        reasons.append("its quality was not judged")
    judged = {row.metric for row in candidate.quality}
    reasons += [f"{goal.metric} was not judged" for goal in goals if goal.metric not in judged]
    for one in figures:
        name = one.metric if one.label is None else f"{one.metric} of {one.label!r}"
        if one.label is not None and one.n == 0:
            reasons.append(f"no test row has the label {one.label!r}")
        elif one.status in ("missed", "not_shown"):
            reasons.append(f"{name}: {one.status.replace('_', ' ')} ({one.limit})")
    reasons += [f"failed: {one.text}" for one in report.failures if one.where == candidate.id]
    reasons += [f"unknown: {key}" for key in ("cpu", "runtime") if not machine.get(key)]
    if not report.data.get("test", {}).get("digest"):
        reasons.append("the rows that it was judged on have no digest")
    return reasons


def _file(spec: CandidateSpec) -> CertifiedFile:
    variant = spec.checkpoint.variant(spec.variant_id)
    return CertifiedFile(
        candidate=spec.id,
        variant=variant.id,
        file=variant.path,
        sha256=spec.checkpoint.content.files[variant.path].sha256,
        checkpoint=spec.checkpoint.digest,
    )


def _machine(report: Report, candidate: Candidate, suite: Suite) -> dict[str, Any]:
    here = report.environment
    version = here.get("versions", {}).get(candidate.runtime)
    return {
        "cpu": here.get("cpu"),
        "cpu_family": here.get("cpu_family"),
        "cpu_flags": here.get("cpu_flags", []),
        "runtime": None if version is None else f"{candidate.runtime} {version}",
        "provider": suite.target.provider if candidate.runtime == "onnxruntime" else None,
        "device": suite.target.device,
        "threads": suite.threads,
        "platform": here.get("platform"),
    }


def folder_certificates(report: Report, checkpoint: Checkpoint) -> tuple[Certificate, ...]:
    """The certificates that speak of files of this checkpoint, whichever stage carried them here."""
    there = {entry.sha256 for entry in checkpoint.content.files.values()}
    found = {one.of.sha256: one for one in report.certificates if one.of.sha256 in there}
    return tuple(found.values())


def write_certificates(report: Report, checkpoint: Checkpoint) -> Path | None:
    """Put `certificate.json` beside a checkpoint's manifest; None where the report has nothing to say of it."""
    found = folder_certificates(report, checkpoint)
    if not found:
        return None
    path = checkpoint.path / CERTIFICATE_NAME
    write_whole(path, FolderCertificates(certificates=found).model_dump_json(by_alias=True, indent=1) + "\n")
    return path


def certificate_of(report: Report, candidate: str) -> Certificate | None:
    """The certificate of a candidate; None in a report that was written before there were any."""
    return next((one for one in report.certificates if one.of.candidate == candidate), None)
