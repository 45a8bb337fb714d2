"""Rows of every task from every kind of file; each mistake with its row, and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from compressor.data.rows import dataset_from_memory, load_rows
from compressor.data.splits import StageData, TestData, drop_leaks, find_leaks
from compressor.errors import DataError
from compressor.spec.sources import Data, DataSource
from compressor.spec.tasks import TASKS, TaskName

LABELS: dict[TaskName, tuple[str, ...]] = {
    "multi-label-classification": ("war", "peace", "money"),
    "token-classification": ("O", "B-PER", "I-PER"),
}


def read(task: TaskName, rows: Any, **columns: str) -> datasets.Dataset:
    return dataset_from_memory(rows, TASKS[task], columns, LABELS.get(task), name="rows.jsonl")


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    return str(caught.value)


def test_several_labels_come_as_lists_or_as_text() -> None:
    given = [["war", "money"], [2, 0], "war;money", "war, money", '["war", 2]', "", []]
    rows = read(
        "multi-label-classification",
        [{"text": "t", "label": json.dumps(g) if isinstance(g, list) else g} for g in given],
    )
    assert rows["label"] == [[0, 2]] * 5 + [[]] * 2


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("multi-label-classification", {"text": "t", "label": ["war", "famine"]},
         "row 2: label 'famine' is none of the head's 3 classes: 0 war, 1 peace, 2 money"),
        ("multi-label-classification", {"text": "t", "label": ["war", "war"]},
         "row 2: the label ['war', 'war'] names a class twice"),
        ("multi-label-classification", {"text": "t", "label": None}, "row 2: the label is missing"),
        ("regression", {"text": "t", "label": "much"}, "row 2: label 'much' is not a number"),
        ("regression", {"text": "t", "label": float("nan")}, "row 2: label nan is not a number"),
        ("token-classification", {"tokens": ["a", "b"], "ner_tags": ["O"]}, "row 2: 2 words have 1 labels"),
        ("token-classification", {"tokens": [], "ner_tags": []}, "row 2: tokens is empty"),
        ("question-answering", {"question": "q", "context": "it is so",
          "answers": {"text": ["so"], "answer_start": [3]}},
         "row 2: the answer 'so' does not stand at character 3 of the text"),
        ("question-answering", {"question": "q", "context": "so so", "answers": {"text": ["so"], "answer_start": []}},
         "row 2: the answers are not lists `text` and `answer_start` of equal length"),
        ("reranking", {"query": "q", "passage": "p", "relevance": None}, "row 2: the label is missing"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_row(task: TaskName, row: dict[str, Any], message: str) -> None:
    good: dict[TaskName, dict[str, Any]] = {
        "multi-label-classification": {"text": "t", "label": ["war"]},
        "regression": {"text": "t", "label": None},
        "token-classification": {"tokens": ["a"], "ner_tags": ["O"]},
        "question-answering": {"question": "q", "context": "it is", "answers": {"text": ["is"], "answer_start": [3]}},
        "reranking": {"query": "q", "passage": "p", "relevance": 1.0},
    }
    first = {**good[task], "label": "1.5"} if task == "regression" and isinstance(row["label"], str) else good[task]
    if task == "regression" and not isinstance(row["label"], str):
        first = {"text": "t", "label": 1.5}
    assert f"rows.jsonl: {message}" in refusal(lambda: read(task, [first, row]))


def test_answers_come_as_text_too(tmp_path: Path) -> None:
    path = tmp_path / "questions.csv"
    squad = json.dumps({"text": ["is"], "answer_start": [3]}).replace('"', '""')
    path.write_text(f'question,context,answers\nq,it is so,so\nq,it is so,"{squad}"\nq,it is so,\n', encoding="utf-8")
    rows = load_rows(DataSource(path=str(path)), task=TASKS["question-answering"], columns={}, labels=None)
    assert rows["label"] == [[{"text": "so", "start": 6}], [{"text": "is", "start": 3}], []]
    assert rows["text"] == ["q"] * 3 and rows["text_pair"] == ["it is so"] * 3
    path.write_text("question,context,answers\nq,so so,so\n", encoding="utf-8")
    told = refusal(
        lambda: load_rows(DataSource(path=str(path)), task=TASKS["question-answering"], columns={}, labels=None)
    )
    assert "row 1: the answer 'so' stands in the text 2 times" in told


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_words_and_tags_from_every_format(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"words.{ending}"
    if ending == "csv":
        path.write_text("tokens,ner_tags\nAda Lovelace wrote,B-PER I-PER O\n")
    else:
        rows = datasets.Dataset.from_list([{"tokens": ["Ada", "Lovelace", "wrote"], "ner_tags": [1, 2, 0]}])
        rows.to_json(path) if ending == "jsonl" else rows.to_parquet(path)
    task = TASKS["token-classification"]
    found = load_rows(DataSource(path=str(path)), task=task, columns={}, labels=LABELS["token-classification"])
    assert found.to_list() == [
        {"words": ["Ada", "Lovelace", "wrote"], "text": "Ada Lovelace wrote", "label": [1, 2, 0]}
    ]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "txt"])
def test_texts_alone_serve_an_embedder(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"texts.{ending}"
    rows = datasets.Dataset.from_list([{"sentence": "one", "label": 3}, {"sentence": "two", "label": 4}])
    match ending:
        case "csv":
            rows.to_csv(path)
        case "jsonl":
            rows.to_json(path)
        case "parquet":
            rows.to_parquet(path)
        case "txt":
            path.write_text("one\ntwo\n")
    task = TASKS["sentence-embedding"]
    found = load_rows(DataSource(path=str(path)), task=task, columns={}, labels=None)
    assert found.to_list() == [{"text": "one"}, {"text": "two"}]


def test_a_label_without_a_second_text_is_refused_where_it_is_asked_for() -> None:
    told = refusal(lambda: read("sentence-embedding", [{"text": "a", "how": 1.0}], label="how"))
    assert told.startswith("rows.jsonl: labels without a second text: an embedder's label says how alike two texts are")


def test_glue_is_a_word_in_the_pipeline() -> None:
    data = Data.model_validate({"glue": "mnli", "max_tokens": 64})
    assert data.test == DataSource(hub="nyu-mll/glue", subset="mnli", split="validation_matched")
    assert data.train is not None and data.train.split == "train[:95%]"
    assert data.columns == {"text": "premise", "text_pair": "hypothesis"}
    assert data.leaks == "drop"
    own = Data.model_validate({"glue": "sst2", "test": {"path": "mine.csv"}})
    assert own.test.path == "mine.csv"
    assert Data.model_validate(own.model_dump(exclude_unset=True)) == own


def test_glue_offline_says_what_to_do() -> None:
    source = Data.model_validate({"glue": "sst2"}).test
    told = refusal(lambda: load_rows(source, task=TASKS["sequence-classification"], columns={}, labels=None))
    assert "nyu-mll/glue sst2 validation" in told
    assert "the hub cannot be reached" in told and "give a local file with `path`" in told


def test_rows_that_leak_can_be_left_out() -> None:
    def rows(*texts: str) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"text": list(texts)})

    test = TestData(rows=rows("x", "a"), digest="", name="test")
    data = drop_leaks(StageData(rows("a", "b", "c "), rows("c", "d"), rows("b", "x"), {}), test)
    assert [data.train["text"], data.validation["text"], data.calibration["text"]] == [["b"], ["c", "d"], ["b"]]
    assert data.digests.keys() == {"train", "validation", "calibration"}
    find_leaks(data, test)
    told = refusal(lambda: drop_leaks(StageData(rows("a"), None, None, {}), test))
    assert told.startswith("data.train: each of its rows stands in a later split too")


def test_a_column_of_two_types_is_refused() -> None:
    rows = [{"text": "t", "label": [0]}, {"text": "t", "label": ["war"]}]
    told = refusal(lambda: read("multi-label-classification", rows))
    assert told.startswith("rows.jsonl: a column holds values of different types:")
    assert told.endswith("-> give a column one type: names or ids, not both")
