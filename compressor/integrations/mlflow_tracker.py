"""A finished run in MLflow 3: one run, and in it one LoggedModel per candidate, all with the same metric names.

ONNX files go through `mlflow.onnx`, so that `mlflow.onnx.load_model` opens them; the checkpoint lies beside as plain
artifacts. MLflow's transformers flavour is tested with older releases than ours, so it takes no part.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compressor.checkpoints.files import link_or_copy
from compressor.checkpoints.manifest import CERTIFICATE_NAME, MANIFEST_NAME
from compressor.errors import MissingPackageError
from compressor.integrations.tracking import Logged
from compressor.schema.report import Report

REFUSED = "@/:.%\"'"
"""Characters that MLflow refuses in the name of a model."""


class MlflowTracker:
    """MLflow behind `tracking.Tracker`.

    Args:
        uri: tracking address, such as `sqlite:///mlflow.db`; MLflow's own setting where absent.
        experiment: made where there is none.

    Raises:
        MissingPackageError: MLflow is not installed.
    """

    def __init__(self, uri: str | None, experiment: str) -> None:
        self.client = _module("mlflow").MlflowClient(tracking_uri=uri)
        self.experiment = experiment

    def log(self, report: Report, candidates: Sequence[Logged], files: Sequence[Path]) -> str:
        """Log a run; returns the id of the MLflow run."""
        client = self.client
        found = client.get_experiment_by_name(self.experiment)
        experiment_id = client.create_experiment(self.experiment) if found is None else found.experiment_id
        run_id: str = client.create_run(experiment_id, run_name=report.name).info.run_id
        for key, value in {"baseline": report.baseline, "selected": report.selected or "nothing"}.items():
            client.set_tag(run_id, key, value)
        for file in files:
            client.log_artifact(run_id, str(file))
        for one in candidates:
            model_id = self._log_model(experiment_id, run_id, one)
            if one.is_selected:
                client.set_tag(run_id, "selected_model_id", model_id)
        client.set_terminated(run_id)
        return run_id

    def _log_model(self, experiment_id: str, run_id: str, one: Logged) -> str:
        name = "".join("-" if character in REFUSED else character for character in one.id)
        model = self.client.create_logged_model(
            experiment_id,
            name=name,
            source_run_id=run_id,
            params=dict(one.params),
            tags={"digest": one.params["digest"]},
        )
        for key, value in one.metrics.items():
            self.client.log_metric(run_id, key, value, model_id=model.model_id)
        with tempfile.TemporaryDirectory() as folder:
            if _write_model(one, Path(folder) / "model"):
                self.client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
        self.client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)


def _write_model(one: Logged, out: Path) -> bool:
    """The folder that MLflow keeps: its own ONNX layout where there is a graph, and our checkpoint below it."""
    if one.checkpoint is None or one.file is None:
        return False
    if one.file.suffix == ".onnx":
        graph = _module("onnx", extra="torch", needed_for="logging an ONNX file to MLflow").load(str(one.file))
        _module("mlflow.onnx").save_model(graph, str(out), pip_requirements=["onnxruntime"])
    names = [*one.checkpoint.content.files, MANIFEST_NAME, CERTIFICATE_NAME]
    for name in names:
        if (one.checkpoint.path / name).is_file():
            link_or_copy(one.checkpoint.path / name, out / "checkpoint" / name)
    return True


def _module(name: str, *, extra: str = "mlflow", needed_for: str = "logging to MLflow") -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise MissingPackageError(name.partition(".")[0], extra=extra, needed_for=needed_for) from None
