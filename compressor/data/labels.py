"""Labels: names, ids, or ids that a data set gives names of its own -> ids of the head's classes.

A wrong pairing here trains and measures without a word and is wrong everywhere, so nothing is guessed: names are paired
by name, ids must be ids of the head, and where a data set's names and the head's do not agree there is an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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
    result = []
    for number, value in enumerate(values, 1):
        if value is None or value == "":
            raise DataError(f"row {number}: the label is missing", where=where, hint="mend or remove the row")
        found = ids.get(value) if isinstance(value, str) else _whole(value)
        if found is None and isinstance(value, str) and re.fullmatch(r"\d+", value):
            found = int(value)
        if found is None or found < 0 or (labels is not None and found >= len(labels)):
            raise _unknown(value, number, labels, where)
        result.append(found)
    return result


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
