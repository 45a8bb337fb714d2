"""MLflow: the metrics' names everywhere, and a real client on a local store where MLflow is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from finished import finished

from compressor.errors import MissingPackageError
from compressor.integrations.mlflow import candidate_metrics, log_report
from compressor.schema.report import write_report


def test_an_estimate_keeps_its_mark_and_names_are_the_same_for_all() -> None:
    estimated, measured = (candidate_metrics(finished(measured=flag).candidate("int8")) for flag in (False, True))
    assert estimated["est_j_per_request/rows/forward"] == pytest.approx(0.0026666667)
    assert "j_per_request/rows/forward" not in estimated
    assert measured["j_per_request/rows/forward"] == pytest.approx(7.2)
    assert candidate_metrics(finished().candidate("onnx")).keys() == estimated.keys()


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is not None, reason="MLflow is installed")
def test_without_mlflow_the_extra_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingPackageError, match=r"pip install 'joule-compressor\[mlflow\]'"):
        log_report(finished(), tmp_path, tracking_uri=tmp_path.as_uri())


def test_a_run_as_mlflow_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install 'joule-compressor[mlflow]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    report, uri = finished(), (tmp_path / "store").as_uri()
    write_report(report, tmp_path / "report.json")
    folder = tmp_path / report.candidate("int8").checkpoint
    folder.mkdir(parents=True)
    (folder / "compressor.json").write_text("{}")
    run_id = log_report(report, tmp_path, tracking_uri=uri)

    client = mlflow.MlflowClient(tracking_uri=uri)
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["selected"]) == ("FINISHED", "int8")
    models = client.search_logged_models([run.info.experiment_id])
    assert {model.name for model in models} == {one.id.replace("@", "-") for one in report.candidates}
    chosen = client.get_logged_model(run.data.tags["selected_model_id"])
    assert {metric.key: metric.value for metric in chosen.metrics} == candidate_metrics(report.candidate("int8"))
    assert [artifact.path for artifact in client.list_artifacts(run_id)] == ["report.json"]
