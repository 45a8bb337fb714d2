"""From a pipeline's workloads to the shapes of call that a cost table times, with their shares of the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from compressor.errors import DataError, UserError
from compressor.measurement.cost_table import CallShape
from compressor.spec.evaluation import Workload

LENGTH_STEP = 4
"""Mean lengths of padded batches are rounded to this, so that tables of slightly different texts share rows."""


def call_shapes(
    workloads: Sequence[Workload],
    row_lengths: Sequence[int],
    *,
    is_decoder: bool,
    workload: str | None = None,
    phase: Literal["forward", "prefill", "decode"] | None = None,
) -> tuple[CallShape, ...]:
    """One shape for each workload and phase; weights are shares of the mix's tokens and add up to 1.

    Batches of rows from data become one shape, as long as those batches are on average. A step of decoding is taken in
    the middle of the output.

    Args:
        workloads: of the pipeline.
        row_lengths: tokens of each calibration row, in file order: test rows are not for stages to see.
        is_decoder: whether calls are prefills and steps of decoding.
        workload, phase: count only these.

    Raises:
        UserError: no such workload, or none with that phase.
        DataError: rows are to be taken from data, and there are none.
    """
    known = [one.id for one in workloads]
    if workload is not None and workload not in known:
        raise UserError(f"no workload {workload!r}", where="budget.workload", hint=f"there are: {', '.join(known)}")
    chosen = [one for one in workloads if workload in (None, one.id)]
    shapes = [
        replace(shape, weight=shape.weight * one.weight)
        for one in chosen
        for shape in (_decoder_calls(one, row_lengths) if is_decoder else [_forward_call(one, row_lengths)])
        if phase in (None, shape.phase)
    ]
    if not shapes:
        raise UserError(
            f"no workload has a phase {phase!r}",
            where="budget.phase",
            hint="an encoder has `forward`; a decoder `prefill`, and `decode` where the workload says output_tokens",
        )
    total = sum(shape.weight for shape in shapes)
    return tuple(replace(shape, weight=shape.weight / total) for shape in shapes)


def _forward_call(workload: Workload, row_lengths: Sequence[int]) -> CallShape:
    n_new, real = _lengths(workload, row_lengths)
    return CallShape("forward", workload.batch, n_new, 0, real, 1.0)


def _decoder_calls(workload: Workload, row_lengths: Sequence[int]) -> list[CallShape]:
    n_in, real = _lengths(workload, row_lengths)
    n_out = workload.output_tokens or 0
    prefill = CallShape("prefill", workload.batch, n_in, 0, real, n_in / (n_in + n_out))
    if not n_out:
        return [prefill]
    decode = CallShape("decode", workload.batch, 1, n_in + n_out // 2, float(workload.batch), n_out / (n_in + n_out))
    return [prefill, decode]


def _lengths(workload: Workload, row_lengths: Sequence[int]) -> tuple[int, float]:
    """Tokens of each row with padding, and real tokens of the whole call."""
    if workload.input_tokens is not None:
        return workload.input_tokens, float(workload.batch * workload.input_tokens)
    if not row_lengths:
        raise DataError("a workload from data needs calibration rows, to know how long they are", where="data")
    lengths = sorted(row_lengths, reverse=True) if workload.order == "length" else list(row_lengths)
    starts = range(0, max(1, len(lengths) - workload.batch + 1), workload.batch)
    batches = [lengths[start : start + workload.batch] for start in starts]
    padded = sum(max(batch) for batch in batches) / len(batches)
    real_share = sum(sum(batch) for batch in batches) / sum(max(batch) * len(batch) for batch in batches)
    n_new = max(LENGTH_STEP, LENGTH_STEP * round(padded / LENGTH_STEP))
    return n_new, workload.batch * n_new * real_share
