"""One validation metric of a module as it stands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from compressor.training.answers import PER_TOKEN, answer_of
from compressor.training.metrics import Metric
from compressor.training.rows import Row, batches_by_length, model_inputs, on_device

BATCH_ROWS = 32


@torch.no_grad()
def evaluate(model: nn.Module, rows: Sequence[Row], *, metric: Metric, pad_id: int) -> float:
    """The metric over rows, in fp32 and without dropout; the module is left in evaluation mode."""
    model.eval()
    extra = {"use_cache": False} if getattr(model.config, "use_cache", False) else {}
    device = next(model.parameters()).device
    kept, labels = [], []
    for batch in batches_by_length(rows, BATCH_ROWS, pad_id=pad_id):
        outputs = model(**on_device(model_inputs(batch), device), **extra)
        kept.append(metric.per_row(answer_of(outputs, metric.kind).cpu(), batch["labels"]).numpy())
        if metric.kind not in PER_TOKEN:
            labels.append(batch["labels"].numpy())
    return metric.overall(np.concatenate(kept), np.concatenate(labels) if labels else np.empty(0, dtype=np.int64))
