"""How far a changed model's answers are from those it gave at first: no labels, and no layer run twice for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.errors import DataError
from compressor.methods.calibration import Batch, Trace, real_tokens, run_layer, run_model, trace_layers
from compressor.methods.losses import logit_kl
from compressor.methods.surgery import layers_of

Score = Literal["kl", "cosine", "mse"]
"""KL of the logits, 1 - cosine of mean-pooled last hidden states (embedders), or the logits' squared error."""


class Judge:
    """Compares the model's outputs now with those it gave at first, running only from one layer on."""

    def __init__(self, model: PreTrainedModel, batches: list[Batch], score: Score) -> None:
        self.model, self.batches, self.score = model, batches, score
        self.trace: Trace = trace_layers(model, batches)
        self.reference = [self._outputs(batch) for batch in batches]
        self.at, self.hidden = 0, self.trace.hidden

    def move_to(self, number: int) -> None:
        """Stand before a layer; the layers passed on the way must be dense at this moment."""
        if number < self.at:
            self.move_back()
        for passed in range(self.at, number):
            layer = layers_of(self.model)[passed]
            self.hidden = [
                run_layer(layer, calls[passed], hidden)[0]
                for calls, hidden in zip(self.trace.calls, self.hidden, strict=True)
            ]
        self.at = number

    def move_back(self) -> None:
        """Stand before the first layer again."""
        self.at, self.hidden = 0, self.trace.hidden

    def loss(self) -> float:
        """Mean distance to the first outputs over real positions."""
        loss, n_positions = 0.0, 0
        layers = layers_of(self.model)
        for batch, hidden, reference in zip(self.batches, self.hidden, self.reference, strict=True):
            with _started_at(layers, self.at, hidden):
                found = self._outputs(batch)
            for now, then in zip(found, reference, strict=True):
                loss += float(_distance(now, then, self.score)) * len(then)
                n_positions += len(then)
        return loss / n_positions

    def _outputs(self, batch: Batch) -> list[Tensor]:
        """What is judged, one (positions, width) tensor per output."""
        output, mask = run_model(self.model, batch), real_tokens(batch)
        if self.score == "cosine":
            sentence = getattr(output, "sentence_embedding", None)
            if sentence is not None:
                return [sentence]
            hidden = getattr(output, "last_hidden_state", None)
            if hidden is None:
                raise DataError(
                    "the cosine score needs a model without a task head",
                    hint="score the logits with kl (or mse for a regression)",
                )
            weights = mask[..., None].to(hidden)
            return [(hidden * weights).sum(dim=1) / weights.sum(dim=1)]
        logits = [value for name, value in output.items() if name.endswith("logits")]
        if not logits:
            raise DataError(f"the {self.score} score needs logits, which this model lacks", hint="use score: cosine")
        if self.score == "kl" and logits[0].shape[-1] == 1:
            raise DataError("the kl score of a single logit is always 0", hint="use score: mse for a regression")
        return [value[mask] if value.ndim == 3 else value for value in logits]


def _distance(now: Tensor, then: Tensor, score: Score) -> Tensor:
    if score == "kl":
        return logit_kl(now, then)
    if score == "cosine":
        return (1.0 - F.cosine_similarity(now, then, dim=-1)).mean()
    return F.mse_loss(now, then)


@contextmanager
def _started_at(layers: nn.ModuleList, number: int, hidden: Tensor) -> Iterator[None]:
    """The layers before `number` hand on what they get, and layer `number` gets `hidden` instead."""

    def hand_on(hidden_states: Tensor, *positional: Any, **named: Any) -> Tensor:
        return hidden_states

    def enter(module: nn.Module, positional: tuple[Any, ...]) -> tuple[Any, ...]:
        return (hidden, *positional[1:])

    handle = layers[number].register_forward_pre_hook(enter)
    for passed in layers[:number]:
        passed.forward = hand_on
    try:
        yield
    finally:
        handle.remove()
        for passed in layers[:number]:
            del passed.forward
