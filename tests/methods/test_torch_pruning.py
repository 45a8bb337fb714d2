"""torch-pruning as a backend: it works where it was seen to, and where it fails it is refused or found out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_pruning import BATCHES
from test_surgery import mask_out
from tiny_architectures import build, logits
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from compressor.errors import StageError, UnsupportedError
from compressor.methods import torch_pruning as backend
from compressor.methods.torch_pruning import prune_by_torch_pruning


def llama_without_groups() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=6, head_dim=4, intermediate_size=40
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("keep", [{"heads": 0.5}, {"ffn": 0.6}, {"heads": 0.5, "ffn": 0.6}], ids=str)
@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_it_prunes_what_it_was_asked_for(name: str, keep: dict[str, float]) -> None:
    dense = llama_without_groups() if name == "llama" else build(name)
    n_heads = 6 if name == "llama" else 4
    pruned = copy.deepcopy(dense)
    structure = prune_by_torch_pruning(pruned, BATCHES[0], granule=4, **keep)
    for layer in structure.layers:
        assert layer.n_heads == layer.n_kv_heads == n_heads * keep.get("heads", 1)
        assert layer.ffn_width == 40 * keep.get("ffn", 1)
    torch.testing.assert_close(logits(pruned), logits(mask_out(dense, structure)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gpt2", "it finds nothing to prune in Conv1D layers and says nothing"),
        ("llama", "it does not come to an end where query heads share keys and values"),
        ("modernbert", "it was only seen to work on bert, camembert, roberta, xlm-roberta, llama"),
    ],
)
def test_where_it_fails_it_is_refused_at_once(name: str, why: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        prune_by_torch_pruning(build(name), BATCHES[0], ffn=0.5)
    assert why in str(caught.value) and "use `backend: built-in`" in str(caught.value)


def test_pruning_nothing_is_an_error_and_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it happens by itself where the granule is wider than what should leave."""
    model = build("bert")
    with pytest.raises(StageError, match="torch-pruning pruned nothing of the ffn sublayer of layer 0"):
        prune_by_torch_pruning(model, BATCHES[0], ffn=0.95, granule=40)

    def nothing(*args: Any) -> dict[Any, Any]:
        return {}

    monkeypatch.setattr(backend, "_ask", nothing)
    with pytest.raises(StageError, match="torch-pruning pruned nothing of the attention sublayer of layer 0"):
        prune_by_torch_pruning(model, BATCHES[0], heads=0.5)
