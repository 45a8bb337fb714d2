"""Trackers: what each is given; a real MLflow on its SQLite store and a real offline W&B where they are installed."""

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
from stand_ins import MlflowClient, WandbArtifact, WandbRun, held_to, install
from trackers import finished_run
from typer.testing import CliRunner

from compressor.cli.app import build
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


def test_what_mlflow_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_model(graph: Any, path: str, pip_requirements: list[str]) -> None:
        assert graph.graph.node and pip_requirements == ["onnxruntime"]
        Path(path).mkdir(parents=True)
        (Path(path) / "MLmodel").touch()

    install(monkeypatch, "mlflow", MlflowClient=MlflowClient)
    install(monkeypatch, "mlflow.onnx", save_model=save_model)
    run = tmp_path / "run"
    report = Report.model_validate(finished_run(run))
    tracker = open_tracker("mlflow", uri="sqlite:///x.db", experiment="ours")
    assert log_run(run, tracker) == log_run(run, tracker), "the experiment is made once"
    said = CliRunner().invoke(build(), ["log", str(run), "--to", "mlflow", "--experiment", "other", "--json"])
    assert json.loads(said.stdout) == {"to": "mlflow", "experiment": "other", "id": "run"}
    client: Any = tracker.client  # type: ignore[attr-defined]
    models = list(client._models.values())[len(report.candidates) :]
    assert (client._uri, client._artifacts[0], client._status) == ("sqlite:///x.db", "report.json", "FINISHED")
    assert [one.name for one in models] == [one.id.replace("@", "-") for one in report.candidates]
    assert [one.metrics for one in models] == [candidate_metrics(one) for one in report.candidates]
    assert {one.status for one in models} == {"READY"}
    chosen = client._models[client._tags["selected_model_id"]]
    assert chosen.params["scheme"] == "w8a8-dynamic" and chosen.tags == {"digest": chosen.params["digest"]}
    assert {"MLmodel", "checkpoint/compressor.json", "checkpoint/onnx/model_int8.onnx"} <= set(chosen.files)
    assert [one.files for one in models if one is not chosen] == [[]] * (len(models) - 1), "their folders are gone"


def test_what_wandb_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[WandbRun] = []

    def init(**settings: Any) -> WandbRun:
        assert all(one.is_finished for one in runs)
        runs.append(WandbRun(settings))
        return runs[-1]

    install(monkeypatch, "wandb", init=init, Artifact=WandbArtifact)
    report = Report.model_validate(finished_run(tmp_path / "run"))
    group = log_run(tmp_path / "run", open_tracker("wandb", uri=None, experiment="ours", folder=tmp_path))
    assert {(one.settings["project"], one.settings["group"]) for one in runs} == {("ours", group)}
    assert [one.settings["name"] for one in runs] == [one.id for one in report.candidates]
    assert [one.metrics for one in runs] == [candidate_metrics(one) for one in report.candidates]
    (chosen,) = [one for one in runs if one.settings["job_type"] == "selected"]
    assert (chosen.settings["name"], chosen.saved) == ("int8", ["report.json"])
    (artifact,) = chosen.artifacts
    assert {"compressor.json", "onnx/model_int8.onnx"} <= set(artifact.files)


@without_mlflow
def test_mlflow_takes_what_its_stand_in_takes() -> None:
    import mlflow

    held_to(MlflowClient, mlflow.MlflowClient)


def test_wandb_takes_what_its_stand_in_takes() -> None:
    wandb = pytest.importorskip("wandb", reason="needs the extra [wandb]")
    held_to(WandbArtifact, wandb.Artifact)
    held_to(
        type("Run", (), {name: getattr(WandbRun, name) for name in ("log", "log_artifact", "save", "finish")}),
        wandb.Run,
    )


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
