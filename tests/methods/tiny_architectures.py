"""Tiny random models, one per architecture: shapes odd enough to catch a transposed slice."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers as hf
from transformers import PreTrainedModel

Build = Callable[..., PreTrainedModel]

_BERT_LIKE = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
}
_LLAMA_LIKE = {
    **_BERT_LIKE,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGS: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "bert": lambda: hf.BertConfig(**_BERT_LIKE, num_labels=3),
    "electra": lambda: hf.ElectraConfig(**_BERT_LIKE, embedding_size=16, num_labels=3),
    "roberta": lambda: hf.RobertaConfig(**_BERT_LIKE, num_labels=3, pad_token_id=0),
    "xlm-roberta": lambda: hf.XLMRobertaConfig(**_BERT_LIKE, num_labels=3, pad_token_id=0),
    "distilbert": lambda: hf.DistilBertConfig(
        vocab_size=61, dim=24, n_layers=3, n_heads=4, hidden_dim=40, max_position_embeddings=40, num_labels=3
    ),
    "modernbert": lambda: hf.ModernBertConfig(
        **{**_BERT_LIKE, "num_hidden_layers": 4},
        num_labels=3, local_attention=4, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    ),
    "gte": lambda: hf.GteConfig(**_BERT_LIKE, num_labels=3, pad_token_id=0),
    "nomic_bert": lambda: hf.NomicBertConfig(**_BERT_LIKE, num_labels=3, pad_token_id=0),
    "jina_embeddings_v3": lambda: hf.JinaEmbeddingsV3Config(**_BERT_LIKE, num_labels=3, pad_token_id=0),
    "eurobert": lambda: hf.EuroBertConfig(**{**_LLAMA_LIKE, "hidden_size": 24}, num_labels=3, mask_token_id=3),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=61, n_embd=24, n_layer=3, n_head=4, n_positions=40, bos_token_id=1, eos_token_id=2
    ),
    "llama": lambda: hf.LlamaConfig(**_LLAMA_LIKE),
    "mistral": lambda: hf.MistralConfig(**_LLAMA_LIKE, sliding_window=None),
    "qwen2": lambda: hf.Qwen2Config(**{**_LLAMA_LIKE, "num_attention_heads": 6}),
    "qwen3": lambda: hf.Qwen3Config(**_LLAMA_LIKE),
    "smollm3": lambda: hf.SmolLM3Config(**{**_LLAMA_LIKE, "num_hidden_layers": 5}),
    "gemma3_text": lambda: hf.Gemma3TextConfig(
        **{**_LLAMA_LIKE, "num_hidden_layers": 4},
        sliding_window=4, query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    ),
}  # fmt: skip
DECODERS = ["gpt2", "llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma3_text"]
ENCODERS = [name for name in CONFIGS if name not in DECODERS]


def build(name: str, attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    """A random model of this architecture with a task head, biases and norms away from their trivial start."""
    config = CONFIGS[name]()
    config._attn_implementation = attention
    kind = hf.AutoModelForCausalLM if name in DECODERS else hf.AutoModelForSequenceClassification
    torch.manual_seed(seed)
    model: PreTrainedModel = kind.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def inputs(seed: int = 1, batch: int = 3, length: int = 11) -> dict[str, torch.Tensor]:
    """Token ids with padding on the right in every row but the first."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 61, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        mask[row, length - 2 * row :] = 0
        ids[row, length - 2 * row :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def logits(model: PreTrainedModel, batch: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """Logits at real tokens; those at padding mean nothing and may differ."""
    batch = batch or inputs()
    out: torch.Tensor = model(**batch).logits
    return out[batch["attention_mask"].bool()] if out.ndim == 3 else out
