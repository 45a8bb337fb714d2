"""More rows, as TinyBERT makes them (arXiv 1909.10351, algorithm 1): words replaced by what a language model expects.

Each word of a row is replaced with a given probability by one of the likeliest words that a masked language model sees
in its place. Only words that are one token are replaced, by words that are one token, so that rows keep their lengths
(words of several pieces, for which the paper looks up GloVe neighbours, stay as they are). Labels stay; where a teacher
teaches, it says of each new row what it thinks of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compressor.checkpoints.files import digest_json
from compressor.training.rows import Row, batches_by_length, model_inputs, on_device

BATCH_ROWS = 64
ROWS, META = "rows.npy", "meta.json"


def replaced_rows(
    rows: Sequence[Row], model: nn.Module, *, words: NDArray[np.bool_], mask_id: int, n_variants: int,
    probability: float, n_candidates: int, pad_id: int, seed: int, key: str, folder: Path,
    tell: Callable[[int, int], None], device: str = "cpu",
) -> list[Row]:  # fmt: skip
    """The rows, and after them `n_variants` times as many with words replaced.

    Args:
        rows: in the order of their `index`.
        model: predicts masked tokens, logits (B, T, V).
        words: which tokens of the vocabulary are whole words, (V,).
        mask_id: the mask token.
        probability: of a word to be replaced.
        n_candidates: a replacement is drawn evenly from so many of the likeliest words.
        seed: of all draws; a variant of a row depends on nothing else.
        key: what the rows and the model are; rows made from something else are made anew.
        folder: keeps what was made.
        tell: (rows done, rows in all).
    """
    lengths = np.array([len(row["input_ids"]) for row in rows])
    settings = digest_json([key, n_variants, probability, n_candidates, seed, lengths.tolist()])
    found = _kept(folder, settings)
    if found is None:
        found = _make(rows, model, words, mask_id, n_variants, probability, n_candidates, pad_id, seed, tell, device)
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / ROWS, found)
        (folder / META).write_text(json.dumps({"of": settings}))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    made: list[Row] = list(rows)
    for variant in range(n_variants):
        for number, row in enumerate(rows):
            ids = found[variant, starts[number] : starts[number + 1]].tolist()
            made.append({**row, "input_ids": ids, "index": (variant + 1) * len(rows) + number})
    return made


def _kept(folder: Path, settings: str) -> NDArray[np.int32] | None:
    try:
        is_ours = json.loads((folder / META).read_text())["of"] == settings
    except FileNotFoundError:
        return None
    return np.load(folder / ROWS) if is_ours else None


@torch.no_grad()
def _make(
    rows: Sequence[Row], model: nn.Module, words: NDArray[np.bool_], mask_id: int, n_variants: int,
    probability: float, n_candidates: int, pad_id: int, seed: int, tell: Callable[[int, int], None], device: str,
) -> NDArray[np.int32]:  # fmt: skip
    """(variants, tokens of all rows end to end)."""
    model.eval().to(device)
    is_word = torch.from_numpy(words).to(device)
    made = np.stack([np.concatenate([row["input_ids"] for row in rows])] * n_variants).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum([len(row["input_ids"]) for row in rows])])
    for done, number in enumerate(range(0, len(rows), 8), 1):
        asked: list[dict[str, Any]] = []
        for at in range(number, min(number + 8, len(rows))):
            ids = rows[at]["input_ids"]
            for variant in range(n_variants):
                rng = np.random.default_rng([seed, variant, at])
                for place in np.flatnonzero(words[ids] & (rng.random(len(ids)) < probability)).tolist():
                    hidden = [*ids[:place], mask_id, *ids[place + 1 :]]
                    where = (variant, int(starts[at]) + place)
                    choice = int(rng.integers(n_candidates))
                    asked.append({**rows[at], "input_ids": hidden, "place": place, "where": where, "choice": choice})
        asked = [{**row, "index": index} for index, row in enumerate(asked)]
        for batch in batches_by_length(asked, BATCH_ROWS, pad_id=pad_id):
            logits = model(**on_device(model_inputs(batch), device)).logits  # (B, T, V)
            for line, index in zip(logits, batch["index"].tolist(), strict=True):
                row = asked[index]
                likely = line[row["place"]].masked_fill(~is_word, -torch.inf).topk(n_candidates).indices
                made[row["where"]] = int(likely[row["choice"]])
        tell(min(done * 8, len(rows)), len(rows))
    return made
