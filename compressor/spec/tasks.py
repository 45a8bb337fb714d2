"""The task table: one row for each task, read by training, runtime, export and measurement alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskName = Literal["sequence-classification", "causal-lm"]
"""The tasks that run end to end; a row below for each."""


@dataclass(frozen=True)
class Task:
    """One row: what a task reads, which model class serves it, and how it is judged.

    Attributes:
        name: the word in the pipeline's ``model.task``.
        auto_class: the class in ``transformers`` that builds it.
        columns: columns every row must have.
        optional_columns: columns used where they are present.
        output: the name of the model output that is judged and exported.
        onnx_task: the word that Optimum and Transformers.js use.
        metrics: metrics that can be asked for; the first is the headline.
        paired_test: how two candidates are compared on the same rows.
        is_decoder: whether it generates, and so has prefill and decode phases.
    """

    name: TaskName
    auto_class: str
    columns: tuple[str, ...]
    optional_columns: tuple[str, ...]
    output: str
    onnx_task: str
    metrics: tuple[str, ...]
    paired_test: Literal["mcnemar", "bootstrap"]
    is_decoder: bool


TASKS: dict[TaskName, Task] = {
    "sequence-classification": Task(
        name="sequence-classification",
        auto_class="AutoModelForSequenceClassification",
        columns=("text", "label"),
        optional_columns=("text_pair",),
        output="logits",
        onnx_task="text-classification",
        metrics=("accuracy", "macro_f1"),
        paired_test="mcnemar",
        is_decoder=False,
    ),
    "causal-lm": Task(
        name="causal-lm",
        auto_class="AutoModelForCausalLM",
        columns=("text",),
        optional_columns=(),
        output="logits",
        onnx_task="text-generation",
        metrics=("token_perplexity", "byte_perplexity"),
        paired_test="bootstrap",
        is_decoder=True,
    ),
}
