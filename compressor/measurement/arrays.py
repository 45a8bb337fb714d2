"""Batches in a file: how the parent hands prepared inputs to a worker, which so needs no tokenizer and no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]


def save_batches(path: Path, batches: Sequence[Batch]) -> None:
    """Write batches, in order, whole or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        named = {f"{i:06d}/{name}": array for i, batch in enumerate(batches) for name, array in batch.items()}
        np.savez(file, **named)  # type: ignore[arg-type]  # numpy's stub mixes up **arrays and allow_pickle
    partial.replace(path)


def load_batches(path: Path) -> list[dict[str, Array]]:
    """Read what `save_batches` wrote."""
    batches: dict[str, dict[str, Array]] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            number, _, name = key.partition("/")
            batches.setdefault(number, {})[name] = file[key]
    return [batches[number] for number in sorted(batches)]
