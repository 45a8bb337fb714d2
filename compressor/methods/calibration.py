"""Run a model over calibration batches and keep sums of what flows through it: real tokens only, no gradients kept.

The layers are driven one at a time: one pass over the whole model notes what every layer is called with (masks,
positions), after which a layer can be run alone on other hidden states, dense or pruned. That makes layer-by-layer
pruning linear in depth. Taps are temporary forward hooks, gone when their `with` block ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.errors import DataError
from compressor.methods.importance import Moments
from compressor.methods.recovery import Target
from compressor.methods.structure import ATTENTION, FFN
from compressor.methods.surgery import Adapter, adapter_for, layers_of, read_structure
from compressor.methods.surgery.slicing import linear_at, n_inputs

Batch: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class LayerCall:
    """What one layer is called with besides the hidden state."""

    positional: tuple[Any, ...]
    named: dict[str, Any]

    def run(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """Call a layer, its own or another, on other hidden states (B, T, H)."""
        output: Tensor = layer(hidden, *self.positional, **self.named)
        return output


@dataclass(frozen=True)
class Trace:
    """One dense pass over all batches.

    Attributes:
        hidden: per batch (B, T, H), what enters the first layer.
        calls: per batch, per layer.
        masks: per batch (B, T) bool, the real tokens.
    """

    hidden: list[Tensor]
    calls: list[list[LayerCall]]
    masks: list[Tensor]

    @property
    def n_tokens(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks)


def trace_layers(model: PreTrainedModel, batches: Iterable[Batch]) -> Trace:
    """Run the model once and note how each layer is called.

    Raises:
        DataError: no batches, or nothing but padding.
        UnsupportedError: an architecture without an adapter.
    """
    trace = Trace([], [], [])
    layers = layers_of(model)
    for batch in batches:
        seen: list[tuple[Tensor, LayerCall]] = []

        def note(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any], seen: list[Any] = seen) -> None:
            seen.append((positional[0].detach(), LayerCall(positional[1:], dict(named))))

        handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
        try:
            run_model(model, batch)
        finally:
            for handle in handles:
                handle.remove()
        trace.hidden.append(seen[0][0])
        trace.calls.append([call for _, call in seen])
        trace.masks.append(real_tokens(batch))
    if trace.n_tokens == 0:
        raise DataError(
            "the calibration data holds no real token, " + ("only padding" if trace.masks else "not even a batch"),
            hint="give texts that are not empty",
        )
    return trace


def run_model(model: PreTrainedModel, batch: Batch) -> Any:
    """One forward pass in evaluation mode without gradients, labels or cache."""
    with evaluating(model), torch.no_grad():
        return model(**{name: value for name, value in batch.items() if name != "labels"})


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """No dropout, no key/value cache; both as before afterwards."""
    was_training, had_cache = model.training, getattr(model.config, "use_cache", None)
    model.eval()  # type: ignore[no-untyped-call]
    if had_cache:
        model.config.use_cache = False
    try:
        yield
    finally:
        model.train(was_training)
        if had_cache:
            model.config.use_cache = had_cache


def real_tokens(batch: Batch) -> Tensor:
    """(B, T) bool: not padding. A batch without an attention mask has none."""
    if "attention_mask" in batch:
        return batch["attention_mask"].bool()
    return torch.ones_like(batch["input_ids"], dtype=torch.bool)


@torch.no_grad()
def run_layer(
    layer: nn.Module, call: LayerCall, hidden: Tensor, inputs_of: Sequence[str] = (), outputs_of: Sequence[str] = ()
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run one layer and tap it.

    Args:
        inputs_of, outputs_of: paths of modules inside the layer.

    Returns:
        The layer's output (B, T, H), and the tapped tensors as "in:path" and "out:path".
    """
    taps: dict[str, Tensor] = {}
    handles = []
    for path in inputs_of:

        def note_input(module: nn.Module, positional: tuple[Any, ...], path: str = path) -> None:
            taps[f"in:{path}"] = positional[0]

        handles.append(layer.get_submodule(path).register_forward_pre_hook(note_input))
    for path in outputs_of:

        def note_output(module: nn.Module, positional: Any, output: Tensor, path: str = path) -> None:
            taps[f"out:{path}"] = output

        handles.append(layer.get_submodule(path).register_forward_hook(note_output))
    try:
        return call.run(layer, hidden), taps
    finally:
        for handle in handles:
            handle.remove()


class MomentSums:
    """Adds up Gram, sum and cross moments batch by batch: products in fp32 within a batch, sums in float64.

    The sums lie on the CPU, wherever the model runs: float64 solves gain nothing from most accelerators.
    """

    def __init__(self) -> None:
        self._gram: Tensor | float = 0.0
        self._total: Tensor | float = 0.0
        self._cross: Tensor | float = 0.0
        self._target_total: Tensor | float = 0.0
        self._n_tokens = 0

    def add(self, inputs: Tensor, mask: Tensor, wanted: Tensor | None = None) -> None:
        """Add one batch.

        Args:
            inputs: (B, T, d).
            mask: (B, T) bool.
            wanted: (B, T, out) what the projection should put out.
        """
        x = inputs[mask].float()  # (n, d)
        self._gram = self._gram + (x.T @ x).cpu().double()
        self._total = self._total + x.double().sum(dim=0).cpu()
        self._n_tokens += len(x)
        if wanted is not None:
            y = wanted[mask].float()  # (n, out)
            self._cross = self._cross + (x.T @ y).cpu().double()
            self._target_total = self._target_total + y.double().sum(dim=0).cpu()

    def moments(self) -> Moments:
        assert isinstance(self._gram, Tensor) and isinstance(self._total, Tensor), "nothing was added"
        return Moments(self._gram, self._total, self._n_tokens)

    def target(self) -> Target:
        assert isinstance(self._cross, Tensor) and isinstance(self._target_total, Tensor), "no target was added"
        return Target(self._cross, self._target_total)


def output_paths(adapter: Adapter) -> dict[str, str]:
    """The output projection of each kind of sublayer."""
    return {ATTENTION: adapter.attention_out, FFN: adapter.ffn_out}


def collect_moments(model: PreTrainedModel, batches: Iterable[Batch]) -> list[dict[str, Moments]]:
    """Moments of the inputs of every output projection of the dense model, per layer by kind of sublayer.

    Sublayers that are already gone have no entry.

    Raises:
        DataError: no batches, or nothing but padding.
    """
    trace = trace_layers(model, batches)
    paths, structure = output_paths(adapter_for(model)), read_structure(model)
    hidden, collected = trace.hidden, []
    for number, layer in enumerate(layers_of(model)):
        present = {kind: path for kind, path in paths.items() if kind not in structure.layers[number].skip}
        sums = {kind: MomentSums() for kind in present}
        following = []
        for states, calls, mask in zip(hidden, trace.calls, trace.masks, strict=True):
            output, taps = run_layer(layer, calls[number], states, inputs_of=tuple(present.values()))
            for kind, path in present.items():
                sums[kind].add(taps[f"in:{path}"], mask)
            following.append(output)
        hidden = following
        collected.append({kind: total.moments() for kind, total in sums.items()})
    return collected


def mask_gradients(model: PreTrainedModel, batches: Iterable[Batch]) -> list[dict[str, Tensor]]:
    """Gradient of the task loss with respect to a mask of ones on every input of the output projections.

    Per layer and kind of sublayer (n_batches, d); a unit's mask gradient is the sum over its columns. Parameters get no
    gradient.

    Raises:
        DataError: no batches, or batches without labels.
    """
    paths, structure, layers = output_paths(adapter_for(model)), read_structure(model), layers_of(model)
    places = [
        (number, kind, path)
        for number in range(len(layers))
        for kind, path in paths.items()
        if kind not in structure.layers[number].skip
    ]
    rows: dict[tuple[int, str], list[Tensor]] = {(number, kind): [] for number, kind, _ in places}
    with evaluating(model):
        for batch in batches:
            masks = {}
            handles = []
            for number, kind, path in places:
                module = layers[number].get_submodule(path)
                width = n_inputs(linear_at(layers[number], path))
                mask = masks[number, kind] = torch.ones(width, device=model.device, requires_grad=True)

                def scale(module: nn.Module, positional: tuple[Tensor, ...], mask: Tensor = mask) -> tuple[Tensor, ...]:
                    return (positional[0] * mask.to(positional[0]), *positional[1:])

                handles.append(module.register_forward_pre_hook(scale))
            try:
                with torch.enable_grad():
                    loss = model(**batch).loss
                    if loss is None:
                        raise DataError(
                            "gradient importance (taylor, fisher) needs labels, which the calibration batches lack",
                            hint="add labels, or use block_obs, which needs none",
                        )
                    gradients = torch.autograd.grad(loss, list(masks.values()))
            finally:
                for handle in handles:
                    handle.remove()
            for place, gradient in zip(masks, gradients, strict=True):
                rows[place].append(gradient.cpu())
    if not next(iter(rows.values()), []):
        raise DataError("there are no calibration batches")
    result: list[dict[str, Tensor]] = [{} for _ in layers]
    for (number, kind), values in rows.items():
        result[number][kind] = torch.stack(values)
    return result
