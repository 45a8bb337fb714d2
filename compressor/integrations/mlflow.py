"""A finished run in MLflow 3: one run, and in it one LoggedModel per candidate, all with the same metric names.

Checkpoints are logged as plain artifacts: MLflow's transformers flavour is tested with older releases than ours.
Estimates keep `est_` in their key, so that no chart can take one for a measurement.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from compressor.errors import MissingPackageError
from compressor.integrations.energy_facts import PER_REQUESTS, inference
from compressor.schema.report import Candidate, Report


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


def log_report(report: Report, run_dir: Path, *, tracking_uri: str, experiment: str = "joule-compressor") -> str:
    """Log a finished run with its report and checkpoints; returns the id of the MLflow run.

    Raises:
        MissingPackageError: MLflow is not installed.
    """
    client = _client(tracking_uri)
    found = client.get_experiment_by_name(experiment)
    experiment_id = client.create_experiment(experiment) if found is None else found.experiment_id
    run_id: str = client.create_run(experiment_id, run_name=report.name).info.run_id
    for key, value in {"baseline": report.baseline, "selected": report.selected or "nothing"}.items():
        client.set_tag(run_id, key, value)
    client.log_artifact(run_id, str(run_dir / "report.json"))
    for candidate in report.candidates:
        model_id = _log_candidate(client, experiment_id, run_id, candidate, run_dir)
        if candidate.id == report.selected:
            client.set_tag(run_id, "selected_model_id", model_id)
    client.set_terminated(run_id)
    return run_id


def _log_candidate(client: Any, experiment_id: str, run_id: str, candidate: Candidate, run_dir: Path) -> str:
    # MLflow refuses these characters in the name of a model.
    name = candidate.id.replace("@", "-").replace("/", "-").replace(":", "-").replace(".", "-")
    params = {"scheme": candidate.scheme, "runtime": candidate.runtime, "variant": candidate.variant}
    model = client.create_logged_model(
        experiment_id, name=name, source_run_id=run_id, params=params, tags={"digest": candidate.digest}
    )
    for key, value in candidate_metrics(candidate).items():
        client.log_metric(run_id, key, value, model_id=model.model_id)
    folder = run_dir / candidate.checkpoint
    if folder.is_dir() and not candidate.scratch:
        client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _client(tracking_uri: str) -> Any:
    try:
        mlflow = importlib.import_module("mlflow")
    except ModuleNotFoundError:
        raise MissingPackageError("mlflow", extra="mlflow", needed_for="logging to MLflow") from None
    return mlflow.MlflowClient(tracking_uri=tracking_uri)
