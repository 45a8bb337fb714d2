"""Trackers: the metrics' names everywhere; a real MLflow on its SQLite store and a real offline W&B where installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finished import finished
from trackers import finished_run

from compressor.errors import MissingPackageError, UserError
from compressor.integrations.tracking import candidate_metrics, log_run, open_tracker
from compressor.schema.report import Report

without_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs the extra [mlflow]")


def test_an_estimate_keeps_its_mark_and_names_are_the_same_for_all() -> None:
    estimated, measured = (candidate_metrics(finished(measured=flag).candidate("int8")) for flag in (False, True))
    assert estimated["est_j_per_request/rows/forward"] == pytest.approx(0.0026666667)
    assert "j_per_request/rows/forward" not in estimated
    assert measured["j_per_request/rows/forward"] == pytest.approx(7.2)
    assert candidate_metrics(finished().candidate("onnx")).keys() == estimated.keys()


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_without_the_package_the_extra_is_named(tracker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)
    monkeypatch.delitem(sys.modules, f"{tracker}.onnx", raising=False)
    with pytest.raises(MissingPackageError, match=rf"pip install 'joule-compressor\[{tracker}\]'"):
        open_tracker(tracker, uri=None, experiment="e")


def test_an_address_is_mlflows_alone() -> None:
    with pytest.raises(UserError, match="Weights & Biases has no --uri"):
        open_tracker("wandb", uri="sqlite:///x.db", experiment="e")


@without_mlflow
def test_a_run_as_mlflow_has_it(tmp_path: Path) -> None:
    import mlflow
    import numpy as np

    run = tmp_path / "run"
    report = Report.model_validate(finished_run(run))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri)
    client.create_experiment("ours", artifact_location=(tmp_path / "artifacts").as_uri())
    run_id = log_run(run, open_tracker("mlflow", uri=uri, experiment="ours"))

    found = client.get_run(run_id)
    assert (found.info.status, found.data.tags["selected"]) == ("FINISHED", "int8")
    models = client.search_logged_models([found.info.experiment_id])
    assert {model.name for model in models} == {one.id.replace("@", "-") for one in report.candidates}
    chosen = client.get_logged_model(found.data.tags["selected_model_id"])
    assert {metric.key: metric.value for metric in chosen.metrics} == candidate_metrics(report.candidate("int8"))
    assert (chosen.params["scheme"], chosen.params["certified"]) == ("w8a8-dynamic", "unknown")
    assert [artifact.path for artifact in client.list_artifacts(run_id)] == ["report.json"]
    # MLflow's own loader opens the file, and our checkpoint lies whole beside it.
    kept = Path(chosen.artifact_location.removeprefix("file://"))
    answer = mlflow.pyfunc.load_model(str(kept)).predict({"x": np.zeros(2, np.float32)})
    assert list(answer["y"]) == [1.0, 1.0]
    assert (kept / "checkpoint" / "compressor.json").is_file()


def test_a_run_as_wandb_has_it(tmp_path: Path) -> None:
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("needs the extra [wandb]")
    report = finished_run(tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-m", "compressor.cli", "log", "run", "--to", "wandb", "--experiment", "ours", "--json"],
        cwd=tmp_path, env={**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"},
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    assert json.loads(done.stdout)["id"] == f"{report['name']} {report['created']}"
    runs = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(runs) == len(report["candidates"])
    assert any(b"est_j_per_request/rows/forward" in file.read_bytes() for file in runs)
