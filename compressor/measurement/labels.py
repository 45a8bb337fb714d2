"""Quality label by label: a mean over all rows hides a class that was lost."""

from __future__ import annotations

from collections.abc import Sequence

from compressor.measurement import statistics as st
from compressor.measurement.arrays import Array
from compressor.schema.report import Interval, LabelQuality, Paired, Quality


def with_labels(
    rows: tuple[Quality, ...],
    predicted: Array,
    other: Array | None,
    labels: Array,
    *,
    names: Sequence[str],
    against: str,
) -> tuple[Quality, ...]:
    """The rows of a classifier's quality, with the recall of each label on its first one.

    Args:
        rows: as they were judged over all rows together.
        predicted: class of each row, (n,).
        other: the baseline's, on the same rows; None for the baseline itself.
        labels: the right class of each row, (n,).
        names: of the classes.
        against: id of the baseline.
    """
    if not rows:
        return rows
    found = tuple(
        _recall(name, predicted[labels == number], None if other is None else other[labels == number], number, against)
        for number, name in enumerate(names)
    )
    return (rows[0].model_copy(update={"labels": found}), *rows[1:])


def _recall(name: str, predicted: Array, other: Array | None, number: int, against: str) -> LabelQuality:
    n = int(predicted.size)
    if n == 0:
        return LabelQuality(label=name, n=0, recall=None, ci95=None, paired=None)
    right = predicted == number
    low, high = st.wilson(int(right.sum()), n)
    paired = None
    if other is not None:
        found = st.paired_accuracy(right, other == number)
        paired = Paired(
            against=against,
            delta=found.delta,
            ci95=Interval(low=found.ci95[0], high=found.ci95[1]),
            test=found.test,
            p_value=found.p_value,
        )
    return LabelQuality(label=name, n=n, recall=float(right.mean()), ci95=Interval(low=low, high=high), paired=paired)
