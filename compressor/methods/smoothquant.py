"""SmoothQuant by folding: move the range of outlier channels from activations into weights, exactly.

Channel j of a linear map's input is divided by s_j and column j of its weight multiplied by it (Xiao et al.,
arXiv 2211.10438, equation 4): s_j = max|X_j|^a / max|W_j|^(1-a). The division costs nothing where it folds into what
comes before: the norm of a pre-norm block, the value rows before the attention output, the ungated half of a gated FFN.
Post-norm encoders (BERT and kin) cannot fold, since their norm's output also feeds the residual; they are refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.errors import UnsupportedError
from compressor.methods.calibration import Batch, evaluating, run_layer, trace_layers
from compressor.methods.structure import ATTENTION, FFN, LayerStructure
from compressor.methods.surgery import Adapter, adapter_for, head_dim_of, layers_of, read_structure
from compressor.methods.surgery.slicing import Linear, linear_at, n_outputs, weight_of


@dataclass(frozen=True)
class _Fold:
    """Where a family's scales fold.

    Attributes:
        attention_norm, ffn_norm: norms that feed nothing but the sublayer's input projections.
        up: the FFN input projection that enters its output linearly; None where an activation stands between.
        offset: the norm multiplies by (offset + weight): 1 for Gemma.
    """

    attention_norm: str
    ffn_norm: str
    up: str | None = None
    offset: float = 0.0


_LLAMA = _Fold("input_layernorm", "post_attention_layernorm", up="mlp.up_proj")
_FOLDS = {
    "gpt2": _Fold("ln_1", "ln_2"),
    **dict.fromkeys(("eurobert", "llama", "mistral", "qwen2", "qwen3", "smollm3"), _LLAMA),
    "gemma3_text": _Fold("input_layernorm", "pre_feedforward_layernorm", up="mlp.up_proj", offset=1.0),
}


def check_smoothable(model_type: str) -> None:
    """Whether scales fold into a family exactly.

    Raises:
        UnsupportedError: a post-norm or unknown architecture.
    """
    if model_type not in _FOLDS:
        raise UnsupportedError(
            f"SmoothQuant cannot be folded into a {model_type!r} model: its norms also feed the residual, or layer 0 "
            "has none",
            hint="supported types: " + ", ".join(sorted(_FOLDS)) + "; encoders do well with per-channel dynamic INT8",
        )


def smoothing_scales(activation_max: Tensor, weight_max: Tensor, alpha: float = 0.5) -> Tensor:
    """s_j = max|X_j|^a / max|W_j|^(1-a); 1 for channels that are always zero on either side.

    Args:
        activation_max, weight_max: (d,).
        alpha: share of the difficulty that moves into the weights, between 0 and 1.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    scales = activation_max.pow(alpha) / weight_max.pow(1.0 - alpha)
    return torch.where((activation_max > 0) & (weight_max > 0), scales, torch.ones_like(scales))


def collect_channel_max(model: PreTrainedModel, batches: Iterable[Batch]) -> list[dict[str, Tensor]]:
    """Largest |X_j| over real tokens of every linear map's input, per layer by path.

    Raises:
        DataError: no batches, or nothing but padding.
    """
    adapter, structure, trace = adapter_for(model), read_structure(model), trace_layers(model, batches)
    hidden, collected = trace.hidden, []
    with evaluating(model):
        for number, layer in enumerate(layers_of(model)):
            paths = _input_paths(structure.layers[number], adapter)
            maxima: dict[str, Tensor] = {}
            following = []
            for states, calls, mask in zip(hidden, trace.calls, trace.masks, strict=True):
                output, taps = run_layer(layer, calls[number], states, paths)
                following.append(output)
                if bool(mask.any()):
                    for path in paths:
                        found = taps[f"in:{path}"][mask].abs().amax(dim=0).float()
                        maxima[path] = torch.maximum(maxima.get(path, found), found)
            hidden = following
            collected.append(maxima)
    return collected


@torch.no_grad()
def smooth(model: PreTrainedModel, channel_max: list[dict[str, Tensor]], alpha: float = 0.5) -> PreTrainedModel:
    """Fold smoothing scales into a pre-norm model, in place: its outputs stay the same up to rounding.

    Args:
        channel_max: of `collect_channel_max` on this model.
        alpha: see `smoothing_scales`.

    Raises:
        UnsupportedError: a post-norm or unknown architecture.
    """
    adapter, model_type = adapter_for(model), model.config.model_type
    check_smoothable(model_type)
    fold, structure = _FOLDS[model_type], read_structure(model)
    for layer, described, maxima in zip(layers_of(model), structure.layers, channel_max, strict=True):
        if ATTENTION not in described.skip:
            readers = [linear_at(layer, p.path) for p in (*adapter.queries, *adapter.keys_values)]
            _fold_norm(layer.get_submodule(fold.attention_norm), readers, maxima[adapter.queries[0].path], alpha, fold)
            _fold_values(layer, described, maxima[adapter.attention_out], alpha, adapter)
        if FFN not in described.skip:
            readers = [linear_at(layer, p.path) for p in adapter.ffn_in]
            _fold_norm(layer.get_submodule(fold.ffn_norm), readers, maxima[adapter.ffn_in[0].path], alpha, fold)
            if fold.up is not None:
                down = linear_at(layer, adapter.ffn_out)
                scales = smoothing_scales(maxima[adapter.ffn_out], _column_max([down]), alpha)
                _scale_outputs(linear_at(layer, fold.up), slice(None), scales)
                weight_of(down).mul_(scales)
    return model


def _input_paths(described: LayerStructure, adapter: Adapter) -> tuple[str, ...]:
    attention = () if ATTENTION in described.skip else (adapter.queries[0].path, adapter.attention_out)
    ffn = () if FFN in described.skip else (adapter.ffn_in[0].path, adapter.ffn_out)
    return (*attention, *ffn)


def _fold_norm(norm: nn.Module, readers: list[Linear], activation_max: Tensor, alpha: float, fold: _Fold) -> None:
    scales = smoothing_scales(activation_max, _column_max(readers), alpha)
    weight, bias = norm.get_parameter("weight"), getattr(norm, "bias", None)
    weight.copy_((weight + fold.offset) / scales - fold.offset)
    if isinstance(bias, Tensor):
        bias.div_(scales)
    for reader in readers:
        weight_of(reader).mul_(scales)


def _fold_values(
    layer: nn.Module, described: LayerStructure, activation_max: Tensor, alpha: float, adapter: Adapter
) -> None:
    """Scale value rows down and output columns up; query heads that share a value head share its scales."""
    output, head_dim = linear_at(layer, adapter.attention_out), head_dim_of(layer, adapter)
    shape = (described.n_kv_heads, described.n_heads // described.n_kv_heads, head_dim)
    shared = smoothing_scales(
        activation_max.view(shape).amax(dim=1), _column_max([output]).view(shape).amax(dim=1), alpha
    )  # (n_kv_heads, head_dim)
    values = linear_at(layer, (adapter.keys_values or adapter.queries)[-1].path)
    rows = slice(n_outputs(values) - shared.numel(), None)  # the last third of a fused projection, or all rows
    _scale_outputs(values, rows, shared.flatten())
    weight_of(output).mul_(shared[:, None].expand(shape).flatten())


def _scale_outputs(linear: Linear, rows: slice, scales: Tensor) -> None:
    weight_of(linear)[rows].div_(scales[:, None])
    if linear.bias is not None:
        linear.bias[rows].div_(scales)


def _column_max(readers: list[Linear]) -> Tensor:
    """Largest |W_j| of each input channel over all maps that read it: (d,)."""
    return torch.stack([weight_of(reader).abs().amax(dim=0) for reader in readers]).amax(dim=0).float()
