"""Tiny random models, one per family. Weights are scaled up so that ignoring the mask changes the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers as hf
from _pytest.mark import ParameterSet

from compressor.graphs.export import ExportResult
from compressor.graphs.fuse import FusionReport
from compressor.methods.structure import LayerStructure, Structure
from compressor.methods.surgery import apply_structure

VOCAB = 150
_BERT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_labels": 3,
}
_LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

ENCODERS: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**_BERT)),
    "distilbert": lambda: hf.DistilBertForSequenceClassification(
        hf.DistilBertConfig(vocab_size=VOCAB, dim=32, hidden_dim=48, n_layers=2, n_heads=4, num_labels=3)
    ),
    "roberta": lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**_BERT, type_vocab_size=1)),
    "xlm-roberta": lambda: hf.XLMRobertaForSequenceClassification(
        hf.XLMRobertaConfig(**{**_BERT, "num_labels": 1}, type_vocab_size=1)
    ),
    "mpnet": lambda: hf.MPNetForSequenceClassification(hf.MPNetConfig(**_BERT)),
    "electra": lambda: hf.ElectraForSequenceClassification(hf.ElectraConfig(**_BERT, embedding_size=32)),
    "nomic-bert": lambda: hf.NomicBertForSequenceClassification(hf.NomicBertConfig(**_BERT)),
    "gte": lambda: hf.GteForSequenceClassification(hf.GteConfig(**_BERT)),
    "eurobert": lambda: hf.EuroBertForSequenceClassification(
        hf.EuroBertConfig(**_BERT, num_key_value_heads=4, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    ),
    "deberta-v3": lambda: hf.DebertaV2ForSequenceClassification(
        hf.DebertaV2Config(
            **_BERT,
            relative_attention=True,
            position_buckets=16,
            pos_att_type=["p2c", "c2p"],
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            position_biased_input=False,
            type_vocab_size=0,
        )
    ),
    "modernbert": lambda: hf.ModernBertForSequenceClassification(
        hf.ModernBertConfig(
            **{**_BERT, "num_hidden_layers": 3},
            local_attention=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
        )
    ),
}
DECODERS: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_LLAMA)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_LLAMA)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(
            **_LLAMA,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"],
        )
    ),
    "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**{k: v for k, v in _LLAMA.items() if k != "head_dim"})),
    "smollm3": lambda: hf.SmolLM3ForCausalLM(hf.SmolLM3Config(**_LLAMA, no_rope_layers=[1, 0])),
}


UNEVEN: dict[str, tuple[LayerStructure, LayerStructure]] = {
    "bert-uneven": (
        LayerStructure((0, 2, 3), (0, 2, 3), tuple(range(17))),
        LayerStructure((1,), (1,), tuple(range(40))),
    ),
    "llama-uneven": (
        LayerStructure((2, 3), (1,), tuple(range(9))),
        LayerStructure((0, 1, 2, 3), (0, 1), tuple(range(48))),
    ),
}
"""Pruned models whose layers differ: what is left of each of the two layers, by name."""
QUICK = ("bert", "modernbert", "gpt2", "llama", *UNEVEN)
"""Families that `make test` exports; the others take as long each and run with `make test-all`."""


@dataclass(frozen=True)
class Exported:
    model: hf.PreTrainedModel
    result: ExportResult

    @property
    def path(self) -> Path:
        return self.result.path


@dataclass(frozen=True)
class Fused:
    path: Path
    report: FusionReport


def each(names: Iterable[str]) -> list[ParameterSet]:
    """Names as parameters of a test, those of less common families marked slow."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in sorted(names)]


def build(name: str) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    model = (ENCODERS | DECODERS)[name.removesuffix("-uneven")]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
            else:  # or equal norms and biases would be merged, and a swap of two of them would not show
                parameter.add_(torch.randn_like(parameter) * 0.05)
    if name in UNEVEN:
        apply_structure(model, Structure((0, 1), UNEVEN[name]))
    return model.eval()
