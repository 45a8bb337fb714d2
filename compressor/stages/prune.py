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

from compressor.checkpoints.store import Checkpoint
from compressor.data.tokenize import load_tokenizer
from compressor.methods.choosing import Choice, choose, dense_cost, macs_cost, parameter_cost, score_options
from compressor.methods.pruning import prune_model
from compressor.methods.structure import Structure
from compressor.methods.surgery import n_parameters
from compressor.methods.units import Importance
from compressor.runtime.torch_models import load_module, quiet_transformers
from compressor.schema.events import Emit, Progress
from compressor.spec.stages import Prune
from compressor.stages.context import SourceInput, StageContext
from compressor.stages.cost import measure_cost
from compressor.stages.rows import calibration_batches, metric_of, pad_id_of, validation_rows
from compressor.stages.sealing import Made, seal_module
from compressor.training.evaluate import evaluate
from compressor.training.rows import Batch, Row

IMPORTANCES: dict[str, Importance] = {
    "block_obs": "block_obs", "magnitude": "magnitude", "wanda": "wanda", "flap": "fluctuation", "taylor": "taylor",
    "fisher": "fisher",
}  # fmt: skip
"""The pipeline's word (a method) -> the measure that it ranks by."""


def prune(config: Prune, inputs: SourceInput, out_dir: Path, ctx: StageContext) -> Checkpoint:
    """Prune the source on calibration rows.

    Raises:
        UnsupportedError: an architecture whose layers we cannot resize.
        UserError: a budget that cannot be met; the least reachable is named.
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
        module, kept, choice = _prune(config, module, batches, emit)
        after = _validate(module, validation, source, ctx)
    lineage = source.content.structure or source.record.realised.get("structure")
    structure = kept if lineage is None else Structure.from_json(lineage).then(kept)
    return seal_module(
        module,
        out_dir,
        made=Made(
            stage=config.id,
            kind=config.stage,
            config=config.model_dump(mode="json", by_alias=True),
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
                else {"metric": metric_of(ctx.task).name, "rows": len(validation), "before": before, "after": after},
            },
        ),
        ctx=ctx,
        cost=meter.cost,
        labels=source.content.labels,
        structure=None if fits_stock_config(module) else structure.to_json(),
        carry_from=source.path,
    )


def fits_stock_config(module: PreTrainedModel) -> bool:
    """Whether a stock model built from the module's own config has these very shapes."""
    with init_empty_weights():
        stock = type(module)(copy.deepcopy(module.config))
    expected = {name: tensor.shape for name, tensor in stock.state_dict().items()}
    return {name: tensor.shape for name, tensor in module.state_dict().items()} == expected


def _prune(
    config: Prune, module: PreTrainedModel, batches: Sequence[Batch], emit: Emit
) -> tuple[PreTrainedModel, Structure, dict[str, Any] | None]:
    importance = IMPORTANCES[config.importance]
    if config.keep is not None:
        keep = config.keep
        emit(Progress(config.id, "prune", 0, 1))
        module, kept = prune_model(
            module,
            batches,
            heads=keep.heads if keep.heads < 1 else None,
            ffn=keep.ffn if keep.ffn < 1 else None,
            importance=importance,
            recovery=config.recovery,
            ffn_granule=config.granule,
        )
        emit(Progress(config.id, "prune", 1, 1))
        return module, kept, None
    choice = _choose(config, module, batches, importance, emit)
    module, kept = prune_model(
        module,
        batches,
        heads=choice.n_heads,
        ffn=choice.ffn_widths,
        importance=importance,
        recovery=config.recovery,
        ffn_granule=config.granule,
    )
    facts = {
        "predicted_loss": choice.predicted_loss,
        "predicted_cost_ratio": choice.predicted_cost / choice.dense_cost,
        "cost": next(iter(config.budget.limits)) if config.budget is not None else None,
    }
    return module, kept, facts


def _choose(
    config: Prune, module: PreTrainedModel, batches: Sequence[Batch], importance: Importance, emit: Emit
) -> Choice:
    """What each layer keeps under the budget; scored on every fourth batch, ranked and refitted on the others."""
    assert config.budget is not None
    name, limit = next(iter(config.budget.limits.items()))
    if name == "macs":
        n_rows = sum(len(batch["input_ids"]) for batch in batches)
        n_tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        cost = macs_cost(module, n_tokens=max(1, round(n_tokens / n_rows)))
    else:
        cost = parameter_cost(module)
    scores = score_options(
        module,
        [batch for number, batch in enumerate(batches) if number % 4 or len(batches) == 1],
        score_batches=batches[::4],
        importance=importance,
        recovery=config.recovery,
        ffn_granule=config.granule,
        on_progress=lambda done, of: emit(Progress(config.id, "score options", done, of)),
    )
    return choose(scores, cost, limit.of(dense_cost(scores.source, cost)))


def _validate(
    module: PreTrainedModel, rows: Sequence[Row] | None, source: Checkpoint, ctx: StageContext
) -> float | None:
    if rows is None:
        return None
    pad_id = pad_id_of(load_tokenizer(source.path))
    return evaluate(module, rows, metric=metric_of(ctx.task), pad_id=pad_id)
