"""Taking rows out of embedding tables and output layers: a model over fewer tokens.

For a distillation this is also how a teacher's logits are gathered by `kept_token_ids`: a teacher cut to the student's
tokens reads the student's ids and answers with the logits of these tokens alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from compressor.errors import CheckpointError

_TOKEN_IDS = (
    "pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id", "unk_token_id",
    "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id",
)  # fmt: skip


@torch.no_grad()
def trim_embeddings(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Keep these rows of the embedding table and of the output layer, in place; token ids in the configs follow.

    Args:
        kept: old ids in increasing order; new id i is old id kept[i].

    Raises:
        CheckpointError: ids out of order, or beyond the table.
    """
    embeddings: Any = model.get_input_embeddings()  # one of the many classes that hold a table
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers' own
    table: nn.Parameter = embeddings.weight
    if list(kept) != sorted(set(kept)) or not kept or not 0 <= kept[0] <= kept[-1] < len(table):
        raise CheckpointError(
            f"token ids {kept[0] if kept else None} to {kept[-1] if kept else None} cannot be kept of a table of "
            f"{len(table)} rows",
            hint="the tokenizer and the model must belong together",
        )
    rows = torch.tensor(list(kept), dtype=torch.long, device=table.device)
    is_tied = isinstance(head, nn.Linear) and head.weight is table
    embeddings.weight = nn.Parameter(table[rows], requires_grad=table.requires_grad)
    embeddings.num_embeddings = len(kept)
    new = {old: number for number, old in enumerate(kept)}
    if getattr(embeddings, "padding_idx", None) is not None:
        embeddings.padding_idx = new.get(embeddings.padding_idx)
    if isinstance(head, nn.Linear):
        weight = head.weight
        head.weight = embeddings.weight if is_tied else nn.Parameter(weight[rows], requires_grad=weight.requires_grad)
        if head.bias is not None:
            head.bias = nn.Parameter(head.bias[rows], requires_grad=head.bias.requires_grad)
        head.out_features = len(kept)
    model.config = copy.deepcopy(model.config)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config = model.config
    model.config.vocab_size = len(kept)
    _renumber(model.config, new)
    if model.can_generate() and model.generation_config is not None:
        _renumber(model.generation_config, new)
    return model


def _renumber(config: Any, new: dict[int, int]) -> None:
    """Give the token ids of a config their new numbers; an id that left is no id any more."""
    for name in _TOKEN_IDS:
        value = getattr(config, name, None)
        if isinstance(value, int):
            setattr(config, name, new.get(value))
        elif isinstance(value, list | tuple):
            setattr(config, name, [new[one] for one in value if one in new])
