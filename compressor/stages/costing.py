"""The measured costs that a pruning under a budget chooses by: its table is made before the stage, and is its input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compressor import energy
from compressor.checkpoints.store import Checkpoint
from compressor.data.splits import StageData
from compressor.data.tokenize import load_tokenizer
from compressor.errors import DataError
from compressor.measurement.calls import call_shapes
from compressor.measurement.cost_basis import CostBasis, measure_costs
from compressor.measurement.cost_rows import Effort
from compressor.runtime.runners import n_cores
from compressor.runtime.torch_models import load_module, quiet_transformers
from compressor.schema.events import Emit, Progress
from compressor.spec.budgets import Search
from compressor.spec.evaluation import Target, Workload
from compressor.spec.stages import Prune
from compressor.spec.tasks import Task

LENGTH_ROWS = 512
"""Calibration rows whose lengths say how long batches are."""


def cost_basis(
    config: Prune,
    source: Checkpoint,
    *,
    workloads: Sequence[Workload],
    data: StageData,
    task: Task,
    max_tokens: int,
    target: Target,
    calibration: energy.Calibration | None,
    emit: Emit,
    effort: Effort | None = None,
    check: bool = True,
    graphs: Path | None = None,
) -> CostBasis | None:
    """Measure what is missing of the source's cost table; None where the budget is counted and needs none.

    Args:
        config, source: the stage and what it starts from.
        workloads, data, task, max_tokens, target: of the pipeline.
        calibration: watts of this machine, where energy is estimated.
        emit: takes progress.
        effort: how long things are timed.
        check: hold sums over the table against random whole models before they are believed.
        graphs: folder to make that keeps what is exported, the dense model too; temporary ones where None.

    Raises:
        UserError: a table of another device or model; a workload or phase that does not exist.
        StageError: sums over the table do not predict whole models.
    """
    budget, search = config.budget, config.search or Search()
    if budget is None or not budget.is_measured:
        return None
    if graphs is not None:
        graphs.mkdir(exist_ok=True)
    lengths = row_lengths(source.path, data, max_tokens) if any(one.from_data for one in workloads) else []
    calls = call_shapes(workloads, lengths, is_decoder=task.is_decoder, workload=budget.workload, phase=budget.phase)
    with quiet_transformers():
        module = load_module(source)
        return measure_costs(
            module,
            is_decoder=task.is_decoder,
            outputs=exported_outputs(task),
            calls=calls,
            precision=search.precision,
            granule=config.granule,
            threads=target.threads or n_cores(),
            provider=target.provider,
            path=None if search.cost_table is None else Path(search.cost_table),
            accept_other_device=search.accept_other_device,
            calibration=calibration,
            effort=effort,
            check=check,
            graphs=graphs,
            on_progress=lambda what, done, total: emit(Progress(config.id, what, done, total)),
        )


def exported_outputs(task: Task) -> tuple[str, ...]:
    """What a cost graph gives: the task's outputs; of an embedder its token vectors, since pooling costs next to
    nothing and no choice changes it."""
    return ("last_hidden_state",) if task.kind == "embedding" else task.outputs


def row_lengths(folder: Path, data: StageData, max_tokens: int) -> list[int]:
    """Tokens of calibration rows, in file order.

    Raises:
        DataError: there are none.
    """
    if data.calibration is None or len(data.calibration) == 0:
        raise DataError(
            "a workload from data needs calibration rows, to know how long they are",
            where="data.calibration",
            hint="add `data.calibration` or `data.train`, or give the workload `input_tokens`",
        )
    rows = data.calibration.select(range(min(LENGTH_ROWS, len(data.calibration))))
    if "words" in rows.column_names:
        sides = [[" ".join(words) for words in rows["words"]]]
    else:
        sides = [list(rows[name]) for name in ("text", "text_pair") if name in rows.column_names]
    encoded = load_tokenizer(folder)(*sides, truncation=True, max_length=max_tokens)
    return [len(ids) for ids in encoded["input_ids"]]
