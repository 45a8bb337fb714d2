"""Splits: what stages may see, and the test rows that only measurement may open.

`StageData` has no field for test rows, so a stage cannot tune on them by accident; `open_test_data` is imported by
`compressor.measurement` and by nobody else (a test reads the imports).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from compressor.data.rows import load_rows, rows_digest, source_name
from compressor.errors import DataError
from compressor.spec.sources import Data, DataSource
from compressor.spec.tasks import Task


@dataclass(frozen=True)
class StageData:
    """Rows that stages may use.

    Attributes:
        train: rows to learn from.
        validation: rows that pick checkpoints, exclusions and settings.
        calibration: rows that fix pruning statistics and quantisation ranges, drawn from the seed. For a language model
            these are whole documents in a drawn order; `tokenize.draw_windows` cuts the windows from them.
        digests: split -> `rows_digest`, for the splits that there are.
    """

    train: Dataset | None
    validation: Dataset | None
    calibration: Dataset | None
    digests: Mapping[str, str]


@dataclass(frozen=True)
class TestData:
    """The rows that candidates are judged on.

    Attributes:
        rows: the test split.
        digest: its `rows_digest`.
        name: file or hub name, for reports.
    """

    __test__ = False  # not for pytest to collect

    rows: Dataset
    digest: str
    name: str


def open_stage_data(data: Data, task: Task, labels: tuple[str, ...] | None, seed: int) -> StageData:
    """Read train, validation and calibration.

    Calibration comes from its own source, or from train: `calibration_rows` rows drawn with the seed.

    Raises:
        DataError: as `rows.load_rows`.
    """
    train = _open(data.train, data, task, labels) if data.train else None
    validation = _open(data.validation, data, task, labels) if data.validation else None
    pool = _open(data.calibration, data, task, labels) if data.calibration else train
    calibration = None if pool is None else draw_calibration(pool, data.calibration_rows, task=task, seed=seed)
    splits = {"train": train, "validation": validation, "calibration": calibration}
    digests = {name: rows_digest(rows) for name, rows in splits.items() if rows is not None}
    return StageData(train=train, validation=validation, calibration=calibration, digests=digests)


def open_test_data(data: Data, task: Task, labels: tuple[str, ...] | None) -> TestData:
    """Read the test split. For `compressor.measurement` only.

    Raises:
        DataError: as `rows.load_rows`.
    """
    rows = _open(data.test, data, task, labels)
    return TestData(rows=rows, digest=rows_digest(rows), name=source_name(data.test))


def _open(source: DataSource, data: Data, task: Task, labels: tuple[str, ...] | None) -> Dataset:
    """A split, with the prompts before its texts."""
    rows = load_rows(source, task=task, columns=data.columns, labels=labels)
    for column, prompt in (data.prompts or {}).items():
        if column in rows.column_names:
            texts = [prompt + text for text in rows[column]]
            rows = Dataset.from_dict({**rows.to_dict(), column: texts}, features=rows.features)
    return rows


def draw_calibration(pool: Dataset, n_rows: int, *, task: Task, seed: int) -> Dataset:
    """`n_rows` rows of a pool in a drawn order, without repetition; all documents of it for a language model."""
    order = np.random.default_rng(seed).permutation(len(pool))
    return pool.select(order if task.is_decoder else order[:n_rows])


def find_leaks(data: StageData, test: TestData) -> None:
    """Refuse rows that stand in two splits: a model that has seen the answer cannot be judged by it.

    Rows are equal when their texts are, whatever their labels; space at the ends does not count.

    Raises:
        DataError: how many, and the first of them in both splits.
    """
    splits = {"train": data.train, "validation": data.validation, "calibration": data.calibration, "test": test.rows}
    places = {name: _places(rows) for name, rows in splits.items() if rows is not None}
    for first, second in (("train", "test"), ("validation", "test"), ("calibration", "test"), ("train", "validation")):
        if first not in places or second not in places:
            continue
        shared = places[second].keys() & places[first].keys()
        if not shared:
            continue
        key = min(shared, key=places[second].__getitem__)
        row = places[second][key]
        rows = splits[second]
        assert rows is not None
        count = "1 row stands" if len(shared) == 1 else f"{len(shared)} rows stand"
        raise DataError(
            f"{count} both in {first} and in {second}; the first is row {places[first][key] + 1} of {first} and row "
            f"{row + 1} of {second}: {rows[row]['text'][:60]!r}",
            where=test.name if second == "test" else "data",
            hint=f"remove them from {first}, or write data.leaks: drop",
        )


def drop_leaks(data: StageData, test: TestData) -> StageData:
    """Leave out rows that `find_leaks` would refuse: the later split keeps them.

    Raises:
        DataError: nothing is left of a split.
    """
    later = set(_places(test.rows))
    found: dict[str, Dataset | None] = {"calibration": _without(data.calibration, later, "calibration")}
    for split in ("validation", "train"):
        found[split] = _without(getattr(data, split), later, split)
        later |= set(_places(found[split])) if found[split] is not None else set()
    digests = {name: rows_digest(rows) for name, rows in found.items() if rows is not None}
    return StageData(found["train"], found["validation"], found["calibration"], digests)


def _without(rows: Dataset | None, keys: set[bytes], split: str) -> Dataset | None:
    if rows is None:
        return None
    kept = [number for number, key in enumerate(_keys(rows)) if key not in keys]
    if not kept:
        raise DataError("each of its rows stands in a later split too", where=f"data.{split}", hint="use other rows")
    return rows if len(kept) == len(rows) else rows.select(kept)


def _places(rows: Dataset) -> dict[bytes, int]:
    """A key for each text -> the first row that has it."""
    places: dict[bytes, int] = {}
    for number, key in enumerate(_keys(rows)):
        places.setdefault(key, number)
    return places


def _keys(rows: Dataset) -> Iterator[bytes]:
    pairs = rows["text_pair"] if "text_pair" in rows.column_names else [""] * len(rows)
    for text, pair in zip(rows["text"], pairs, strict=True):
        yield hashlib.sha256(f"{text.strip()}\0{pair.strip()}".encode()).digest()
