"""From token vectors to one vector of a text: pooling, dense layers, normalisation.

As sentence-transformers computes them (Reimers and Gurevych, arXiv 1908.10084): padding never counts.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

ACTIVATIONS = {
    "Identity": nn.Identity, "Tanh": nn.Tanh, "GELU": nn.GELU, "ReLU": nn.ReLU, "SiLU": nn.SiLU, "Sigmoid": nn.Sigmoid,
}  # fmt: skip


def pool(tokens: Tensor, mask: Tensor, mode: str) -> Tensor:
    """One vector of each text.

    Args:
        tokens: (B, T, H).
        mask: (B, T), 1 where a token is real; padding may stand on either side.
        mode: `cls` (the first real token), `mean`, `max`, `mean_sqrt_len_tokens` (sum / sqrt n), `weightedmean` (the
            n-th token weighs n; SGPT, arXiv 2202.08904), `lasttoken`.

    Returns:
        (B, H).

    Raises:
        ValueError: an unknown mode.
    """
    real = mask.unsqueeze(-1).to(tokens.dtype)  # (B, T, 1)
    rows = torch.arange(tokens.shape[0], device=tokens.device)
    match mode:
        case "cls":
            return tokens[rows, mask.argmax(dim=1)]
        case "lasttoken":
            return tokens[rows, (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(dim=1)]
        case "max":
            return tokens.masked_fill(real == 0, torch.finfo(tokens.dtype).min).amax(dim=1)
        case "mean":
            return (tokens * real).sum(1) / real.sum(1).clamp(min=1e-9)
        case "mean_sqrt_len_tokens":
            return (tokens * real).sum(1) / real.sum(1).clamp(min=1e-9).sqrt()
        case "weightedmean":
            weights = real * mask.cumsum(dim=1).unsqueeze(-1)
            return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    raise ValueError(f"unknown pooling {mode!r}")


class SentenceHead(nn.Module):
    """Token vectors (B, T, H) and mask (B, T) -> text vectors (B, d). Its weights stay as they are.

    Args:
        modes: pooled vectors stand side by side where there are several.
        dense: (linear layer, activation) pairs, in order.
        normalise: to length 1.
    """

    def __init__(self, modes: Sequence[str], dense: Sequence[tuple[nn.Linear, nn.Module]], normalise: bool) -> None:
        super().__init__()
        self.modes = tuple(modes)
        self.dense = nn.Sequential(*(layer for pair in dense for layer in pair))
        self.normalise = normalise
        self.requires_grad_(False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        vectors: Tensor = self.dense(torch.cat([pool(tokens, mask, mode) for mode in self.modes], dim=-1))
        return functional.normalize(vectors, dim=-1) if self.normalise else vectors


@dataclass(frozen=True)
class SentenceOutput:
    """What an embedder gives: (B, T, H), (B, d) and, where they are asked for, all hidden states, (B, T, H) each."""

    last_hidden_state: Tensor
    sentence_embedding: Tensor
    hidden_states: tuple[Tensor, ...] | None = None

    def items(self) -> list[tuple[str, Tensor]]:
        """The tensors by name, as transformers' outputs have them."""
        return [("last_hidden_state", self.last_hidden_state), ("sentence_embedding", self.sentence_embedding)]


class SentenceEncoder(nn.Module):
    """An encoder and what follows it, as one module to train, run and export. Its checkpoint is the encoder's."""

    def __init__(self, body: PreTrainedModel, head: SentenceHead) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.takes = frozenset(inspect.signature(body.forward).parameters)

    @property
    def config(self) -> Any:
        """The encoder's."""
        return self.body.config

    @property
    def vector_width(self) -> int:
        """Of the vector of a text, d."""
        linear = [layer for layer in self.head.dense if isinstance(layer, nn.Linear)]
        return linear[-1].out_features if linear else int(self.body.config.hidden_size) * len(self.head.modes)

    @property
    def base_model(self) -> nn.Module:
        """Where the layers are, as in every model of transformers."""
        return self.body.base_model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
        use_cache: bool = False,
    ) -> SentenceOutput:
        """Token vectors and the vector of each text; nothing is ever cached."""
        inputs: dict[str, Any] = {"output_hidden_states": output_hidden_states, "use_cache": False}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        taken = {name: value for name, value in inputs.items() if name in self.takes or name == "output_hidden_states"}
        outputs = self.body(input_ids=input_ids, attention_mask=attention_mask, **taken)
        tokens = outputs.last_hidden_state
        return SentenceOutput(
            tokens, self.head(tokens, attention_mask), outputs.hidden_states if output_hidden_states else None
        )
