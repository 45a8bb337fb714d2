"""The pipelines in pipelines/ and the schema they name for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from compressor.spec.chain import resolve_sources
from compressor.spec.json_schema import pipeline_schema
from compressor.spec.load import load_pipeline
from compressor.spec.sources import DataSource

REPOSITORY = Path(__file__).resolve().parents[2]
PIPELINES = sorted((REPOSITORY / "pipelines").rglob("*.yaml"))
SCHEMA = REPOSITORY / "compressor" / "spec" / "pipeline.schema.json"


def test_all_are_found() -> None:
    names = {path.name for path in PIPELINES}
    assert {"minilm-sentiment.yaml", "smollm2-sotu.yaml", "gpt2-sotu.yaml", "smoke.yaml", "smoke-decoder.yaml"} <= names
    assert {path.suffix for path in (REPOSITORY / "pipelines").rglob("*") if path.is_file()} == {".yaml"}


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_a_shipped_pipeline_is_valid_named_after_its_file_and_explained(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=../compressor/spec/pipeline.schema.json"
    assert (path.parent / "../compressor/spec/pipeline.schema.json").resolve() == SCHEMA
    opening = [line for line in lines[1 : lines.index("version: 1")] if line.startswith("#")]
    assert len(opening) >= 3 and any(line.startswith("# Cost: ") for line in opening)
    pipeline = load_pipeline(path)
    assert pipeline.name == path.stem
    assert set(resolve_sources(pipeline)) == {stage.id for stage in pipeline.stages}


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_data_lies_in_the_repository_or_says_how_to_get_it(path: Path) -> None:
    data = load_pipeline(path).data
    for source in (data.train, data.validation, data.test, data.calibration):
        if isinstance(source, DataSource) and source.hub is None:
            assert source.path is not None
            committed = (REPOSITORY / source.path).is_file() and not source.path.startswith(".cache/")
            assert committed or (source.how_to_get or "").startswith("python eval/fetch.py ")


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_hub_data_whose_splits_share_rows_does_not_stop_the_run(path: Path) -> None:
    data = load_pipeline(path).data
    assert data.leaks == ("drop" if data.test.hub in ("nyu-mll/glue", "Salesforce/wikitext") else "refuse")


def test_the_main_job_does_what_it_promises() -> None:
    main = load_pipeline(REPOSITORY / "pipelines" / "minilm-sentiment.yaml")
    assert [stage.stage for stage in main.stages] == [
        "finetune", "distill", "prune", "distill", "export", "quantize", "quantize",
    ]  # fmt: skip
    first = main.workloads[0]
    assert (first.from_data, first.batch, first.order, first.threads, first.candidates) == (
        True,
        8,
        "file",
        None,
        "all",
    )
    assert all(workload.candidates == "ends" for workload in main.workloads[1:])
    limits = {goal.metric: (goal.min_retained, goal.max_ratio, goal.workload) for goal in main.goals}
    assert limits == {"accuracy": (0.97, None, None), "cpu_s_per_token": (None, 0.1667, first.id)}


def test_the_committed_schema_is_that_of_the_language() -> None:
    assert SCHEMA.read_text() == pipeline_schema(), "run: compressor schema > compressor/spec/pipeline.schema.json"


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_an_editor_accepts_the_shipped_pipelines(path: Path) -> None:
    jsonschema.Draft202012Validator(json.loads(pipeline_schema())).validate(values_of(path))


def test_an_editor_marks_a_wrong_key_and_a_wrong_stage() -> None:
    schema: dict[str, Any] = json.loads(pipeline_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    values = values_of(REPOSITORY / "pipelines" / "smoke.yaml")
    assert not validator.is_valid({**values, "sede": 1})
    assert not validator.is_valid({**values, "stages": [{"id": "a", "stage": "zip"}]})
    assert not validator.is_valid({key: value for key, value in values.items() if key != "model"})


def values_of(path: Path) -> dict[str, Any]:
    """The file as an editor reads it; PyYAML takes `1e-3` for text, which YAML 1.2 does not."""
    from compressor.spec.document import read_document

    assert isinstance(yaml.safe_load(path.read_text()), dict)
    value = read_document(path).value
    assert isinstance(value, dict)
    return value
