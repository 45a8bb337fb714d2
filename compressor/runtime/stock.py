"""A pruned checkpoint as a folder that plain `from_pretrained` opens: equal answers, as large as its widest layer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compressor.checkpoints.files import carry_files
from compressor.checkpoints.store import Checkpoint
from compressor.errors import StageError, UserError
from compressor.methods.surgery import n_parameters, stock_fit, zero_pad_to_stock
from compressor.runtime.torch_models import load_module, save_module

_NOT_CARRIED = ("config.json", "generation_config.json", "model.", "model-", "onnx/", "README.md", "report.json")


def write_stock(checkpoint: Checkpoint, out_dir: Path) -> tuple[int, int]:
    """Write a stock Hugging Face folder: removed heads and neurons come back as zeros where the config needs them.

    Gives the parameters of the checkpoint and of what was written. The folder is no checkpoint of ours: it has no
    manifest, since padding gives up what the pruning saved.

    Raises:
        UserError: the folder has files already.
        UnsupportedError: no stock shape can hold this model (a hidden width that its config cannot say).
        StageError: the padded model answers otherwise.
    """
    if out_dir.exists() and any(out_dir.iterdir()):
        raise UserError("the folder is not empty", where=str(out_dir), hint="name a new one with --out")
    module = load_module(checkpoint)
    padded = module if stock_fit(module).uniform else zero_pad_to_stock(module)
    _require_equal(module, padded)
    save_module(padded, out_dir)
    carry_files(checkpoint.path, out_dir, exclude_prefixes=_NOT_CARRIED)
    return n_parameters(module), n_parameters(padded)


@torch.no_grad()
def _require_equal(module: PreTrainedModel, padded: PreTrainedModel) -> None:
    ids = torch.arange(2, 34).reshape(2, 16) % int(module.config.vocab_size)
    answers: list[Tensor] = [one(input_ids=ids)[0] for one in (module, padded)]
    difference, largest = float((answers[0] - answers[1]).abs().max()), float(answers[0].abs().max())
    if not difference <= 1e-4 * max(largest, 1e-6):
        raise StageError(
            f"the padded model answers otherwise: outputs differ by {difference:.3g}, the largest is {largest:.3g}",
            hint="open the checkpoint with compressor.load, or export it to ONNX",
        )
