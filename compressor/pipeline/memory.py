"""Objects in memory as inputs of a run: written to files once, so that everything after is the same for both.

A live model or a data frame has no path and no digest. Writing it into the run's folder gives it both, and the run can
be resumed from another process.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.checkpoints.files import digest_json, sha256_file
from compressor.data.rows import dataset_from_memory, rows_digest
from compressor.errors import UserError
from compressor.spec.pipeline import Pipeline
from compressor.spec.sources import DataSource
from compressor.spec.tasks import TASKS

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

SPLITS = ("train", "validation", "test", "calibration")


def put_in_files(
    pipeline: Pipeline,
    run_dir: Path,
    *,
    model: nn.Module | None,
    tokenizer: PreTrainedTokenizerBase | None,
    data: Mapping[str, Any] | None,
) -> Pipeline:
    """The pipeline with its model and data replaced by what was given in memory.

    Raises:
        UserError: a model without its tokenizer, or a split that does not exist.
    """
    if (model is None) != (tokenizer is None):
        raise UserError("a model in memory needs its tokenizer, and a tokenizer its model", hint="pass both or neither")
    if model is not None and tokenizer is not None:
        folder = _save_model(model, tokenizer, run_dir / "memory")
        source = pipeline.model.model_copy(
            update={"path": str(folder), "hub": None, "revision": None, "config": None, "tokenizer": None}
        )
        pipeline = pipeline.model_copy(update={"model": source})
    if data:
        unknown = sorted(set(data) - set(SPLITS))
        if unknown:
            raise UserError(f"data has no split {unknown[0]!r}", hint=f"the splits are: {', '.join(SPLITS)}")
        task, labels, columns = TASKS[pipeline.model.task], pipeline.model.labels, pipeline.data.columns
        files = {}
        for split, rows in data.items():
            dataset = dataset_from_memory(rows, task=task, columns=columns, labels=labels)
            path = run_dir / "memory" / f"{split}-{rows_digest(dataset)[:8]}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            dataset.to_parquet(path)
            files[split] = DataSource(path=str(path))
        # The files carry the canonical column names, so the mapping must not be applied twice.
        pipeline = pipeline.model_copy(update={"data": pipeline.data.model_copy(update={**files, "columns": {}})})
    return pipeline


def _save_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, parent: Path) -> Path:
    """Save a live Hugging Face model under a name that follows from its content."""
    fresh = parent / "model.partial"
    model.save_pretrained(fresh)  # type: ignore[operator]  # nn.Module's attributes are untyped
    tokenizer.save_pretrained(fresh)
    digest = digest_json({path.name: sha256_file(path) for path in sorted(fresh.iterdir())})
    folder = parent / f"model-{digest[:8]}"
    if not folder.exists():
        fresh.rename(folder)
    return folder
