"""A finished run in an experiment tracker: one small interface, and a class for each tracker behind it.

Every candidate goes in with the same names of metrics, so that a tracker's own charts compare them. What is missing has
no key, and an estimate keeps `est_` in its key: no chart can take it for a measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from compressor.checkpoints.store import Checkpoint, open_checkpoint
from compressor.errors import UserError
from compressor.integrations.energy_facts import PER_REQUESTS, inference
from compressor.measurement.certificate import certificate_of
from compressor.pipeline.reading import report_of_run
from compressor.schema.report import Candidate, Report


@dataclass(frozen=True)
class Logged:
    """One candidate, as every tracker gets it.

    Attributes:
        params: what it is: scheme, runtime, variant, digest, certified.
        metrics: what was measured of it.
        checkpoint: its folder; None for scratch exports, and where it was cleaned away.
        file: its weights or graph in that folder.
        is_selected: whether it is the winner.
    """

    id: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    checkpoint: Checkpoint | None
    file: Path | None
    is_selected: bool


class Tracker(Protocol):
    """What a tracker must be able to do."""

    def log(self, report: Report, candidates: Sequence[Logged], files: Sequence[Path]) -> str:
        """Log a run with its candidates and files; the id or address under which it is found again."""
        ...


def log_run(run_dir: Path, tracker: Tracker) -> str:
    """Log a finished run.

    Raises:
        UserError: no finished run.
        CheckpointError: a checkpoint that is not as its manifest says.
        MissingPackageError: the tracker's package is not installed.
    """
    report = report_of_run(run_dir)
    folder = run_dir if run_dir.is_dir() else run_dir.parent
    files = [folder / "report.json"] if run_dir.is_dir() else [run_dir]
    return tracker.log(report, [_logged(report, one, folder) for one in report.candidates], files)


def open_tracker(to: Literal["mlflow", "wandb"], *, uri: str | None, experiment: str, folder: Path = Path()) -> Tracker:
    """The tracker of a name.

    Args:
        to: which.
        uri: MLflow's tracking address, such as `sqlite:///mlflow.db`; its own setting where absent.
        experiment: MLflow's experiment, or the project of Weights & Biases.
        folder: where Weights & Biases keeps its files.

    Raises:
        MissingPackageError: its package is not installed.
        UserError: an address for a tracker that has none.
    """
    if to == "mlflow":
        from compressor.integrations.mlflow_tracker import MlflowTracker

        return MlflowTracker(uri, experiment)
    if uri is not None:
        raise UserError("Weights & Biases has no --uri", hint="export WANDB_BASE_URL=..., or WANDB_MODE=offline")
    from compressor.integrations.wandb_tracker import WandbTracker

    return WandbTracker(experiment, folder)


def candidate_metrics(candidate: Candidate) -> dict[str, float]:
    """Everything that was measured of a candidate, as `name` or `name/workload/phase`; what is missing has no key."""
    metrics: dict[str, float] = {"size_bytes": candidate.size_bytes, "parameters": candidate.parameters}
    for quality in candidate.quality:
        metrics.setdefault(quality.metric, quality.value)
    for use in inference(candidate):
        row, place = use.row, f"{use.row.workload}/{use.row.phase}"
        if not row.valid:
            continue
        metrics |= {
            f"latency_s_p50/{place}": row.latency_s_p50,
            f"cpu_s_per_token/{place}": row.cpu_s_per_token,
            f"tokens_per_s/{place}": row.tokens_per_s,
        }
        if not isinstance(use.energy, str):
            mark = "est_" if use.energy.kind == "estimated" else ""
            metrics[f"{mark}j_per_{use.unit}/{place}"] = use.energy.j / PER_REQUESTS
    return metrics


def _logged(report: Report, candidate: Candidate, run_dir: Path) -> Logged:
    certificate = certificate_of(report, candidate.id)
    params = {
        "stage": candidate.stage,
        "scheme": candidate.scheme,
        "runtime": candidate.runtime,
        "variant": candidate.variant,
        "digest": candidate.digest,
        "certified": "unknown" if certificate is None else str(certificate.certified).lower(),
    }
    folder = run_dir / candidate.checkpoint
    checkpoint = None if candidate.scratch or not folder.is_dir() else open_checkpoint(folder)
    file = None if checkpoint is None else folder / checkpoint.variant(candidate.variant).path
    is_selected = candidate.id == report.selected
    return Logged(candidate.id, params, candidate_metrics(candidate), checkpoint, file, is_selected)
