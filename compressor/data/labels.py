"""Labels: names, ids, or ids that a data set gives names of its own -> ids of the head's classes; and what else a row
can carry to be learned: sets of classes, numbers, a class for each word, answers in a text.

A wrong pairing here trains and measures without a word and is wrong everywhere, so nothing is guessed: names are paired
by name, ids must be ids of the head, and where a data set's names and the head's do not agree there is an error.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import ClassLabel

from compressor.errors import DataError

_GENERIC = re.compile(r"LABEL_\d+|\d+")  # what transformers calls classes without a name


def as_class_ids(values: Sequence[Any], feature: Any, labels: tuple[str, ...] | None, where: str) -> list[int]:
    """Each row's class, as an index into `labels`.

    Args:
        values: one label per row: an integer, a name, or an integer written as text.
        feature: the column's type in `datasets`; a `ClassLabel` brings names for its integers.
        labels: the head's classes; None when there is no head yet and labels must be ids.
        where: how an error calls the source.

    Raises:
        DataError: a row without a label or with one that the head does not have, naming the row.
    """
    if isinstance(feature, ClassLabel) and labels is not None and not _same_or_generic(feature.names, labels):
        values = _by_name(values, feature, labels, where)
    ids = {name: index for index, name in enumerate(labels or ())}
    return [_class_id(value, number, ids, labels, where) for number, value in enumerate(values, 1)]


def as_class_sets(values: Sequence[Any], feature: Any, labels: tuple[str, ...] | None, where: str) -> list[list[int]]:
    """Each row's classes, rising; a row may have none. Lists of names or ids, or text with `,`, `;` or `|` between.

    Raises:
        DataError: a label that is missing or is no list, a class that the head does not have or that is named twice.
    """
    lists = [_as_list(value, number, where, separators=",;|") for number, value in enumerate(values, 1)]
    found = _as_ids_in_lists(lists, feature, labels, where)
    for number, row in enumerate(found, 1):
        if len(set(row)) < len(row):
            raise DataError(
                f"row {number}: the label {lists[number - 1]!r} names a class twice",
                where=where,
                hint="name each class of a row once; a row of 0 and 1 for each class is not understood",
            )
    return [sorted(row) for row in found]


def as_tags(values: Sequence[Any], feature: Any, labels: tuple[str, ...] | None, where: str) -> list[list[int]]:
    """A class for each word: lists of names or ids, or text with spaces between.

    Raises:
        DataError: a label that is missing or is no list, or a class that the head does not have.
    """
    lists = [_as_list(value, number, where, separators=" ") for number, value in enumerate(values, 1)]
    return _as_ids_in_lists(lists, feature, labels, where)


def as_numbers(values: Sequence[Any], where: str) -> list[float]:
    """Each row's number; text is read as one.

    Raises:
        DataError: a label that is missing, or no finite number.
    """
    result = []
    for number, value in enumerate(values, 1):
        if value is None or value == "":
            raise DataError(f"row {number}: the label is missing", where=where, hint="mend or remove the row")
        try:
            found = float(value)
        except (TypeError, ValueError):
            found = math.nan
        if not math.isfinite(found):
            raise DataError(f"row {number}: label {value!r} is not a number", where=where, hint="mend the row")
        result.append(found)
    return result


def as_answers(values: Sequence[Any], contexts: Sequence[str], where: str) -> list[list[dict[str, Any]]]:
    """Each row's right answers and the character at which each starts; none where the text does not tell.

    Read as SQuAD has them, `{"text": [...], "answer_start": [...]}` (as JSON inside a CSV field, too), or as plain text
    that stands in the context once.

    Raises:
        DataError: an answer that is not where it is said to be, or that stands in the context never or twice.
    """
    return [
        _answers_of_row(value, context, number, where)
        for number, (value, context) in enumerate(zip(values, contexts, strict=True), 1)
    ]


def _answers_of_row(value: Any, context: str, number: int, where: str) -> list[dict[str, Any]]:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"row {number}: the answers are not JSON: {error}", where=where) from error
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise DataError(
                f"row {number}: the answers are not lists `text` and `answer_start` of equal length", where=where
            )
        for text, start in zip(texts, starts, strict=True):
            if not 0 <= start <= len(context) or context[start : start + len(text)] != text:
                raise DataError(
                    f"row {number}: the answer {text!r} does not stand at character {start} of the text",
                    where=where,
                    hint="answer_start counts characters from 0",
                )
        return [{"text": text, "start": start} for text, start in zip(texts, starts, strict=True)]
    if value is None or value == "":
        return []
    if isinstance(value, str) and context.count(value) == 1:
        return [{"text": value, "start": context.index(value)}]
    times = f"{context.count(value)} times" if isinstance(value, str) else "as no text"
    raise DataError(
        f"row {number}: the answer {value!r} stands in the text {times}",
        where=where,
        hint='say where it starts: {"text": ["..."], "answer_start": [17]}',
    )


def _as_list(value: Any, number: int, where: str, *, separators: str) -> list[Any]:
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise DataError(f"row {number}: the label {value!r} is not JSON: {error}", where=where) from error
        else:
            parts = re.split(f"[{separators}]", value) if separators.strip() else value.split()
            value = [part.strip() for part in parts if part.strip()]
    if not isinstance(value, list | tuple):
        what = "missing" if value is None else f"{value!r}, not a list"
        raise DataError(f"row {number}: the label is {what}", where=where, hint="give a list of names or ids")
    return list(value)


def _as_ids_in_lists(
    lists: Sequence[Sequence[Any]], feature: Any, labels: tuple[str, ...] | None, where: str
) -> list[list[int]]:
    inner = getattr(feature, "feature", None)
    if isinstance(inner, ClassLabel) and labels is not None and not _same_or_generic(inner.names, labels):
        lists = [_by_name(row, inner, labels, where) for row in lists]
    ids = {name: index for index, name in enumerate(labels or ())}
    return [[_class_id(value, number, ids, labels, where) for value in row] for number, row in enumerate(lists, 1)]


def _class_id(value: Any, number: int, ids: Mapping[str, int], labels: tuple[str, ...] | None, where: str) -> int:
    if value is None or value == "":
        raise DataError(f"row {number}: the label is missing", where=where, hint="mend or remove the row")
    found = ids.get(value) if isinstance(value, str) else _whole(value)
    if found is None and isinstance(value, str) and re.fullmatch(r"\d+", value):
        found = int(value)
    if found is None or found < 0 or (labels is not None and found >= len(labels)):
        raise _unknown(value, number, labels, where)
    return found


def _same_or_generic(names: Sequence[str], labels: Sequence[str]) -> bool:
    """Ids can be used as they are: the names agree in order, or one side has no names worth the word."""
    if len(names) != len(labels):
        return False
    agree = [name.casefold() for name in names] == [label.casefold() for label in labels]
    return agree or all(map(_GENERIC.fullmatch, names)) or all(map(_GENERIC.fullmatch, labels))


def _by_name(values: Sequence[Any], feature: ClassLabel, labels: tuple[str, ...], where: str) -> list[Any]:
    folded = {label.casefold(): label for label in labels}
    unknown = [name for name in feature.names if name.casefold() not in folded]
    if unknown:
        raise DataError(
            f"the data set's classes are {_listed(feature.names)}, the head's are {_listed(labels)}",
            where=where,
            hint="name the head's classes in the data set's words and order: model.labels: [...]",
        )
    names = [folded[name.casefold()] for name in feature.names]
    return [names[value] if value is not None and 0 <= value < len(names) else value for value in values]


def _whole(value: Any) -> int | None:
    """An integer, or a float without a fraction (a column with gaps becomes floats in pandas)."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def _unknown(value: Any, number: int, labels: tuple[str, ...] | None, where: str) -> DataError:
    if labels is None:
        return DataError(
            f"row {number}: label {value!r} is not the id of a class",
            where=where,
            hint="name the classes in the order of their ids: model.labels: [...]",
        )
    return DataError(
        f"row {number}: label {value!r} is none of the head's {len(labels)} classes: {_listed(labels)}",
        where=where,
        hint="mend the row, or name the classes in the order of their ids: model.labels: [...]",
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"{index} {name}" for index, name in enumerate(names[:12]))
    return shown + (", ..." if len(names) > 12 else "")
