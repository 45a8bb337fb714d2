"""Which whole layers and sublayers may leave: greedily by what their removal does to the answers, or in one pass.

Greedy removal by measured divergence (SLEB, arXiv 2402.09025, section 3.3) asks the model again after each removal, so
that two layers that stand in for each other do not both leave. Block influence (ShortGPT, arXiv 2403.03853, equation 1)
needs one pass and knows nothing of the answers. Removing attention and feed-forward sublayers apart is 2SSP's second
step (arXiv 2501.17771).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.errors import StageError, UserError
from compressor.methods.calibration import Batch, output_paths, run_layer, trace_layers
from compressor.methods.importance import block_influence
from compressor.methods.judging import Judge, Score
from compressor.methods.surgery import adapter_for, layers_of, read_structure

DepthBy = Literal["kl", "block_influence"]
Progress = Callable[[int, int], None]


def layers_to_keep(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    n_kept: int,
    by: DepthBy = "kl",
    on_progress: Progress | None = None,
) -> tuple[int, ...]:
    """The layers whose absence would be missed most, in order; the model is left as it was.

    Layer 0 of an architecture that needs it always stays.

    Args:
        batches: calibration inputs; for "kl" they are run once for each layer tried.
        n_kept: layers to keep.
        on_progress: called with (removals found, removals in all).

    Raises:
        UserError: fewer than one layer, or more than there are.
        StageError: all layers would be kept.
        DataError: no calibration data.
    """
    batches, n_layers = list(batches), len(layers_of(model))
    _check_count(n_kept, n_layers, "layers")
    fixed = {0} if adapter_for(model).first_layer_stays else set()
    if by == "block_influence":
        influences = layer_influences(model, batches)
        removable = sorted(set(range(n_layers)) - fixed, key=lambda number: (influences[number], number))
        return tuple(sorted(set(range(n_layers)) - set(removable[: n_layers - n_kept])))
    candidates = [number for number in range(n_layers) if number not in fixed]
    gone = _greedy(model, batches, candidates, n_layers - n_kept, _without_layer, on_progress)
    return tuple(sorted(set(range(n_layers)) - gone))


def sublayers_to_keep(
    model: PreTrainedModel, batches: Iterable[Batch], kind: str, n_kept: int, on_progress: Progress | None = None
) -> tuple[int, ...]:
    """The layers that keep their attention (or feed-forward) sublayer, greedily by divergence.

    Args:
        kind: "attention" or "ffn".
        n_kept: sublayers of that kind to keep, of those that are still there.

    Raises:
        UserError, StageError, DataError: as `layers_to_keep`.
    """
    present = [n for n, layer in enumerate(read_structure(model).layers) if kind not in layer.skip]
    _check_count(n_kept, len(present), f"{kind} sublayers")
    path = output_paths(adapter_for(model))[kind]

    def without(layer: nn.Module) -> Any:
        return _without_output(layer.get_submodule(path))

    gone = _greedy(model, list(batches), present, len(present) - n_kept, without, on_progress)
    return tuple(sorted(set(present) - gone))


def layer_influences(model: PreTrainedModel, batches: Iterable[Batch]) -> list[float]:
    """Block influence of each layer over all real tokens: 0 where a layer hands on what it gets.

    Raises:
        DataError: no calibration data.
    """
    trace = trace_layers(model, batches)
    hidden, found = trace.hidden, []
    weights = [int(mask.sum()) for mask in trace.masks]
    for number, layer in enumerate(layers_of(model)):
        after = [run_layer(layer, calls[number], states)[0] for calls, states in zip(trace.calls, hidden, strict=True)]
        influences = [
            weight * block_influence(a, b, mask) if weight else 0.0
            for a, b, mask, weight in zip(hidden, after, trace.masks, weights, strict=True)
        ]
        found.append(sum(influences) / sum(weights))
        hidden = after
    return found


def _check_count(n_kept: int, present: int, what: str) -> None:
    if not 1 <= n_kept <= present:
        raise UserError(f"{n_kept} of {present} {what} cannot be kept", hint=f"keep 1 to {present}")
    if n_kept == present:
        raise StageError(f"nothing would be removed: all {present} {what} are kept", hint="keep fewer")


def _greedy(
    model: PreTrainedModel,
    batches: list[Batch],
    candidates: Sequence[int],
    n_removed: int,
    without: Callable[[nn.Module], Any],
    on_progress: Progress | None,
) -> set[int]:
    """Remove the least missed, again and again; gives the layers where something leaves."""
    if n_removed > len(candidates):
        raise UserError(
            f"{n_removed} layers cannot leave: layer 0 of a {model.config.model_type!r} model must stay",
            hint=f"remove {len(candidates)} at most",
        )
    layers, removed, judge = layers_of(model), list[int](), Judge(model, batches, _score_of(model))
    while len(removed) < n_removed:
        losses: dict[int, float] = {}
        for number in candidates:
            if number in removed:
                continue
            with ExitStack() as stack:
                for gone in (*removed, number):
                    stack.enter_context(without(layers[gone]))
                losses[number] = judge.loss()
        removed.append(min(losses, key=lambda number: (losses[number], number)))
        if on_progress is not None:
            on_progress(len(removed), n_removed)
    return set(removed)


def _score_of(model: PreTrainedModel) -> Score:
    """KL of the logits; the squared error of a single one (a regression); pooled states where there is no head."""
    if model is model.base_model:
        return "cosine"
    return "mse" if not model.can_generate() and model.config.num_labels == 1 else "kl"


@contextmanager
def _without_layer(layer: nn.Module) -> Iterator[None]:
    """The layer hands on what it gets."""

    def hand_on(hidden_states: Tensor, *positional: Any, **named: Any) -> Tensor:
        return hidden_states

    layer.forward = hand_on
    try:
        yield
    finally:
        del layer.forward


@contextmanager
def _without_output(projection: nn.Module) -> Iterator[None]:
    """The projection puts out its bias alone: what a removed sublayer leaves."""

    def only_bias(module: nn.Module, positional: Any, output: Tensor) -> Tensor:
        bias = module.bias
        return torch.zeros_like(output) if not isinstance(bias, Tensor) else bias.expand_as(output)

    handle = projection.register_forward_hook(only_bias)
    try:
        yield
    finally:
        handle.remove()
