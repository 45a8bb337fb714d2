"""Structured pruning: attention heads and feed-forward neurons leave, and what stays is refitted without training.

What every layer keeps is either the same fraction, or chosen layer by layer under a budget by what each removal does at
the end of the model. A result that a stock config can describe is saved as one; any other carries its structure.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from transformers import PreTrainedModel

from compressor.checkpoints.precisions import PRECISIONS, write_precisions
from compressor.checkpoints.store import Checkpoint
from compressor.data.tokenize import load_tokenizer
from compressor.errors import UserError
from compressor.methods.fractions import Fractions, prune_to_fractions
from compressor.methods.judging import Score
from compressor.methods.pruning import prune_model
from compressor.methods.structure import Structure
from compressor.methods.surgery import n_parameters, read_structure, stock_fit
from compressor.methods.uniform import stock_head_counts
from compressor.methods.units import Importance
from compressor.runtime.torch_models import load_module, quiet_transformers, with_head
from compressor.schema.events import Emit, Progress
from compressor.spec.budgets import Search
from compressor.spec.stages import Prune
from compressor.spec.tasks import Task
from compressor.stages.context import SourceInput, StageContext
from compressor.stages.cost import measure_cost
from compressor.stages.rows import calibration_batches, metric_of, pad_id_of, validation_rows
from compressor.stages.sealing import made_by, seal_module
from compressor.stages.searching import Request, search
from compressor.training.evaluate import evaluate
from compressor.training.rows import Batch, Row

IMPORTANCES: dict[str, Importance] = {
    "block_obs": "block_obs", "magnitude": "magnitude", "wanda": "wanda", "flap": "fluctuation", "taylor": "taylor",
    "fisher": "fisher", "activation_mean": "activation_mean",
}  # fmt: skip
"""The pipeline's word (a method) -> the measure that it ranks by."""


def prune(config: Prune, inputs: SourceInput, out_dir: Path, ctx: StageContext) -> Checkpoint:
    """Prune the source on calibration rows.

    Raises:
        UnsupportedError: an architecture whose layers we cannot resize.
        UserError: a budget that cannot be met (the least reachable is named), or one that INT8 alone keeps.
        DataError: no calibration rows, or too few of them.
        StageError: nothing was removed.
    """
    source = inputs.source
    with measure_cost(ctx.workdir, ctx.calibration) as meter, quiet_transformers():
        emit = meter.watching(ctx.emit)
        module = load_module(source)
        batches = calibration_batches(source, ctx)
        validation = validation_rows(source, ctx)
        n_before, before = n_parameters(module), _validate(module, validation, source, ctx)
        module, kept, choice = _prune(config, module, batches, ctx, emit)
        if config.layout == "uniform" and not fits_stock_config(module):
            raise UserError(
                f"the result is no uniform shape: {stock_fit(module).reason}",
                where=f"stages.{config.id}.layout",
                hint="set `layout: per_layer`, prune the feed-forward width alone, or keep the same fraction of hidden "
                "channels as of heads",
            )
        after = _validate(module, validation, source, ctx)
    lineage = source.content.structure or source.record.realised.get("structure")
    structure = kept if lineage is None else Structure.from_json(lineage).then(kept)
    if choice is not None and "precisions" in choice:
        out_dir.mkdir(parents=True, exist_ok=True)
        write_precisions(out_dir, choice["precisions"])
    return seal_module(
        module,
        out_dir,
        made=made_by(
            config,
            inputs={"source": source.digest},
            splits=("calibration", "validation"),
            realised={
                "parameters": n_parameters(module),
                "parameters_before": n_before,
                "calibration_tokens": int(sum(int(batch["attention_mask"].sum()) for batch in batches)),
                "structure": structure.to_json(),
                "choice": choice,
                "validation": None
                if validation is None
                else {
                    "metric": metric_of(ctx.task, source.content.labels).name,
                    "rows": len(validation),
                    "before": before,
                    "after": after,
                },
            },
        ),
        ctx=ctx,
        cost=meter.cost,
        labels=source.content.labels,
        structure=None if fits_stock_config(module) else structure.to_json(),
        carry_from=source.path,
        replaced=(PRECISIONS,),
    )


def fits_stock_config(module: PreTrainedModel) -> bool:
    """Whether a stock model built from the module's own config has these very shapes."""
    with init_empty_weights():
        stock = type(module)(copy.deepcopy(module.config))
    expected = {name: tensor.shape for name, tensor in stock.state_dict().items()}
    return {name: tensor.shape for name, tensor in module.state_dict().items()} == expected


def _prune(
    config: Prune, module: PreTrainedModel, batches: Sequence[Batch], ctx: StageContext, emit: Emit
) -> tuple[PreTrainedModel, Structure, dict[str, Any] | None]:
    importance = IMPORTANCES[config.importance]
    if config.backend == "torch-pruning":
        from compressor.methods.torch_pruning import prune_by_torch_pruning  # an extra

        assert config.keep is not None, "the settings allow this backend with `keep` only"
        emit(Progress(config.id, "prune", 0, 1))
        kept = prune_by_torch_pruning(
            module, batches[0], heads=config.keep.heads, ffn=config.keep.ffn, granule=config.granule
        )
        emit(Progress(config.id, "prune", 1, 1))
        return module, kept, None
    if config.keep is not None:
        module, kept = prune_to_fractions(
            module,
            batches,
            Fractions(**config.keep.model_dump()),
            depth_by=config.depth_by,
            importance=importance,
            recovery=config.recovery,
            granule=config.granule,
            on_progress=lambda what, done, of: emit(Progress(config.id, what, done, of)),
        )
        return module, kept, None
    assert config.budget is not None, "the settings have `keep` or `budget`"
    request = Request(
        stage=config.id,
        budget=config.budget,
        search=config.search or Search(),
        importance=importance,
        recovery=config.recovery,
        granule=config.granule,
        score=score_of(ctx.task),
        uniform=stock_head_counts(module) if config.layout == "uniform" else None,
    )
    found = search(request, module, batches, ctx.costs, emit)
    source = read_structure(module)
    if found.keeps_all(source) and found.has_int8:
        return module, source, found.facts
    if found.keeps_all(source) and request.search.precision == "int8":
        raise UserError(
            f"INT8 alone keeps the budget of {', '.join(found.facts['budget'].values())}: nothing has to be pruned",
            where=f"stages.{config.id}.budget",
            hint="leave this stage out and quantise the export, or lower the budget",
        )
    module, kept = prune_model(
        module,
        batches,
        heads=found.n_heads,
        ffn=found.ffn_widths,
        importance=importance,
        recovery=config.recovery,
        ffn_granule=config.granule,
    )
    return module, kept, found.facts


def score_of(task: Task) -> Score:
    """How far a changed model is from the dense one: in the vectors, the number, the answers given apart, or the
    distribution that it answers with."""
    if task.kind == "embedding":
        return "cosine"
    return "mse" if task.kind in ("number", "classes") else "kl"


def _validate(
    module: PreTrainedModel, rows: Sequence[Row] | None, source: Checkpoint, ctx: StageContext
) -> float | None:
    if rows is None:
        return None
    pad_id = pad_id_of(load_tokenizer(source.path))
    return evaluate(
        with_head(module, source.path, ctx.task),
        rows,
        metric=metric_of(ctx.task, source.content.labels),
        pad_id=pad_id,
    )
