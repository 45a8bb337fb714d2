"""Folding changes no output, flattens outlier channels, and is refused where it cannot be exact."""

from __future__ import annotations

import copy

import pytest
import torch
from test_surgery import uneven
from tiny_architectures import DECODERS, build, inputs, logits

from compressor.errors import UnsupportedError
from compressor.methods.smoothquant import collect_channel_max, smooth, smoothing_scales
from compressor.methods.surgery import adapter_for, apply_structure, layers_of


def test_scales_by_hand() -> None:
    scales = smoothing_scales(torch.tensor([16.0, 1.0, 0.0]), torch.tensor([1.0, 4.0, 2.0]))
    assert scales.tolist() == [4.0, 0.5, 1.0]
    assert smoothing_scales(torch.tensor([16.0]), torch.tensor([4.0]), alpha=1.0).tolist() == [16.0]
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1"):
        smoothing_scales(torch.ones(1), torch.ones(1), alpha=2.0)


@pytest.mark.parametrize("name", [*DECODERS, "eurobert"])
def test_folding_is_exact_and_balances_the_channels(name: str) -> None:
    dense = build(name)
    adapter = adapter_for(dense)
    with torch.no_grad():  # an outlier channel behind the attention norm
        norm = layers_of(dense)[1].get_submodule("ln_1" if name == "gpt2" else "input_layernorm")
        norm.weight[3] = 50.0
    batches = [inputs(), inputs(seed=5)]
    before = collect_channel_max(dense, batches)
    smoothed = smooth(copy.deepcopy(dense), before)
    torch.testing.assert_close(logits(smoothed), logits(dense), rtol=1e-3, atol=1e-4)
    after = collect_channel_max(smoothed, batches)
    path = adapter.queries[0].path
    assert before[1][path].max() / before[1][path].median() > 2 * after[1][path].max() / after[1][path].median()
    out = adapter.attention_out
    assert not torch.allclose(before[0][out], after[0][out], rtol=1e-2)


def test_pruned_models_fold_too() -> None:
    pruned = apply_structure(build("llama"), uneven(build("llama")))
    maxima = collect_channel_max(pruned, [inputs()])
    torch.testing.assert_close(logits(smooth(copy.deepcopy(pruned), maxima)), logits(pruned), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta", "modernbert"])
def test_encoders_that_cannot_fold_are_refused(name: str) -> None:
    model = build(name)
    with pytest.raises(UnsupportedError, match=f"SmoothQuant cannot be folded into a '{name}' model"):
        smooth(model, collect_channel_max(model, [inputs()]))
