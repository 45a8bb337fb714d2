"""Splits: what a stage may see, what it may not, and leaks between them."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

import compressor
from compressor.data.rows import rows_digest
from compressor.data.splits import StageData, TestData, find_leaks, open_stage_data, open_test_data
from compressor.errors import DataError
from compressor.spec.sources import Data
from compressor.spec.tasks import TASKS

CLASSIFY, LANGUAGE = TASKS["sequence-classification"], TASKS["causal-lm"]
LABELS = ("before 1865", "1865 to 1944", "since 1945")


def era(files: dict[str, Path], **options: Any) -> Data:
    return Data.model_validate({**{split: {"path": str(path)} for split, path in files.items()}, **options})


def test_stages_see_no_test_rows(era_files: dict[str, Path]) -> None:
    data = open_stage_data(era(era_files), CLASSIFY, LABELS, seed=0)
    assert {field.name for field in dataclasses.fields(StageData)} == {"train", "validation", "calibration", "digests"}
    assert data.train is not None and data.validation is not None and data.calibration is not None
    assert (len(data.train), len(data.validation), len(data.calibration)) == (600, 150, 256)
    assert data.digests["train"] == rows_digest(data.train)
    test = open_test_data(era(era_files), CLASSIFY, LABELS)
    assert len(test.rows) == 300 and test.name == str(era_files["test"]) and test.digest == rows_digest(test.rows)


def test_only_measurement_opens_the_test_split() -> None:
    root = Path(compressor.__file__).parent
    files = sorted(root.rglob("*.py"))
    assert len(files) > 30
    users = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom | ast.Import) else []
            attribute = node.attr if isinstance(node, ast.Attribute) else None
            if "open_test_data" in names or attribute == "open_test_data":
                users.add(file.relative_to(root).parts[0])
    assert users <= {"measurement"}


def test_calibration_is_drawn_from_train_by_the_seed(era_files: dict[str, Path]) -> None:
    def draw(seed: int) -> list[str]:
        calibration = open_stage_data(era(era_files, calibration_rows=20), CLASSIFY, LABELS, seed).calibration
        assert calibration is not None
        return list(calibration["text"])

    data = open_stage_data(era(era_files), CLASSIFY, LABELS, 0)
    assert data.train is not None
    assert draw(0) == draw(0) != draw(1)
    assert len(set(draw(0))) == 20 and set(draw(0)) <= set(data.train["text"])


def test_calibration_has_its_own_source_where_there_is_one(era_files: dict[str, Path]) -> None:
    files = {"test": era_files["test"], "calibration": era_files["validation"]}
    data = open_stage_data(era(files, calibration_rows=1000), CLASSIFY, LABELS, 0)
    assert data.train is None and data.validation is None
    assert data.calibration is not None and len(data.calibration) == 150
    assert data.digests.keys() == {"calibration"}


def test_a_language_model_calibrates_on_all_documents_in_a_drawn_order(sotu_text: dict[str, Path]) -> None:
    data = open_stage_data(era(sotu_text, calibration_rows=2), LANGUAGE, None, 0)
    assert data.train is not None and data.calibration is not None
    assert sorted(data.calibration["text"]) == sorted(data.train["text"]) != list(data.calibration["text"])


def rows(*texts: str) -> Dataset:
    return Dataset.from_dict({"text": list(texts)})


def split(test: Dataset, **splits: Dataset) -> tuple[StageData, TestData]:
    given = {"train": None, "validation": None, "calibration": None, **splits}
    return StageData(digests={}, **given), TestData(rows=test, digest="", name="test.jsonl")


def test_the_committed_splits_do_not_leak(era_files: dict[str, Path], sotu_text: dict[str, Path]) -> None:
    find_leaks(open_stage_data(era(era_files), CLASSIFY, LABELS, 0), open_test_data(era(era_files), CLASSIFY, LABELS))
    find_leaks(open_stage_data(era(sotu_text), LANGUAGE, None, 0), open_test_data(era(sotu_text), LANGUAGE, None))


@pytest.mark.parametrize("name", ["train", "validation", "calibration"])
def test_a_row_in_two_splits_is_refused(name: str) -> None:
    with pytest.raises(DataError) as caught:
        find_leaks(*split(rows("x", "a", "b"), **{name: rows("c", "d", "a ", "b")}))
    assert str(caught.value) == (
        f"test.jsonl: 2 rows stand both in {name} and in test; the first is row 3 of {name} and row 2 of test: 'a'\n"
        f"  -> remove them from {name}, or write data.leaks: drop"
    )


def test_train_and_validation_may_not_share_rows_but_calibration_may_come_from_train() -> None:
    with pytest.raises(DataError, match="data: 1 row stands both in train and in validation"):
        find_leaks(*split(rows("x"), train=rows("a"), validation=rows("b", "a")))
    find_leaks(*split(rows("x"), train=rows("a", "b"), calibration=rows("b")))


def test_a_pair_is_equal_only_as_a_whole() -> None:
    def pair(second: str) -> Dataset:
        return Dataset.from_dict({"text": ["a"], "text_pair": [second]})

    find_leaks(*split(pair("b"), train=pair("c")))
    with pytest.raises(DataError):
        find_leaks(*split(pair("b"), train=pair("b")))
