"""How every stage ends: files in place, numbers read back, manifest last."""

from __future__ import annotations

import datetime as dt
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from compressor.checkpoints.files import carry_files
from compressor.checkpoints.manifest import Record, Variant
from compressor.checkpoints.sentence import read_sentence_modules, set_pooling_width
from compressor.checkpoints.store import Checkpoint, seal
from compressor.energy import identify_cpu
from compressor.methods.surgery import ADAPTERS, hidden_width, n_parameters
from compressor.runtime.torch_models import save_module
from compressor.spec.stages import Stage
from compressor.stages.context import StageContext
from compressor.stages.cost import Cost

TORCH_VARIANT = "torch-fp32"
WEIGHTS = "model.safetensors"
NOT_CARRIED = ("config.json", "model.", "model-", "onnx/", "README.md", "report.json")
"""What a new module writes itself, and what speaks of the old one."""


@dataclass(frozen=True)
class Made:
    """Who made a checkpoint, from what: the part of a record that a stage knows.

    Attributes:
        stage: the stage's id.
        kind: `source`, `finetune`, ...
        config: its settings.
        inputs: role -> digest.
        splits: the splits it read.
        realised: figures measured afterwards.
    """

    stage: str
    kind: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    splits: Sequence[str]
    realised: Mapping[str, Any]


def made_by(config: Stage, *, inputs: Mapping[str, str], splits: Sequence[str], realised: Mapping[str, Any]) -> Made:
    """The part that a stage of a pipeline knows: its own id, kind and settings, and what the arguments say."""
    settings = config.model_dump(mode="json", by_alias=True)
    return Made(config.id, config.stage, settings, inputs, splits, realised)


def seal_module(
    module: PreTrainedModel,
    out_dir: Path,
    *,
    made: Made,
    ctx: StageContext,
    cost: Cost | None,
    labels: tuple[str, ...] | None,
    structure: dict[str, Any] | None,
    carry_from: Path | None,
    replaced: Sequence[str] = (),
) -> Checkpoint:
    """Write a torch module with its tokenizer and seal the folder.

    Args:
        structure: what pruning kept where a stock config cannot say it, else None.
        carry_from: folder whose tokenizer and other small files go along; None when they are written already.
        replaced: names of files that the stage wrote itself, so that the source's do not go along.
    """
    save_module(module, out_dir, structure=structure)
    if carry_from is not None:
        carry_files(carry_from, out_dir, exclude_prefixes=(*NOT_CARRIED, *replaced))
    modules = read_sentence_modules(out_dir)
    if modules is not None:
        set_pooling_width(out_dir, modules, _width(module))
    variant = Variant(
        id=TORCH_VARIANT,
        path=WEIGHTS,
        runtime="torch",
        scheme="fp32",
        stage=made.stage,
        parameters=n_parameters(module),
        size_bytes=(out_dir / WEIGHTS).stat().st_size,
        facts={"dtypes": sorted({str(value.dtype).removeprefix("torch.") for value in module.parameters()})},
    )
    return seal(
        out_dir,
        task=ctx.task.name,
        model_type=str(module.config.model_type),
        architecture=type(module).__name__,
        labels=labels,
        variants=[variant],
        structure=structure,
        record=make_record(made, ctx, cost),
    )


def _width(module: PreTrainedModel) -> int:
    """Channels of the hidden states; a pruned model's config may not be able to say it."""
    return hidden_width(module) if module.config.model_type in ADAPTERS else int(module.config.hidden_size)


def seal_variant(
    source: Checkpoint, out_dir: Path, variant: Variant, *, made: Made, ctx: StageContext, cost: Cost | None
) -> Checkpoint:
    """Seal a folder to which the source's files were carried forward and a variant was added."""
    content = source.content
    others = [other for other in content.variants if other.path != variant.path]
    return seal(
        out_dir,
        task=content.task,
        model_type=content.model_type,
        architecture=content.architecture,
        labels=content.labels,
        variants=[*others, variant],
        structure=content.structure,
        record=make_record(made, ctx, cost),
    )


def make_record(made: Made, ctx: StageContext, cost: Cost | None) -> Record:
    """The record of a manifest."""
    assert cost is not None, "the cost is known once the work has ended"
    return Record(
        stage=made.stage,
        kind=made.kind,
        fingerprint=ctx.fingerprint,
        config=dict(made.config),
        inputs=dict(made.inputs),
        data={split: ctx.data.digests[split] for split in made.splits if split in ctx.data.digests},
        seed=ctx.seed,
        versions=dict(ctx.versions),
        realised=dict(made.realised),
        wall_s=cost.wall_s,
        cpu_s=cost.cpu_s,
        energy=cost.energy,
        energy_reason=cost.energy_reason,
        host={
            "cpu": identify_cpu().name,
            "n_cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": platform.system(),
            "python": platform.python_version(),
        },
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )
