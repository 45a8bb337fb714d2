"""Quality of a graph on validation rows, and whether it is still good enough: what an exclusion loop asks.

A run is any function from a batch of inputs to logits, so one set of rows serves the fp32 graph, every mixture of a
switchboard and the file that comes of it. Nothing here sees a test row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from compressor.checkpoints.store import Checkpoint
from compressor.data.tokenize import batches, encode_rows, load_tokenizer, windows
from compressor.errors import DataError
from compressor.runtime.runners import Array
from compressor.spec.stages import Until
from compressor.stages.context import StageContext
from compressor.stages.rows import pad_id_of

ROWS, BATCH = 512, 8
CONTEXT, SCORED_TOKENS = 256, 2048

Run = Callable[[Mapping[str, Array]], Array]
"""A batch by name -> logits, (B, C) or (B, T, V)."""


@dataclass(frozen=True)
class Validation:
    """Batches to ask about, and what the fp32 graph says to them.

    Attributes:
        until: the metric and its limit.
        batches: `input_ids` and `attention_mask` (B, T), and others by name.
        labels: class of each row, where the metric is accuracy.
        reference: the metric of the fp32 graph.
        answers: its first choices, where the metric is agreement.
    """

    until: Until
    batches: tuple[dict[str, Array], ...]
    labels: Array | None
    reference: float
    answers: Array | None

    def measure(self, run: Run) -> float:
        """The metric of another graph."""
        return _metric(self.until.metric, self.batches, run, self.labels, self.answers)

    def keeps(self, value: float) -> bool:
        """Whether that is within the limit."""
        if self.until.max_ratio is not None:
            return value <= self.until.max_ratio * self.reference
        assert self.until.max_drop_points is not None, "the pipeline gives one limit"
        return 100 * (self.reference - value) <= self.until.max_drop_points + 1e-9


def open_validation(until: Until, source: Checkpoint, ctx: StageContext, run: Run) -> Validation:
    """The validation rows of a stage, and the fp32 graph's own quality on them.

    Raises:
        DataError: there are no validation rows.
    """
    if ctx.data.validation is None or len(ctx.data.validation) == 0:
        raise DataError(
            "nodes are left out until quality on validation rows holds, and there are none",
            where="data.validation",
            hint="add `data.validation`, or name the nodes in `exclude`",
        )
    tokenizer = load_tokenizer(source.path)
    labels = None
    if ctx.task.is_decoder:
        made = _windows(ctx, tokenizer)
    else:
        rows = ctx.data.validation.select(range(min(ROWS, len(ctx.data.validation))))
        encoded = encode_rows(tokenizer, rows, ctx.max_tokens)
        made = tuple(batches(encoded, BATCH, pad_id_of(tokenizer)))
        labels = np.array(rows["label"]) if until.metric == "accuracy" else None
    answers = None
    if until.metric == "agreement":
        answers = _choices(made, run)
    reference = _metric(until.metric, made, run, labels, answers)
    return Validation(until, made, labels, reference, answers)


def _windows(ctx: StageContext, tokenizer: object) -> tuple[dict[str, Array], ...]:
    assert ctx.data.validation is not None
    context = min(ctx.max_tokens, CONTEXT)
    n_scored, made = 0, []
    for window in windows(tokenizer, ctx.data.validation["text"], context, context // 2):  # type: ignore[arg-type]
        ids = np.array([window.ids], np.int64)
        made.append({"input_ids": ids, "attention_mask": np.ones_like(ids)})
        n_scored += window.n_scored
        if n_scored >= SCORED_TOKENS:
            break
    return tuple(made)


def _metric(
    metric: str, made: tuple[dict[str, Array], ...], run: Run, labels: Array | None, answers: Array | None
) -> float:
    if metric == "token_perplexity":
        return _perplexity(made, run)
    expected = labels if metric == "accuracy" else answers
    assert expected is not None
    return float((_choices(made, run) == expected).mean())


def _choices(made: tuple[dict[str, Array], ...], run: Run) -> Array:
    """First choice of every row, or of every real token."""
    found = []
    for batch in made:
        best = run(batch).argmax(axis=-1)  # (B,) or (B, T)
        found.append(best[batch["attention_mask"] != 0] if best.ndim == 2 else best)
    return np.concatenate(found)


def _perplexity(made: tuple[dict[str, Array], ...], run: Run) -> float:
    """Over every token but the first of each window."""
    total, n_tokens = 0.0, 0
    for batch in made:
        logits = run(batch)[0, :-1].astype(np.float64)  # (T - 1, V)
        targets = batch["input_ids"][0, 1:]
        shifted = logits - logits.max(axis=-1, keepdims=True)
        log_z = np.log(np.exp(shifted).sum(axis=-1))
        total += float((log_z - shifted[np.arange(len(targets)), targets]).sum())
        n_tokens += len(targets)
    return float(np.exp(total / n_tokens))
