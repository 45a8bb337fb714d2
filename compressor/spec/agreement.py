"""Whether the parts of a pipeline agree: goals with workloads, stages with data, everything with the task.

Pure functions, run before any file is opened. A part that is broken in itself is None here and passed over.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from compressor.errors import Problem
from compressor.spec.chain import Link, links_of, reference_problem
from compressor.spec.document import Document, Location, dotted
from compressor.spec.evaluation import Evaluate, Goal, Workload
from compressor.spec.pipeline import Pipeline
from compressor.spec.problems import did_you_mean
from compressor.spec.sources import Data, ModelSource
from compressor.spec.tasks import LESS_IS_BETTER, TASKS, Task

WORKLOAD_COSTS = ("latency_s", "cpu_s_per_token", "j_per_token")
"""Costs that depend on how the model is used."""
COSTS = (*WORKLOAD_COSTS, "size_bytes", "parameters")
"""Everything a goal can limit beside quality."""


@dataclass(frozen=True)
class Parts:
    """What could be read of a pipeline."""

    model: ModelSource | None
    data: Data | None
    workloads: tuple[Workload, ...] | None
    evaluate: Evaluate | None
    goals: tuple[Goal, ...] | None
    links: tuple[Link, ...]

    @property
    def task(self) -> Task | None:
        """The row of the task table."""
        return TASKS[self.model.task] if self.model else None


def parts_of(document: Document, pipeline: Pipeline | None) -> Parts:
    """The parts of a valid pipeline; of one that is not, each part that is valid by itself."""
    links = links_of(document.value.get("stages"))
    if pipeline is not None:
        return Parts(pipeline.model, pipeline.data, pipeline.workloads, pipeline.evaluate, pipeline.goals, links)
    part = {name: _valid(name, document.value) for name in ("model", "data", "workloads", "evaluate", "goals")}
    return Parts(links=links, **part)


def _valid(name: str, values: dict[str, Any]) -> Any:
    field = Pipeline.model_fields[name]
    if name not in values:
        return None if field.is_required() else field.get_default()
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(field.rebuild_annotation())
        return adapter.validate_json(json.dumps(values[name]), strict=True)
    except ValidationError:
        return None


def agreement_problems(parts: Parts, document: Document, metrics: Collection[str]) -> Iterator[Problem]:
    """Everything in which two parts of the pipeline contradict each other.

    Args:
        parts: the readable parts.
        document: for lines.
        metrics: the caller's own metrics, beside those of the task.
    """
    for location, message, hint in (
        *_task_findings(parts),
        *_data_findings(parts),
        *_workload_findings(parts),
        *_evaluate_findings(parts, metrics),
        *_goal_findings(parts, metrics),
        *_until_findings(parts, document),
    ):
        line = document.line(location)
        yield Problem(message, dotted(location), document.line(location[:-1]) if line is None else line, hint)


Finding = tuple[Location, str, str | None]


def _task_findings(parts: Parts) -> Iterator[Finding]:
    if parts.model is None or parts.task is None:
        return
    if parts.model.labels is not None and not parts.task.has_classes:
        yield ("model", "labels"), f"a {parts.task.name} model has no labels", "remove `labels`"
    if parts.model.pooling is not None and parts.task.kind != "embedding":
        yield ("model", "pooling"), f"a {parts.task.name} model pools nothing", "remove `pooling`"
    if parts.data is not None and parts.data.prompts and parts.task.kind != "embedding":
        hint = "remove `prompts`, and write what belongs before a text into the data"
        yield ("data", "prompts"), f"a {parts.task.name} model is given no prompts", hint
    if parts.data is not None:
        known = (*parts.task.columns, *parts.task.optional_columns)
        for column in parts.data.columns:
            if column not in known:
                message = f"`{column}` is no column of {parts.task.name}"
                hint = did_you_mean(column, known, otherwise="its columns are: ")
                yield ("data", "columns", column), message, f"{hint} (write `column of ours: column in your file`)"


def _data_findings(parts: Parts) -> Iterator[Finding]:
    """Splits that stages need."""
    data = parts.data
    if data is None:
        return
    training = [link for link in parts.links if link.kind in ("finetune", "distill")]
    others = [link for link in parts.links if link.kind in ("prune", "export", "quantize")]
    if training and data.train is None:
        yield ("data", "train"), f"missing, but {_called(training[0])} trains on it", "add `train: {path: ...}`"
    if training and data.validation is None:
        message = f"missing, but {_called(training[0])} picks its best checkpoint on it (never on the test split)"
        yield ("data", "validation"), message, "add `validation: {path: ...}`"
    if others and not training and data.train is None and data.calibration is None:
        message = f"missing, but {_called(others[0])} needs real text to look at (never the test split)"
        yield ("data", "calibration"), message, "add `calibration: {path: ...}` or `train: {path: ...}`"
    tokenizer = parts.model.tokenizer if parts.model else None
    if tokenizer is not None and tokenizer.vocab_size is not None and data.train is None and not training:
        message = "missing, but `model.tokenizer.vocab_size` trains a tokenizer on it"
        yield ("data", "train"), message, "add `train: {path: ...}`"


def _called(link: Link) -> str:
    return f"`{link.id}` ({link.kind})"


def _until_findings(parts: Parts, document: Document) -> Iterator[Finding]:
    """What a quantisation is to hold on validation rows, which the task must have and the pipeline give."""
    if parts.task is None or parts.data is None:
        return
    held = {"class": ("accuracy", "agreement"), "next_token": ("token_perplexity", "agreement")}
    known = held.get(parts.task.kind, ("agreement",) if parts.task.kind in ("token_class", "masked_token") else ())
    stages = document.value.get("stages")
    for i, stage in enumerate(stages if isinstance(stages, list) else ()):
        until = stage.get("until") if isinstance(stage, dict) else None
        if not isinstance(until, dict):
            continue
        if until.get("metric") not in known:
            message = f"`{until.get('metric')}` cannot be held on validation rows of {parts.task.name}"
            hint = f"there are: {', '.join(known)}" if known else "name the nodes in `exclude` instead"
            yield ("stages", i, "until", "metric"), message, hint
        elif parts.data.validation is None:
            message = "`until` holds quality on validation rows, and there are none"
            yield ("data", "validation"), message, "add `validation: {path: ...}`"


def _workload_findings(parts: Parts) -> Iterator[Finding]:
    seen: dict[str, int] = {}
    for i, workload in enumerate(parts.workloads or ()):
        if workload.id in seen:
            message = f"`{workload.id}` is the id of workloads.{seen[workload.id]} already"
            yield ("workloads", i, "id"), message, "each workload needs an id of its own"
        seen.setdefault(workload.id, i)
        if workload.output_tokens is not None and parts.task is not None and not parts.task.is_decoder:
            message = f"a {parts.task.name} model generates no tokens"
            yield ("workloads", i, "output_tokens"), message, "remove `output_tokens`"


def _evaluate_findings(parts: Parts, metrics: Collection[str]) -> Iterator[Finding]:
    evaluate = parts.evaluate
    if evaluate is None:
        return
    for key, name in (("baseline", evaluate.baseline), ("select", evaluate.select)):
        if name is not None and (wrong := reference_problem(name, parts.links)):
            yield ("evaluate", key), *wrong
    if parts.task is None:
        return
    known = (*parts.task.metrics, *metrics)
    for i, metric in enumerate(evaluate.metrics):
        if metric not in known:
            message = f"`{metric}` is no metric of {parts.task.name}"
            yield ("evaluate", "metrics", i), message, did_you_mean(metric, known, otherwise="its metrics are: ")


def _goal_findings(parts: Parts, metrics: Collection[str]) -> Iterator[Finding]:
    if parts.task is None or parts.evaluate is None:
        return
    for i, goal in enumerate(parts.goals or ()):
        known = (*parts.task.metrics, *metrics, parts.task.agreement, *COSTS)
        location = ("goals", i)
        if goal.metric not in known:
            message = f"`{goal.metric}` is neither a metric of {parts.task.name} nor a cost"
            yield (*location, "metric"), message, did_you_mean(goal.metric, known, otherwise="there are: ")
        elif goal.metric in COSTS:
            if goal.max_ratio is None:
                message = f"`{goal.metric}` is a cost: the less the better"
                yield location, message, "limit it with `max_ratio`, such as 0.5 for half the baseline's"
            if parts.workloads is not None:
                yield from _cost_goal_findings(goal, location, parts.workloads, parts.task)
        else:
            yield from _quality_goal_findings(goal, location, parts.evaluate, parts.task)


def _quality_goal_findings(goal: Goal, location: Location, evaluate: Evaluate, task: Task) -> Iterator[Finding]:
    measured = (*(evaluate.metrics or task.metrics), task.agreement)
    if goal.metric not in measured:
        message = f"`{goal.metric}` is not among the metrics that are measured"
        yield (*location, "metric"), message, f"add `{goal.metric}` to `evaluate.metrics`"
    for key in ("workload", "phase"):
        if getattr(goal, key) is not None:
            yield (*location, key), f"`{goal.metric}` does not depend on a {key}", f"remove `{key}`"
    if goal.metric in LESS_IS_BETTER and goal.max_ratio is None:
        message = f"`{goal.metric}`: the less the better"
        yield location, message, "limit it with `max_ratio`, such as 1.05 for at most 5 % above the baseline's"
    elif goal.metric in (*task.metrics, task.agreement) and goal.metric not in LESS_IS_BETTER and goal.max_ratio:
        message = f"`{goal.metric}`: the more the better"
        yield location, message, "limit it with `min_retained` or `max_drop_points`"


def _cost_goal_findings(goal: Goal, location: Location, workloads: Sequence[Workload], task: Task) -> Iterator[Finding]:
    known = [workload.id for workload in workloads]
    if goal.metric not in WORKLOAD_COSTS:
        for key in ("workload", "phase"):
            if getattr(goal, key) is not None:
                yield (*location, key), f"`{goal.metric}` does not depend on a {key}", f"remove `{key}`"
        return
    if goal.workload is None and len(known) > 1:
        yield (*location, "workload"), "missing, and there are several workloads", f"name one of: {', '.join(known)}"
        return
    if goal.workload is not None and goal.workload not in known:
        message = f"there is no workload `{goal.workload}`"
        yield (*location, "workload"), message, did_you_mean(goal.workload, known, otherwise="there are: ")
        return
    workload = next(workload for workload in workloads if goal.workload in (None, workload.id))
    phases = phases_of(workload, task)
    if goal.phase is None and len(phases) > 1:
        message = f"missing, and `{workload.id}` runs {' and '.join(phases)}"
        yield (*location, "phase"), message, f"name one of: {', '.join(phases)}"
    elif goal.phase is not None and goal.phase not in phases:
        yield (*location, "phase"), f"`{workload.id}` runs no {goal.phase}", f"its phases: {', '.join(phases)}"


def phases_of(workload: Workload, task: Task) -> tuple[str, ...]:
    """The phases in which a workload is measured."""
    if not task.is_decoder:
        return ("forward",)
    return ("prefill", "decode") if workload.output_tokens is not None else ("prefill",)
