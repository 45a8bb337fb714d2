"""Which rows make a batch: rows of like length side by side, by number or by tokens, the same again from the same seed.

An order depends on the seed and the epoch and on nothing else. Trainer's own sampler draws from the global random
state, which a run resumed inside an epoch no longer has, so that it would see other batches than the run it continues.
Each process takes its share of every batch, so that N processes see what one would.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from compressor.errors import DataError
from compressor.training.rows import Row


class Batches(Sampler[list[int]]):
    """The batches of one process.

    Args:
        lengths: tokens of each row, all variants one after the other.
        batch_rows: rows of a batch, of all processes together; unless a budget of tokens is given.
        tokens_per_batch: the most tokens of a batch, padding included, of all processes together.
        group_batches: batches within which rows are sorted by length, for batches of a fixed number of rows.
        n_variants: how often each row is there; epoch e takes variant e mod n.
        seed: of all draws.
        process, n_processes: whose share.

    Raises:
        DataError: a row that alone has more tokens than a batch may.
    """

    def __init__(
        self, lengths: Sequence[int], *, batch_rows: int, tokens_per_batch: int | None = None, group_batches: int = 1,
        n_variants: int = 1, seed: int = 0, process: int = 0, n_processes: int = 1,
    ) -> None:  # fmt: skip
        self.lengths, self.n_rows = list(lengths), len(lengths) // n_variants
        self.batch_rows, self.group_rows = batch_rows, batch_rows * group_batches
        self.n_variants, self.seed, self.epoch = n_variants, seed, 0
        self.process, self.n_processes = process, n_processes
        self.sizes = None if tokens_per_batch is None else batch_sizes(self.lengths[: self.n_rows], tokens_per_batch)

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sizes) if self.sizes is not None else math.ceil(self.n_rows / self.batch_rows)

    def __iter__(self) -> Iterator[list[int]]:
        first = self.epoch % self.n_variants * self.n_rows
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        lengths = self.lengths[first : first + self.n_rows]
        for batch in self._fixed(lengths, generator) if self.sizes is None else self._budgeted(lengths, generator):
            yield [first + row for row in self._share(batch)]

    def _share(self, batch: Sequence[int]) -> list[int]:
        """Every n-th row, so that shares are of like length; a batch too small for all is gone through again."""
        padded = [batch[number % len(batch)] for number in range(max(len(batch), self.n_processes))]
        return padded[self.process :: self.n_processes]

    def _fixed(self, lengths: list[int], generator: torch.Generator) -> Iterator[list[int]]:
        order = get_length_grouped_indices(lengths, self.group_rows, generator=generator)  # type: ignore[no-untyped-call]
        for start in range(0, len(order), self.batch_rows):
            yield order[start : start + self.batch_rows]

    def _budgeted(self, lengths: list[int], generator: torch.Generator) -> Iterator[list[int]]:
        """Sizes are those of the sorted lengths, so every epoch has as many batches; rows of equal length mix."""
        assert self.sizes is not None
        mixed = torch.randperm(self.n_rows, generator=generator).tolist()
        order = sorted(mixed, key=lambda row: -lengths[row])
        starts = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
        for number in torch.randperm(len(self.sizes), generator=generator).tolist():
            yield order[starts[number] : starts[number + 1]]


def batch_sizes(lengths: Sequence[int], tokens_per_batch: int) -> list[int]:
    """Rows of each batch, longest rows first: as many as fit when padded to the longest of them.

    Raises:
        DataError: a row that alone is too long.
    """
    ordered = sorted(lengths, reverse=True)
    if ordered[0] > tokens_per_batch:
        raise DataError(
            f"a training row has {ordered[0]} tokens, and a batch may have {tokens_per_batch}",
            hint="raise training.tokens_per_batch, or lower data.max_tokens",
        )
    sizes, start = [], 0
    while start < len(ordered):
        sizes.append(min(tokens_per_batch // ordered[start], len(ordered) - start))
        start += sizes[-1]
    return sizes


class EpochLoader(DataLoader[Row]):
    """A loader that passes the epoch on to its batches."""

    def __init__(self, rows: Any, batches: Batches, collate: Any) -> None:
        super().__init__(rows, batch_sampler=batches, collate_fn=collate)
        self._batches = batches

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer before each epoch."""
        self._batches.set_epoch(epoch)
