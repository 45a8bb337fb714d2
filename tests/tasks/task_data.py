"""Tiny data for every task, made of the committed sentences of the era task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compressor.spec.tasks import TaskName

EraRow = dict[str, Any]
TOPICS = ("congress", "people", "country")
TAGS = ("O", "B-CAP", "I-CAP")
N_ROWS = {"train": 48, "validation": 24, "test": 32}


def topics(row: EraRow) -> dict[str, Any]:
    return {"text": row["text"], "label": [name for name in TOPICS if name in row["text"].lower()]}


def length(row: EraRow) -> dict[str, Any]:
    return {"text": row["text"], "label": len(row["text"]) / 100}


def tagged(row: EraRow) -> dict[str, Any]:
    """Runs of capitalised words after the first are entities."""
    words = row["text"].split()
    tags = ["O"]
    for word in words[1:]:
        tags.append("O" if not word[0].isupper() else "B-CAP" if tags[-1] == "O" else "I-CAP")
    return {"tokens": words, "ner_tags": tags}


def asked(row: EraRow) -> dict[str, Any]:
    words = row["text"].split()
    answer = max(words, key=len)
    answers = {"text": [answer], "answer_start": [row["text"].index(answer)]}
    return {"question": "which is the longest word?", "context": row["text"], "answers": answers}


def pair(row: EraRow) -> dict[str, Any]:
    """A sentence and a part of it, or its words backwards: alike by the share of it that is there."""
    words = row["text"].split()
    n_kept = 1 + len(row["text"]) % len(words)
    return {"sentence1": row["text"], "sentence2": " ".join(words[:n_kept]), "score": n_kept / len(words)}


ONE_FROM_ONE: dict[TaskName, Callable[[EraRow], dict[str, Any]]] = {
    "sequence-classification": lambda row: {"text": row["text"], "label": row["label"]},
    "multi-label-classification": topics,
    "regression": length,
    "token-classification": tagged,
    "question-answering": asked,
    "masked-lm": lambda row: {"text": row["text"]},
    "sentence-embedding": pair,
}
LABELS: dict[TaskName, tuple[str, ...]] = {
    "sequence-classification": ("early", "middle", "late"),
    "multi-label-classification": TOPICS,
    "token-classification": TAGS,
}


def ranked(rows: list[EraRow]) -> list[dict[str, Any]]:
    """Queries are the ends of passages; each comes with its own passage, graded 1, and two others, graded 0."""
    found = []
    for number, row in enumerate(rows):
        query = " ".join(row["text"].split()[-4:])
        for step, relevance in ((0, 1.0), (1, 0.0), (2, 0.0)):
            found.append({"query": query, "passage": rows[(number + step) % len(rows)]["text"], "relevance": relevance})
    return found


def write_task_data(task: TaskName, era_rows: dict[str, list[EraRow]], folder: Path) -> dict[str, Any]:
    """JSONL files of a task and the `data` section that names them."""
    section: dict[str, Any] = {"calibration_rows": 32, "max_tokens": 48}
    for split, n_rows in N_ROWS.items():
        rows = era_rows[split][:n_rows]
        made = ranked(rows[: n_rows // 2]) if task == "reranking" else [ONE_FROM_ONE[task](row) for row in rows]
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
        section[split] = {"path": str(path)}
    return section


def model_section(task: TaskName) -> dict[str, Any]:
    """A random BERT of two narrow layers, with a tokenizer trained on the task's own text."""
    section: dict[str, Any] = {
        "task": task,
        "config": {
            "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 64, "max_position_embeddings": 64,
        },
        "tokenizer": {"vocab_size": 400},
    }  # fmt: skip
    if task in LABELS:
        section["labels"] = list(LABELS[task])
    if task == "sentence-embedding":
        section["pooling"] = {"mode": "mean", "normalise": True}
    return section
