"""Where each architecture keeps its heads and neurons: one row of paths per family, read by everything in this folder.

A row is all that is special about a family. Slicing, skipping, loading, padding and calibration are written once, over
the row. Adding a family is adding a row, if its attention modules reshape by head size (`view(..., -1, head_dim)`), so
that fewer heads simply make a shorter axis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedModel

from compressor.errors import UnsupportedError
from compressor.methods.structure import ATTENTION, FFN


@dataclass(frozen=True)
class Projection:
    """A linear map whose outputs are sliced.

    Attributes:
        path: from the layer.
        n_blocks: equal blocks along the outputs that are sliced alike: 3 for a fused query-key-value map.
    """

    path: str
    n_blocks: int = 1


@dataclass(frozen=True)
class Adapter:
    """One family's module paths (from a layer, unless said) and config names.

    Attributes:
        layers: the layer list, from the base model.
        attention: the module called as attention, returning (output, weights).
        queries: projections with one block of rows per query head.
        keys_values: those with one per key/value head; empty where `queries` is fused or each head has its own.
        attention_out: the projection back to the residual.
        ffn: the module called as feed-forward.
        ffn_in: projections to the FFN's width.
        ffn_out: the projection back to the residual.
        ffn_residual: the module whose input is the residual that the FFN's output is added to.
        head_dim: attribute of the attention module that holds the size of one head.
        head_count_attributes: attributes of the attention module to set to the number of query heads.
        head_width_attributes: attributes to set to heads x head size.
        groups_attribute: attribute that holds query heads per key/value head (grouped-query attention).
        depth_key, ffn_key, heads_key: the config's names; `ffn_key` as Hugging Face's per-layer schema has it.
        per_layer_keys: config lists with one entry per layer.
        reads_head_dim: a stock config can say head count and head size apart.
        heads_divide_hidden: the config's own validation wants hidden_size % heads == 0.
        first_layer_stays: layer 0 is built unlike the others (ModernBERT's has no attention norm).
        output_is_normed: a norm follows the output projections (Gemma's sandwich norms), so the residual cannot be
            compared before it.
        scales_embeddings: the embeddings are multiplied by the square root of the hidden width (Gemma).
        final_norm: the norm behind the last layer, from the base model; named where `scales_embeddings`.
    """

    layers: str
    attention: str
    queries: tuple[Projection, ...]
    keys_values: tuple[Projection, ...]
    attention_out: str
    ffn: str
    ffn_in: tuple[Projection, ...]
    ffn_out: str
    ffn_residual: str
    head_dim: str = "head_dim"
    head_count_attributes: tuple[str, ...] = ()
    head_width_attributes: tuple[str, ...] = ()
    groups_attribute: str | None = None
    depth_key: str = "num_hidden_layers"
    ffn_key: str = "intermediate_size"
    heads_key: str = "num_attention_heads"
    per_layer_keys: tuple[str, ...] = ()
    reads_head_dim: bool = False
    heads_divide_hidden: bool = False
    first_layer_stays: bool = False
    output_is_normed: bool = False
    scales_embeddings: bool = False
    final_norm: str = "norm"

    @property
    def residual_readers(self) -> tuple[str, ...]:
        """Projections whose inputs are the residual stream (behind a norm)."""
        return tuple(projection.path for projection in (*self.queries, *self.keys_values, *self.ffn_in))

    def paths(self, kind: str) -> tuple[str, ...]:
        """The projections of a kind of sublayer, the one back to the residual last."""
        inputs, output = {
            ATTENTION: ((*self.queries, *self.keys_values), self.attention_out),
            FFN: (self.ffn_in, self.ffn_out),
        }[kind]
        return (*(projection.path for projection in inputs), output)


def _separate(prefix: str, *names: str) -> tuple[Projection, ...]:
    return tuple(Projection(f"{prefix}.{name}") for name in names)


_BERT = Adapter(
    layers="encoder.layer",
    attention="attention.self",
    queries=_separate("attention.self", "query", "key", "value"),
    keys_values=(),
    attention_out="attention.output.dense",
    ffn="intermediate",
    ffn_in=_separate("intermediate", "dense"),
    ffn_out="output.dense",
    ffn_residual="intermediate",
    head_dim="attention_head_size",
    head_count_attributes=("num_attention_heads",),
    head_width_attributes=("all_head_size",),
)
_DISTILBERT = Adapter(
    layers="transformer.layer",
    attention="attention",
    queries=_separate("attention", "q_lin", "k_lin", "v_lin"),
    keys_values=(),
    attention_out="attention.out_lin",
    ffn="ffn",
    ffn_in=_separate("ffn", "lin1"),
    ffn_out="ffn.lin2",
    ffn_residual="ffn",
    head_dim="attention_head_size",
    head_count_attributes=("n_heads",),
    depth_key="n_layers",
    ffn_key="hidden_dim",
    heads_key="n_heads",
)
_GPT2 = Adapter(
    layers="h",
    attention="attn",
    queries=(Projection("attn.c_attn", n_blocks=3),),
    keys_values=(),
    attention_out="attn.c_proj",
    ffn="mlp",
    ffn_in=_separate("mlp", "c_fc"),
    ffn_out="mlp.c_proj",
    ffn_residual="ln_2",
    head_count_attributes=("num_heads",),
    head_width_attributes=("split_size",),
    depth_key="n_layer",
    ffn_key="n_inner",
    heads_key="n_head",
)
_LLAMA = Adapter(
    layers="layers",
    attention="self_attn",
    queries=_separate("self_attn", "q_proj"),
    keys_values=_separate("self_attn", "k_proj", "v_proj"),
    attention_out="self_attn.o_proj",
    ffn="mlp",
    ffn_in=_separate("mlp", "gate_proj", "up_proj"),
    ffn_out="mlp.down_proj",
    ffn_residual="post_attention_layernorm",
    groups_attribute="num_key_value_groups",
    reads_head_dim=True,
)
_NOMIC = Adapter(  # norms after the residual, as in BERT; projections as in Llama
    layers="layers",
    attention="self_attn",
    queries=_separate("self_attn", "q_proj", "k_proj", "v_proj"),
    keys_values=(),
    attention_out="self_attn.o_proj",
    ffn="mlp",
    ffn_in=_separate("mlp", "gate_proj", "up_proj"),
    ffn_out="mlp.down_proj",
    ffn_residual="mlp",
    reads_head_dim=True,
)
_MODERNBERT = Adapter(
    layers="layers",
    attention="attn",
    queries=(Projection("attn.Wqkv", n_blocks=3),),
    keys_values=(),
    attention_out="attn.Wo",
    ffn="mlp",
    ffn_in=(Projection("mlp.Wi", n_blocks=2),),
    ffn_out="mlp.Wo",
    ffn_residual="mlp_norm",
    per_layer_keys=("layer_types",),
    first_layer_stays=True,
)

ADAPTERS: dict[str, Adapter] = {
    "bert": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "eurobert": replace(_LLAMA, heads_divide_hidden=True),
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "distilbert": _DISTILBERT,
    "gpt2": _GPT2,
    "llama": replace(_LLAMA, heads_divide_hidden=True),
    "mistral": _LLAMA,
    "qwen2": replace(_LLAMA, per_layer_keys=("layer_types",)),
    "qwen3": replace(_LLAMA, per_layer_keys=("layer_types",)),
    "smollm3": replace(_LLAMA, per_layer_keys=("layer_types", "no_rope_layers")),
    "gemma3_text": replace(
        _LLAMA,
        per_layer_keys=("layer_types",),
        ffn_residual="pre_feedforward_layernorm",
        heads_divide_hidden=True,
        output_is_normed=True,
        scales_embeddings=True,
    ),
    "gte": _NOMIC,
    "jina_embeddings_v3": replace(
        _NOMIC,
        ffn_in=_separate("mlp", "fc1"),
        ffn_out="mlp.fc2",
    ),
    "modernbert": _MODERNBERT,
    "nomic_bert": _NOMIC,
}


def adapter_of_type(model_type: str, *, where: str | None = None) -> Adapter:
    """The row of an architecture, by its `model_type`; `where` goes into the error.

    Raises:
        UnsupportedError: an architecture without a row; the supported ones are named.
    """
    if model_type not in ADAPTERS:
        raise UnsupportedError(
            f"models of type {model_type!r} cannot be pruned",
            where=where,
            hint="supported types: " + ", ".join(sorted(ADAPTERS)),
        )
    return ADAPTERS[model_type]


def adapter_for(model: PreTrainedModel) -> Adapter:
    """The row of the model's architecture.

    Raises:
        UnsupportedError: an architecture without a row, or one with cross-attention.
    """
    model_type = model.config.model_type
    adapter = adapter_of_type(model_type)
    if getattr(model.config, "add_cross_attention", False):
        raise UnsupportedError(
            f"a {model_type!r} model with cross-attention cannot be pruned",
            hint="only encoders and decoders that stand alone are supported",
        )
    return adapter


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The model's layer list, whatever head stands on it."""
    layers = model.base_model.get_submodule(adapter_for(model).layers)
    assert isinstance(layers, nn.ModuleList)
    return layers
