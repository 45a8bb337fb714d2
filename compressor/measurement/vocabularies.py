"""Candidates that read the same text as other token ids, because a vocabulary was trimmed on the way.

Quality: each vocabulary reads the test text by its own tokenizer. Answers to whole rows are still paired with the
baseline's; answers token by token are not, and bytes are what language models of both are compared by.
Cost: everybody is given the baseline's token sequences, in their own numbers, so that a token means the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compressor.checkpoints.store import Checkpoint
from compressor.checkpoints.vocabulary import kept_tokens_of
from compressor.measurement.arrays import load_batches, save_batches
from compressor.measurement.inputs import PreparedWorkload
from compressor.measurement.suite import CandidateSpec

ROW_ANSWERS = frozenset({"class", "classes", "number", "embedding"})
"""Kinds of task whose answers are one to a row, whatever the row's tokens."""


@dataclass(frozen=True)
class Vocabulary:
    """Candidates that read alike.

    Attributes:
        kept: tokens of the whole vocabulary that they know, in the order of their own ids; None where they know all.
        candidates: in the order of the report.
    """

    kept: tuple[int, ...] | None
    candidates: tuple[CandidateSpec, ...]

    @property
    def checkpoint(self) -> Checkpoint:
        """One that has the tokenizer."""
        return self.candidates[0].checkpoint


def vocabularies_of(candidates: Sequence[CandidateSpec]) -> list[Vocabulary]:
    """The candidates by what is left of their vocabulary, the first candidate's first."""
    found: dict[tuple[int, ...] | None, list[CandidateSpec]] = {}
    for spec in candidates:
        kept = kept_tokens_of(spec.checkpoint)
        found.setdefault(None if kept is None else kept.kept_token_ids, []).append(spec)
    return [Vocabulary(kept, tuple(specs)) for kept, specs in found.items()]


def in_own_ids(
    prepared: PreparedWorkload, vocabularies: Sequence[Vocabulary], of: Vocabulary, folder: Path
) -> PreparedWorkload:
    """The workload, with batches of their own for candidates that number tokens otherwise than the one it is in.

    A token that a candidate does not know becomes its id 0: what a token costs does not depend on which it is.
    """
    paths: dict[str, Path] = {}
    for number, vocabulary in enumerate(vocabularies):
        if vocabulary.kept == of.kept:
            continue
        batches = [dict(batch) for batch in load_batches(prepared.path)]
        size = 1 + max(int(batch["input_ids"].max()) for batch in batches)
        new = np.zeros(max(size, 1 + max((*(vocabulary.kept or ()), *(of.kept or ()), 0))), dtype=np.int64)
        if vocabulary.kept is None:
            new = np.arange(len(new), dtype=np.int64)
        else:
            new[list(vocabulary.kept)] = np.arange(len(vocabulary.kept))
        for batch in batches:
            whole = batch["input_ids"] if of.kept is None else np.asarray(of.kept, dtype=np.int64)[batch["input_ids"]]
            batch["input_ids"] = new[whole]
        path = folder / f"{prepared.path.stem}-vocabulary-{number}.npz"
        save_batches(path, batches)
        paths |= {spec.id: path for spec in vocabulary.candidates}
    return replace(prepared, own_paths=paths)
