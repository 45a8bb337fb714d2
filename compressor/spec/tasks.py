"""The task table: one row for each task, read by training, runtime, export and measurement alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

TaskName = Literal[
    "sequence-classification",
    "multi-label-classification",
    "regression",
    "token-classification",
    "question-answering",
    "masked-lm",
    "causal-lm",
    "sentence-embedding",
    "reranking",
]
"""The tasks that run end to end; a row below for each."""

Kind = Literal["class", "classes", "number", "token_class", "span", "next_token", "masked_token", "embedding"]
"""What a model answers: one class of a row, any number of them, a number, a class of each word, a part of a text, the
next or a hidden token, or a vector. Losses, metrics and answers depend on this and on nothing else of a task."""

LESS_IS_BETTER = ("token_perplexity", "byte_perplexity", "masked_perplexity", "rmse", "kl_to_baseline")
"""Metrics that are errors: the less the better."""


@dataclass(frozen=True)
class Task:
    """One row: what a task reads, which model class serves it, and how it is judged.

    Attributes:
        name: the word in the pipeline's ``model.task``.
        kind: what the model answers.
        auto_class: the class in ``transformers`` that builds it.
        columns: columns every row must have.
        optional_columns: columns used where they are present.
        outputs: names of the model outputs that are exported; the last is the one that is judged.
        onnx_task: the word that Optimum and Transformers.js use.
        metrics: metrics that can be asked for; the first is the headline.
        paired_test: how two candidates are compared on the same rows.
        agreement: how near a candidate's answers are to the baseline's; 1 means equal.
        has_classes: whether its head tells named classes apart.
        aliases: column -> names that public data sets use for it, taken where there is no column of the name itself.
    """

    name: TaskName
    kind: Kind
    auto_class: str
    columns: tuple[str, ...]
    optional_columns: tuple[str, ...]
    outputs: tuple[str, ...]
    onnx_task: str
    metrics: tuple[str, ...]
    paired_test: Literal["mcnemar", "bootstrap"]
    agreement: str = "top1_agreement"
    has_classes: bool = False
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def is_decoder(self) -> bool:
        """Whether it generates, and so has prefill and decode phases."""
        return self.kind == "next_token"


TASKS: dict[TaskName, Task] = {
    "sequence-classification": Task(
        name="sequence-classification",
        kind="class",
        auto_class="AutoModelForSequenceClassification",
        columns=("text", "label"),
        optional_columns=("text_pair",),
        outputs=("logits",),
        onnx_task="text-classification",
        metrics=("accuracy", "macro_f1", "matthews"),
        paired_test="mcnemar",
        has_classes=True,
    ),
    "multi-label-classification": Task(
        name="multi-label-classification",
        kind="classes",
        auto_class="AutoModelForSequenceClassification",
        columns=("text", "label"),
        optional_columns=("text_pair",),
        outputs=("logits",),
        onnx_task="text-classification",
        metrics=("micro_f1", "macro_f1", "subset_accuracy"),
        paired_test="bootstrap",
        has_classes=True,
        aliases={"label": ("labels",)},
    ),
    "regression": Task(
        name="regression",
        kind="number",
        auto_class="AutoModelForSequenceClassification",
        columns=("text", "label"),
        optional_columns=("text_pair",),
        outputs=("logits",),
        onnx_task="text-classification",
        metrics=("pearson", "spearman", "rmse"),
        paired_test="bootstrap",
        agreement="spearman_to_baseline",
        aliases={"text": ("sentence1",), "text_pair": ("sentence2",), "label": ("score",)},
    ),
    "token-classification": Task(
        name="token-classification",
        kind="token_class",
        auto_class="AutoModelForTokenClassification",
        columns=("text", "label"),
        optional_columns=(),
        outputs=("logits",),
        onnx_task="token-classification",
        metrics=("entity_f1", "token_accuracy"),
        paired_test="bootstrap",
        has_classes=True,
        aliases={"text": ("tokens", "words"), "label": ("ner_tags", "tags", "labels")},
    ),
    "question-answering": Task(
        name="question-answering",
        kind="span",
        auto_class="AutoModelForQuestionAnswering",
        columns=("text", "text_pair", "label"),
        optional_columns=(),
        outputs=("start_logits", "end_logits"),
        onnx_task="question-answering",
        metrics=("answer_f1", "exact_match"),
        paired_test="bootstrap",
        aliases={"text": ("question",), "text_pair": ("context",), "label": ("answers",)},
    ),
    "masked-lm": Task(
        name="masked-lm",
        kind="masked_token",
        auto_class="AutoModelForMaskedLM",
        columns=("text",),
        optional_columns=(),
        outputs=("logits",),
        onnx_task="fill-mask",
        metrics=("masked_perplexity", "masked_accuracy"),
        paired_test="bootstrap",
    ),
    "causal-lm": Task(
        name="causal-lm",
        kind="next_token",
        auto_class="AutoModelForCausalLM",
        columns=("text",),
        optional_columns=(),
        outputs=("logits",),
        onnx_task="text-generation",
        metrics=("token_perplexity", "byte_perplexity"),
        paired_test="bootstrap",
    ),
    "sentence-embedding": Task(
        name="sentence-embedding",
        kind="embedding",
        auto_class="AutoModel",
        columns=("text",),
        optional_columns=("text_pair", "label"),
        outputs=("last_hidden_state", "sentence_embedding"),
        onnx_task="feature-extraction",
        metrics=("spearman", "ndcg_at_10"),
        paired_test="bootstrap",
        agreement="cosine_to_baseline",
        aliases={
            "text": ("sentence1", "query", "sentence"),
            "text_pair": ("sentence2", "passage", "document"),
            "label": ("score", "relevance"),
        },
    ),
    "reranking": Task(
        name="reranking",
        kind="number",
        auto_class="AutoModelForSequenceClassification",
        columns=("text", "text_pair", "label"),
        optional_columns=(),
        outputs=("logits",),
        onnx_task="text-classification",
        metrics=("ndcg_at_10", "spearman"),
        paired_test="bootstrap",
        agreement="spearman_to_baseline",
        aliases={"text": ("query",), "text_pair": ("passage", "document"), "label": ("score", "relevance")},
    ),
}
