"""Words replaced by a language model: which ones, by what, the same again from the same seed, and kept on disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.training.augment import replaced_rows
from compressor.training.rows import Row

# Tokens 0 to 2 are special, 3 is the mask, 4 to 8 are words, 9 goes on from the token before.
WORDS = np.array([False] * 4 + [True] * 5 + [False])
ROWS: list[Row] = [
    {"input_ids": [1, 4, 5, 9, 2], "labels": 0, "index": 0},
    {"input_ids": [1, 6, 2], "labels": 1, "index": 1},
    *({"input_ids": [1, 4, 4, 4, 4, 2], "labels": 1, "index": index} for index in range(2, 20)),
]


class Expects(nn.Module):
    """Sees word 7, then 8, wherever something is masked, and a word piece before either."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.n_asked = 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        assert ((input_ids == 3).sum(1) == 1).all(), "one word is hidden at a time"
        self.n_asked += len(input_ids)
        logits = torch.zeros(*input_ids.shape, 10)
        logits[..., 9], logits[..., 7], logits[..., 8] = 9.0, 5.0, 4.0
        return SimpleNamespace(logits=logits)


def replaced(folder: Path, model: nn.Module | None = None, **changes: Any) -> list[Row]:
    settings: dict[str, Any] = {
        "words": WORDS, "mask_id": 3, "n_variants": 3, "probability": 0.5, "n_candidates": 2, "pad_id": 0, "seed": 1,
        "key": "k", "folder": folder, "tell": lambda done, total: None,
    }  # fmt: skip
    return replaced_rows(ROWS, model or Expects(), **(settings | changes))


def test_only_whole_words_are_replaced_and_only_by_likely_words(tmp_path: Path) -> None:
    rows = replaced(tmp_path)
    assert [row["index"] for row in rows] == list(range(4 * len(ROWS)))
    assert rows[: len(ROWS)] == ROWS
    changed = kept = 0
    for number, row in enumerate(rows[len(ROWS) :]):
        original = ROWS[number % len(ROWS)]
        assert row["labels"] == original["labels"] and len(row["input_ids"]) == len(original["input_ids"])
        for before, after in zip(original["input_ids"], row["input_ids"], strict=True):
            if not WORDS[before]:
                assert after == before
            elif after == before:
                kept += 1
            else:
                assert after in (7, 8)
                changed += 1
    assert 0.35 < changed / (changed + kept) < 0.65


def test_every_word_goes_where_each_is_to_be_replaced(tmp_path: Path) -> None:
    rows = replaced(tmp_path, probability=1.0, n_candidates=1, n_variants=1)
    assert rows[len(ROWS)]["input_ids"] == [1, 7, 7, 9, 2]


def test_variants_differ_and_come_again_from_the_seed(tmp_path: Path) -> None:
    first, again = replaced(tmp_path / "a"), replaced(tmp_path / "b")
    assert first == again
    assert first[20:40] != first[40:60]
    assert replaced(tmp_path / "c", seed=2) != first


def test_what_was_made_is_kept_until_something_changes(tmp_path: Path) -> None:
    model = Expects()
    first = replaced(tmp_path, model)
    asked = model.n_asked
    assert asked > 0 and replaced(tmp_path, model) == first and model.n_asked == asked
    replaced(tmp_path, model, key="other rows")
    assert model.n_asked == 2 * asked
