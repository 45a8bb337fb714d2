"""Which channels of the residual stream may leave, and how the norms are kept in scale when they do.

Channels are ranked as in Minitron (arXiv 2407.14679, section 2.2), by the activations behind the norms, summed over all
of them. A norm that averages over the strongest channels alone divides by more than before; its weights are multiplied
by the ratio measured on calibration text. The rest is left to a distillation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.errors import DataError, UserError
from compressor.methods.calibration import Batch, real_tokens, run_model
from compressor.methods.importance import keep_best
from compressor.methods.structure import Structure
from compressor.methods.surgery import adapter_for, apply_structure, hidden_width, read_structure


def prune_hidden(model: PreTrainedModel, batches: Iterable[Batch], n_kept: int) -> Structure:
    """Narrow the residual stream of the whole model, in place.

    Args:
        batches: calibration inputs, read twice.
        n_kept: channels to keep.

    Raises:
        UserError: fewer than one channel, or not fewer than there are.
        DataError: no calibration data, or only padding.
        UnsupportedError: an architecture without an adapter.
    """
    batches, present = list(batches), hidden_width(model)
    if not 1 <= n_kept < present:
        raise UserError(f"{n_kept} of {present} hidden channels cannot be kept", hint=f"keep 1 to {present - 1}")
    kept = keep_best(channel_scores(model, batches), n_kept)
    ratios = _spread_ratios(model, batches, kept)
    whole = read_structure(model)
    structure = Structure(whole.layers_kept, whole.layers, kept)
    apply_structure(model, structure)
    adds_one = adapter_for(model).scales_embeddings  # Gemma's norms multiply by 1 + w
    with torch.no_grad():
        for name, ratio in ratios.items():
            weight = model.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            weight.copy_((weight + 1.0) * ratio - 1.0 if adds_one else weight * ratio)
    return structure


def channel_scores(model: PreTrainedModel, batches: Iterable[Batch]) -> Tensor:
    """(hidden,) mean square of each channel behind each norm, as a share of that norm's, summed over the norms.

    Raises:
        DataError: no calibration data, or only padding.
    """
    sums: dict[str, Tensor] = {}

    def add(name: str, entered: Tensor, left: Tensor) -> None:
        sums[name] = (
            sums.get(name, torch.zeros(left.shape[-1], dtype=torch.float64)) + left.double().square().sum(0).cpu()
        )

    _watch_norms(model, batches, add)
    return torch.stack([total / total.sum().clamp(min=1e-30) for total in sums.values()]).sum(dim=0)


@dataclass
class _Ratio:
    total: float = 0.0
    n: int = 0


def _spread_ratios(model: PreTrainedModel, batches: Iterable[Batch], kept: tuple[int, ...]) -> dict[str, float]:
    """Per norm: the mean of what it will divide by over what it divides by now."""
    found: dict[str, _Ratio] = {}
    index = torch.tensor(kept)
    norms = _norms(model)

    def add(name: str, entered: Tensor, left: Tensor) -> None:
        centred = isinstance(norms[name], nn.LayerNorm)
        x = entered.double()
        some = x[:, index.to(x.device)]
        if centred:
            x, some = x - x.mean(dim=-1, keepdim=True), some - some.mean(dim=-1, keepdim=True)
        ratio = some.square().mean(dim=-1).sqrt() / x.square().mean(dim=-1).sqrt().clamp(min=1e-30)
        one = found.setdefault(name, _Ratio())
        one.total, one.n = one.total + float(ratio.sum()), one.n + len(ratio)

    _watch_norms(model, batches, add)
    return {name: ratio.total / ratio.n for name, ratio in found.items()}


def _norms(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Norms over the residual stream."""
    width = hidden_width(model)
    return {
        name: module
        for name, module in model.base_model.named_modules(prefix=_prefix(model))
        if "norm" in type(module).__name__.lower()
        and isinstance(getattr(module, "weight", None), Tensor)
        and module.weight.shape == (width,)
    }


def _prefix(model: PreTrainedModel) -> str:
    return "" if model is model.base_model else str(model.base_model_prefix)


def _watch_norms(model: PreTrainedModel, batches: Iterable[Batch], add: Callable[[str, Tensor, Tensor], None]) -> None:
    """Call `add(name, inputs (n, hidden), outputs (n, hidden))` for each norm and batch, at real tokens."""
    norms, n_tokens = _norms(model), 0
    for batch in batches:
        mask = real_tokens(batch)
        n_tokens += int(mask.sum())
        handles = []
        for name, norm in norms.items():

            def note(
                module: nn.Module, positional: tuple[Tensor, ...], output: Tensor, name: str = name, mask: Tensor = mask
            ) -> None:
                if output.shape[:-1] == mask.shape:
                    add(name, positional[0][mask], output[mask])

            handles.append(norm.register_forward_hook(note))
        try:
            run_model(model, batch)
        finally:
            for handle in handles:
                handle.remove()
    if n_tokens == 0:
        raise DataError("the calibration data holds no real token", hint="give texts that are not empty")
