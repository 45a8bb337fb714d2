"""A report as a model card: Hugging Face metadata and text. A pure function of the report.

Metadata fields belong to other people and carry no mark, so no estimate enters them but carbon, whose `source` says in
words that it is one.
"""

from __future__ import annotations

import re
from importlib.resources import files
from string import Template
from typing import Any

import yaml
from pydantic import ValidationError

from compressor.errors import UserError
from compressor.render import words
from compressor.render.card_text import (
    certificate_text,
    costs_text,
    limits_text,
    loading_text,
    losses_text,
    made_text,
    summary_text,
)
from compressor.schema.report import AssumedFigure, Candidate, Quality, Report
from compressor.spec.chain import MODEL, resolve_sources
from compressor.spec.pipeline import Pipeline
from compressor.spec.sources import DataSource
from compressor.spec.stages import Stage
from compressor.spec.tasks import TASKS

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
LICENCES = frozenset(
    {"agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-3.0"}
    | {"cc-by-sa-4.0", "cc0-1.0", "gemma", "gpl-3.0", "lgpl-3.0", "llama3", "llama3.1", "llama3.2", "mit", "mpl-2.0"}
    | {"openrail", "unlicense"}
)
"""The hub's words for common licences; any other licence is `other` with its name beside it."""
METRICS = {"macro_f1": "f1", "token_perplexity": "perplexity"}
"""Our name -> the hub's, where they differ."""
AGAINST_BASELINE = ("top1_agreement", "kl_to_baseline")
"""Metrics that mean nothing without the baseline, and so do not go to a leaderboard."""


def model_card(
    report: Report, *, candidate: str | None = None, licence: str | None = None, repository: str | None = None
) -> str:
    """The README.md of one candidate's folder; equal reports give equal text.

    Args:
        report: of a pipeline's run.
        candidate: whose card; the selected one where absent.
        licence: of the weights; the one that the pipeline names where absent.
        repository: `organisation/name` on the hub, for the examples; a folder where absent.

    Raises:
        UserError: no such candidate, none was selected, the report does not come from a pipeline, or the candidate was
            made only to be measured, failed, or was never judged.
    """
    one = _chosen(report, candidate)
    pipeline = pipeline_of(report)
    lineage = lineage_of(pipeline, one)
    licence = licence or pipeline.model.licence
    metadata = card_metadata(report, one, pipeline, licence)
    template = Template(files("compressor.render").joinpath("model_card.md").read_text(encoding="utf-8"))
    return template.substitute(
        metadata=yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=1000).rstrip(),
        title=f"{report.name}: {one.id}",
        summary=summary_text(report, one),
        created=report.created,
        made=made_text(report, pipeline, lineage),
        costs=costs_text(report),
        losses=losses_text(report, one),
        certificate=certificate_text(report, one),
        loading=loading_text(one, pipeline, lineage, repository=repository),
        limits=limits_text(report, one),
        licence=_licence_text(report, licence),
    )


def _chosen(report: Report, wanted: str | None) -> Candidate:
    if not report.pipeline.get("stages"):
        raise UserError(
            "this report does not come from a pipeline, so it cannot say how the model was made",
            where=report.name,
            hint="compressor run PIPELINE --out RUN",
        )
    if wanted is None and report.selected is None:
        raise UserError(
            f"no candidate was selected: {report.selected_reason}", where=report.name, hint="name one: --candidate ID"
        )
    known = {one.id: one for one in report.candidates}
    name = wanted or report.selected or ""
    failed = [failure for failure in report.failures if failure.where == name]
    if failed:
        raise UserError(f"{name} failed, so there is no card for it: {failed[0].text}", where=report.name)
    if name not in known:
        raise UserError(f"no candidate {name!r}; there are: {', '.join(known)}", where=report.name)
    if known[name].scratch:
        raise UserError(
            f"{name} was made only to be measured, and `compressor clean` deletes it",
            where=report.name,
            hint="add an export stage to the pipeline",
        )
    if not known[name].quality:
        raise UserError(f"the quality of {name} was never judged, so a card could not say what it loses")
    return known[name]


def pipeline_of(report: Report) -> Pipeline:
    """The pipeline that the report carries.

    Raises:
        UserError: this version cannot read it.
    """
    try:
        return Pipeline.model_validate(report.pipeline)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"the report's pipeline cannot be read by this version: {place}: {first['msg']}",
            where=report.name,
            hint="run the pipeline again; finished stages are skipped",
        ) from None


def lineage_of(pipeline: Pipeline, candidate: Candidate) -> list[Stage]:
    """The stages that the candidate went through, from the first."""
    sources = resolve_sources(pipeline)
    by_id = {stage.id: stage for stage in pipeline.stages}
    found: list[Stage] = []
    at = candidate.stage
    while at != MODEL:
        found.insert(0, by_id[at])
        at = sources[at]
    return found


def card_metadata(report: Report, candidate: Candidate, pipeline: Pipeline, licence: str | None) -> dict[str, Any]:
    """The block between the dashes, as the hub reads it."""
    task = TASKS[pipeline.model.task]
    is_onnx = candidate.runtime == "onnxruntime"
    metadata: dict[str, Any] = {}
    base = _base_model(pipeline)
    if base is not None:
        metadata["base_model"] = base
        metadata["base_model_relation"] = "finetune" if candidate.scheme == "fp32" else "quantized"
    metadata["library_name"] = "onnx" if is_onnx else "transformers"
    metadata["pipeline_tag"] = task.onnx_task
    metadata["tags"] = ["joule-compressor", *(["onnx", "onnxruntime"] if is_onnx else []), candidate.scheme]
    if licence is not None:
        word = licence.lower()
        metadata |= {"license": word} if word in LICENCES else {"license": "other", "license_name": word}
    splits = (pipeline.data.train, pipeline.data.validation, pipeline.data.calibration, pipeline.data.test)
    hub_data = list(dict.fromkeys(one.hub for one in splits if one is not None and one.hub is not None))
    if hub_data:
        metadata["datasets"] = hub_data
    absolute = [row for row in candidate.quality if row.metric not in AGAINST_BASELINE]
    metadata["metrics"] = list(dict.fromkeys(METRICS.get(row.metric, row.metric) for row in absolute))
    results = [_result(row, pipeline.data.test, task.onnx_task) for row in absolute]
    metadata["model-index"] = [{"name": f"{report.name}-{candidate.id}", "results": results}]
    emissions = _emissions(report, pipeline)
    return metadata if emissions is None else metadata | {"co2_eq_emissions": emissions}


def _base_model(pipeline: Pipeline) -> str | None:
    """A hub id, where the pipeline names one: a folder of somebody's machine is no base model to link to."""
    name = pipeline.model.hub or pipeline.model.name
    return name if name is not None and HUB_ID.fullmatch(name) else None


def _result(row: Quality, test: DataSource, task: str) -> dict[str, Any]:
    # `dataset.type` is a hub id where there is one; a local file gives its last two parts, not somebody's home folder.
    name = test.hub or "/".join(row.dataset.replace("\\", "/").split("/")[-2:])
    dataset: dict[str, Any] = {"type": name, "name": name, "split": test.split or row.split}
    if test.subset is not None:
        dataset["config"] = test.subset
    metric = {"type": METRICS.get(row.metric, row.metric), "value": row.value, "name": row.metric}
    return {"task": {"type": task}, "dataset": dataset, "metrics": [metric]}


def _emissions(report: Report, pipeline: Pipeline) -> dict[str, Any] | None:
    """Grams of all stages together, only where the pipeline names a factor and its source."""
    found = next((one for one in report.carbon if one.of.startswith("compressing")), None)
    factor = pipeline.energy.carbon
    key = None if found is None else _carbon_key(found)
    if found is None or factor is None or key is None:
        return None
    how = "estimated from CPU and wall seconds" if key.startswith("est_") else "measured"
    trained = any(stage.stage in ("finetune", "distill") for stage in pipeline.stages)
    emissions: dict[str, Any] = {
        "emissions": float(words.significant(found.figures[key]).replace(",", "")),
        "source": f"joule-compressor, {how}: {'; '.join(found.assumptions)}",
        "geographical_location": factor.region,
        "hardware_used": report.environment.get("cpu_family") or report.environment.get("cpu") or "unknown processor",
    }
    return emissions | ({"training_type": "fine-tuning"} if trained else {})


def _carbon_key(found: AssumedFigure) -> str | None:
    """Location-based, as the hub's field means it."""
    return next((key for key in ("gco2e_location", "est_gco2e_location") if key in found.figures), None)


def _licence_text(report: Report, licence: str | None) -> str:
    if licence is None:
        return f"The pipeline names no licence. That of {report.model} holds for these weights; look there before use."
    return f"{licence}, inherited from {report.model}."
