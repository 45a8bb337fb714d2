"""Rows: any file, hub data set or object in memory -> one `datasets.Dataset` with the task's own columns.

Whatever comes in, what goes out has exactly `text`, (where there is one) `text_pair`, and (where the task has labels)
`label`: the index of a class, the indices of several, a number, the class of each word (with the words themselves in
`words`), or the answers in `text_pair`. A mistake in a row names the file and the row, counted from 1 without a header.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, assert_never

import datasets
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from compressor.data.labels import as_answers, as_class_ids, as_class_sets, as_numbers, as_tags
from compressor.errors import DataError
from compressor.spec.sources import DataSource
from compressor.spec.tasks import Task

FORMATS = {
    ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet",
    ".txt": "text",
}  # fmt: skip


def load_rows(source: DataSource, *, task: Task, columns: Mapping[str, str], labels: tuple[str, ...] | None) -> Dataset:
    """The rows of a file or hub data set, with the task's columns.

    Args:
        source: where they are.
        task: whose columns are wanted.
        columns: task column -> column of the source, where they differ.
        labels: names of the classes in the order of their ids; None when the source's labels are ids already.

    Raises:
        DataError: no such file or data set, unreadable, a column that is missing, no rows, an empty or missing text, or
            a label that is no class of the head.
    """
    where = source_name(source)
    return _canonical(_read(source), where, task, columns, labels)


def dataset_from_memory(
    rows: Any, task: Task, columns: Mapping[str, str], labels: tuple[str, ...] | None, *, name: str = "data in memory"
) -> Dataset:
    """The same for rows that are already here: a `datasets.Dataset`, a pandas frame, or a sequence of mappings.

    Raises:
        DataError: as `load_rows`, or an object of another kind.
    """
    return _canonical(_from_object(rows, name), name, task, columns, labels)


def rows_digest(dataset: Dataset) -> str:
    """Hex sha256 over the rows in their order; equal rows have an equal digest, whatever file they came from."""
    digest = hashlib.sha256()
    names = sorted(dataset.column_names)
    digest.update(json.dumps(names).encode())
    for batch in dataset.iter(batch_size=1000):
        for row in zip(*(batch[name] for name in names), strict=True):
            digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def source_name(source: DataSource) -> str:
    """How errors and reports call a source."""
    if source.path is not None:
        return source.path
    return " ".join(part for part in (source.hub, source.subset, source.split) if part)


def _read(source: DataSource) -> Dataset:
    dataset = _read_file(source) if source.path is not None else _read_hub(source)
    return dataset.select(range(min(source.rows, len(dataset)))) if source.rows is not None else dataset


def _read_file(source: DataSource) -> Dataset:
    assert source.path is not None
    path = Path(source.path).expanduser()
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "no such file"
        hint = source.how_to_get or "check the path; a relative one starts at the working directory"
        raise DataError(what, where=source.path, hint=hint)
    kind = source.format or FORMATS.get(path.suffix.lower())
    if kind is None:
        raise DataError(
            f"cannot tell the format from the ending {path.suffix!r}",
            where=source.path,
            hint="add `format:` with one of csv, tsv, jsonl, parquet, text",
        )
    if path.stat().st_size == 0:
        raise DataError("the file is empty", where=source.path, hint=source.how_to_get)
    try:
        with _quiet():
            return _read_format(kind, path)
    except (DatasetGenerationError, ValueError, OSError) as error:  # UnicodeDecodeError and pyarrow's are ValueErrors
        cause = error.__cause__ or error
        if "corresponds to no data" in str(cause):  # what `datasets` says of a file with a header and nothing else
            raise DataError("no rows", where=source.path, hint=source.how_to_get) from error
        detail = _bad_json_line(path) if kind == "jsonl" else None
        raise DataError(
            f"cannot be read as {kind}: {detail or _first_line(cause)}",
            where=source.path,
            hint="mend the file, or say its `format:`",
        ) from error


def _read_format(kind: str, path: Path) -> Dataset:
    if kind in ("csv", "tsv"):
        separator = "," if kind == "csv" else "\t"
        features = Features({name: Value("string") for name in _header(path, separator)})
        # all columns as text and no word read as missing: "007" and "null" are what they are
        dataset = Dataset.from_csv(
            str(path),
            features=features,
            sep=separator,
            quoting=_quoting(separator),
            keep_default_na=False,
            encoding="utf-8-sig",
        )
    elif kind == "jsonl":
        dataset = Dataset.from_json(str(path))
    elif kind == "parquet":
        dataset = Dataset.from_parquet(str(path))
    else:
        dataset = Dataset.from_text(str(path))
    assert isinstance(dataset, Dataset)
    return dataset


def _header(path: Path, separator: str) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file, delimiter=separator, quoting=_quoting(separator)), [])
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"the header names {', '.join(map(repr, twice))} more than once")
    return names


def _quoting(separator: str) -> Literal[0, 3]:
    """Quotes mean something in CSV and are text in TSV, where there is nothing to quote."""
    return csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE


def _read_hub(source: DataSource) -> Dataset:
    assert source.hub is not None
    where = source_name(source)
    try:
        with _quiet():
            dataset = datasets.load_dataset(source.hub, source.subset, split=source.split)
    except DatasetNotFoundError as error:
        raise DataError(
            "no such data set on the hub (or no access to it)", where=where, hint="check the name and log in if private"
        ) from error
    except FileNotFoundError as error:  # a repository without rows, or with none that `datasets` knows
        raise DataError(
            "the data set has no files that can be read", where=where, hint="give a local file with `path`"
        ) from error
    except ConnectionError as error:
        raise DataError(
            "not in the local cache, and the hub cannot be reached",
            where=where,
            hint=source.how_to_get or "connect once (and unset HF_HUB_OFFLINE), or give a local file with `path`",
        ) from error
    except (DatasetGenerationError, ValueError) as error:  # an unknown subset or split; the text names those that are
        raise DataError(_first_line(error), where=where, hint="check `subset` and `split`") from error
    if isinstance(dataset, Dataset):
        return dataset
    if not isinstance(dataset, Mapping):
        raise DataError(f"is read as a {type(dataset).__name__}, not as rows", where=where)
    if len(dataset) == 1:
        return next(iter(dataset.values()))
    raise DataError(
        f"the data set has the splits {', '.join(map(str, dataset))}", where=where, hint="choose one with `split:`"
    )


def _from_object(rows: Any, name: str) -> Dataset:
    if isinstance(rows, Dataset):
        return rows
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # a pandas frame, without importing pandas for it
        return Dataset.from_pandas(rows, preserve_index=False)
    if isinstance(rows, Sequence) and not isinstance(rows, str):
        odd = next((number for number, row in enumerate(rows, 1) if not isinstance(row, Mapping)), None)
        if odd is None:
            names = list(dict.fromkeys(key for row in rows for key in row))
            try:
                return Dataset.from_dict({key: [row.get(key) for row in rows] for key in names})
            except (ValueError, TypeError) as error:  # pyarrow's
                raise DataError(
                    f"a column holds values of different types: {_first_line(error)}",
                    where=name,
                    hint="give a column one type: names or ids, not both",
                ) from error
        raise DataError(
            f"row {odd} is a {type(rows[odd - 1]).__name__}, not a mapping from column to value",
            where=name,
            hint='give rows such as {"text": "...", "label": 0}',
        )
    raise DataError(
        f"rows of type {type(rows).__name__} cannot be read",
        where=name,
        hint="give a datasets.Dataset, a pandas.DataFrame or a list of dicts",
    )


def _canonical(
    dataset: Dataset, where: str, task: Task, columns: Mapping[str, str], labels: tuple[str, ...] | None
) -> Dataset:
    wanted = {column: _named(column, dataset, task, columns) for column in task.columns}
    _check_columns(dataset, where, wanted)
    for column in task.optional_columns:
        name = _named(column, dataset, task, columns)
        if name in dataset.column_names:
            wanted[column] = name
        elif column in columns:
            _check_columns(dataset, where, {column: name})
    if len(dataset) == 0:
        raise DataError("no rows", where=where, hint="check the file and the `split:`")
    values: dict[str, list[Any]] = {}
    features: dict[str, Any] = {}
    running = task.kind in ("next_token", "masked_token")
    for column, name in wanted.items():
        if column == "label":
            continue
        if task.kind == "token_class":
            values["words"], features["words"] = _words(dataset[name], name, where), List(Value("string"))
            values["text"], features["text"] = [" ".join(words) for words in values["words"]], Value("string")
            continue
        values[column] = _texts(dataset[name], name, where, may_be_blank=running or column != "text")
        features[column] = Value("string")
    if task.kind == "embedding" and "label" in wanted and "text_pair" not in wanted and "label" not in columns:
        del wanted["label"]  # a label of something else: how alike two texts are needs two
    if "label" in wanted:
        if task.kind == "embedding" and "text_pair" not in wanted:
            raise DataError(
                "labels without a second text: an embedder's label says how alike two texts are",
                where=where,
                hint="say which column it is: data.columns: {text_pair: NAME}; for texts alone leave the label out",
            )
        name = wanted["label"]
        column_values, feature = dataset[name], dataset.features[name]
        values["label"], features["label"] = _labels(column_values, feature, values, where, task, labels)
    if running:  # a blank line between two documents predicts nothing
        values["text"] = [text for text in values["text"] if text.strip()]
        if not values["text"]:
            raise DataError("no rows: every line is blank", where=where)
    return Dataset.from_dict(values, features=Features(features))


def _named(column: str, dataset: Dataset, task: Task, columns: Mapping[str, str]) -> str:
    """The source's own column for one of ours: the one that the pipeline names, ours, or the first alias there is."""
    if column in columns or column in dataset.column_names:
        return columns.get(column, column)
    taken = set(columns.values())
    aliases = (name for name in task.aliases.get(column, ()) if name in dataset.column_names and name not in taken)
    return next(aliases, column)


def _labels(
    column: Sequence[Any],
    feature: Any,
    values: Mapping[str, Sequence[Any]],
    where: str,
    task: Task,
    labels: tuple[str, ...] | None,
) -> tuple[list[Any], Any]:
    """The labels as the task wants them, and their type."""
    class_type = ClassLabel(names=list(labels)) if labels else Value("int64")
    match task.kind:
        case "class":
            return as_class_ids(column, feature, labels, where), class_type
        case "classes":
            return as_class_sets(column, feature, labels, where), List(class_type)
        case "token_class":
            tags = as_tags(column, feature, labels, where)
            for number, (row, words) in enumerate(zip(tags, values["words"], strict=True), 1):
                if len(row) != len(words):
                    raise DataError(
                        f"row {number}: {len(words)} words have {len(row)} labels", where=where, hint="mend the row"
                    )
            return tags, List(class_type)
        case "span":
            answers = as_answers(column, values["text_pair"], where)
            return answers, List({"text": Value("string"), "start": Value("int64")})
        case "number" | "embedding":
            return as_numbers(column, where), Value("float64")
        case "next_token" | "masked_token":
            raise AssertionError("a language model has no labels")
        case _:
            assert_never(task.kind)


def _check_columns(dataset: Dataset, where: str, wanted: Mapping[str, str]) -> None:
    for column, name in wanted.items():
        if name not in dataset.column_names:
            raise DataError(
                f"no column {name!r}; the columns are: {', '.join(dataset.column_names) or 'none'}",
                where=f"{where}:1" if where.endswith((".csv", ".tsv")) else where,  # the header's line
                hint=f"say which column it is: data.columns: {{{column}: NAME}}",
            )


def _words(values: Sequence[Any], name: str, where: str) -> list[list[str]]:
    """The words of each row: a list, or text with spaces between (in a CSV file, also a list as JSON)."""
    rows = []
    for number, value in enumerate(values, 1):
        if isinstance(value, str) and value.lstrip().startswith("["):
            with contextlib.suppress(ValueError):
                value = json.loads(value)
        words = value.split() if isinstance(value, str) else value
        if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
            raise DataError(
                f"row {number}: {name} is {value!r}, not words", where=where, hint="give a list of words, none empty"
            )
        if not words:
            raise DataError(f"row {number}: {name} is empty", where=where, hint="mend or remove the row")
        rows.append(words)
    return rows


def _texts(values: Sequence[Any], name: str, where: str, *, may_be_blank: bool) -> list[str]:
    texts = list(values)
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            what = "missing" if text is None else f"{text!r}, not text"
            raise DataError(f"row {number}: {name} is {what}", where=where, hint="mend or remove the row")
        if not may_be_blank and not text.strip():
            raise DataError(f"row {number}: {name} is empty", where=where, hint="mend or remove the row")
    return texts


def _bad_json_line(path: Path) -> str | None:
    """Which line is no JSON object; the reader's own message counts from the start of a block."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip() and not isinstance(json.loads(line), dict):
                    return f"line {number} is not a JSON object"
    except json.JSONDecodeError as error:
        return f"line {number}: {error.msg} at column {error.colno}"
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error.reason}"
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no second telling of an error that we raise ourselves."""
    level = datasets.logging.get_verbosity()
    had_bars = datasets.is_progress_bar_enabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if had_bars:
            datasets.enable_progress_bars()
