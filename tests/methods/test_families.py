"""What is special in each family when it is pruned, one fact a test (transformers 5.23)."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from test_pruning import BATCHES
from test_stock import reload
from tiny_architectures import CONFIGS, build, logits
from transformers import AutoModelForSequenceClassification, DebertaV2Config, MPNetConfig, PreTrainedModel
from transformers.models.modernbert.modeling_modernbert import ModernBertRotaryEmbedding

from compressor.errors import UnsupportedError
from compressor.methods.pruning import prune_model
from compressor.methods.structure import LayerStructure, Structure
from compressor.methods.surgery import (
    ADAPTERS,
    adapter_for,
    apply_structure,
    drop_layers,
    head_dim_of,
    layers_of,
    read_structure,
    stock_fit,
)


def keep(model: PreTrainedModel, heads: tuple[int, ...], ffn: tuple[int, ...], n_groups: int = 0) -> PreTrainedModel:
    """Every layer cut alike; `n_groups` key/value heads where queries share them."""
    whole = read_structure(model)
    kv = tuple(range(n_groups)) if n_groups else heads
    layer = LayerStructure(heads, kv, ffn)
    return apply_structure(copy.deepcopy(model), Structure(whole.layers_kept, (layer,) * len(whole.layers)))


def test_modernberts_fused_projections_are_cut_in_every_block() -> None:
    """Wqkv is (query, key, value) x heads; Wi is (input, gate): row j leaves with row j + I, and Wo's column j."""
    dense = build("modernbert")
    pruned = keep(dense, (1, 3), (0, 5, 7))
    before, after = layers_of(dense)[1], layers_of(pruned)[1]
    rows = [block * 24 + head * 6 + i for block in range(3) for head in (1, 3) for i in range(6)]
    assert torch.equal(after.attn.Wqkv.weight, before.attn.Wqkv.weight[rows])
    assert torch.equal(after.mlp.Wi.weight, before.mlp.Wi.weight[[0, 5, 7, 40, 45, 47]])
    assert torch.equal(after.mlp.Wo.weight, before.mlp.Wo.weight[:, [0, 5, 7]])
    assert after.mlp.Wo.bias is None
    with pytest.raises(UnsupportedError, match="recovery by bias needs output projections with a bias"):
        prune_model(dense, BATCHES, ffn=0.5, ffn_granule=8, recovery="bias")


def test_modernberts_heads_need_our_loader_or_a_narrower_stream() -> None:
    fit = stock_fit(keep(build("modernbert"), (0, 1), tuple(range(40))))
    assert not fit.uniform and fit.reason is not None and "derives the head size from the head count" in fit.reason


def test_modernberts_layer_types_and_rope_follow_the_layers(tmp_path: Path) -> None:
    """A global layer (every third) keeps its own angles when layers before it leave."""
    dense = build("modernbert")
    shallow = copy.deepcopy(dense)
    drop_layers(shallow, (0, 2, 3))
    assert shallow.config.layer_types == [dense.config.layer_types[number] for number in (0, 2, 3)]
    assert {type(module) for module in shallow.modules()} >= {ModernBertRotaryEmbedding}
    shallow.save_pretrained(tmp_path)
    assert torch.equal(logits(reload("modernbert", tmp_path)), logits(shallow))
    with pytest.raises(UnsupportedError, match="layer 0 of a 'modernbert' model must stay"):
        drop_layers(dense, (1, 2, 3))


@pytest.mark.parametrize("name", ["nomic_bert", "gte", "jina_embeddings_v3"])
def test_embedders_with_a_head_size_of_their_own_reload_with_any_head_count(name: str, tmp_path: Path) -> None:
    pruned = keep(build(name), (0, 2, 3), tuple(range(40)))
    assert pruned.config.num_attention_heads == 3 and stock_fit(pruned).uniform
    pruned.save_pretrained(tmp_path)
    assert torch.equal(logits(reload(name, tmp_path)), logits(pruned))


@pytest.mark.parametrize("name", ["qwen3", "gemma3_text"])
def test_norms_of_queries_and_keys_are_left_alone(name: str) -> None:
    """They are as wide as one head, and nothing is ever cut inside a head (rotation pairs)."""
    dense = build(name)
    pruned = keep(dense, (0, 1), tuple(range(40)), n_groups=1)
    for before, after in zip(layers_of(dense), layers_of(pruned), strict=True):
        assert torch.equal(after.self_attn.q_norm.weight, before.self_attn.q_norm.weight)
        assert torch.equal(after.self_attn.k_norm.weight, before.self_attn.k_norm.weight)
        assert head_dim_of(after, adapter_for(pruned)) == 8
    assert pruned.config.head_dim == 8


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma3_text", "eurobert"])
def test_grouped_queries_leave_in_whole_groups(name: str) -> None:
    dense = build(name)
    pruned, structure = prune_model(
        copy.deepcopy(dense), BATCHES, heads=0.67, importance="wanda", recovery="none", tokens_per_column=1
    )
    for layer, kept in zip(layers_of(pruned), structure.layers, strict=True):
        assert kept.n_kv_heads == 2 and kept.n_heads == 4 and layer.self_attn.num_key_value_groups == 2
        assert [head // 2 for head in kept.heads_kept] == [group for group in kept.kv_heads_kept for _ in range(2)]


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "eurobert"])
def test_a_head_count_that_does_not_divide_the_width_is_never_written(name: str) -> None:
    """Their configs are validated: 5 heads on 24 channels would not load."""
    model = build(name)
    assert ADAPTERS[model.config.model_type].heads_divide_hidden
    pruned = keep(model, (0, 1), tuple(range(40)), n_groups=1)
    assert model.config.hidden_size % pruned.config.num_attention_heads == 0


def test_smollm3_layers_without_rotation_stay_without(tmp_path: Path) -> None:
    dense = build("smollm3")
    shallow = copy.deepcopy(dense)
    drop_layers(shallow, (0, 3, 4))
    assert shallow.config.no_rope_layers == [dense.config.no_rope_layers[number] for number in (0, 3, 4)]
    assert [layer.self_attn.use_rope for layer in layers_of(shallow)] == [
        layers_of(dense)[number].self_attn.use_rope for number in (0, 3, 4)
    ]
    shallow.save_pretrained(tmp_path)
    assert torch.equal(logits(reload("smollm3", tmp_path)), logits(shallow))


def test_gemmas_attention_keeps_its_own_scaling() -> None:
    """1 / sqrt(query_pre_attn_scalar), whatever the heads and the width."""
    dense = build("gemma3_text")
    pruned = keep(dense, (0, 1), tuple(range(24)), n_groups=1)
    assert layers_of(pruned)[0].self_attn.scaling == layers_of(dense)[0].self_attn.scaling == 8**-0.5


def test_gpt2s_fused_attention_is_cut_in_all_three_thirds() -> None:
    dense = build("gpt2")
    pruned = keep(dense, (1, 2), tuple(range(96)))
    columns = [third * 24 + head * 6 + i for third in range(3) for head in (1, 2) for i in range(6)]
    before, after = layers_of(dense)[0].attn, layers_of(pruned)[0].attn
    assert torch.equal(after.c_attn.weight, before.c_attn.weight[:, columns])  # (inputs, outputs)
    assert torch.equal(after.c_attn.bias, before.c_attn.bias[columns])
    assert torch.equal(after.c_proj.weight, before.c_proj.weight[[6 + i for i in range(12)]])


@pytest.mark.parametrize(
    "name", sorted({"bert", "roberta", "xlm-roberta", "distilbert", "electra", "gpt2", "modernbert"})
)
def test_derived_head_sizes_are_told_and_not_guessed(name: str) -> None:
    assert not adapter_for(build(name)).reads_head_dim and CONFIGS[name]().hidden_size == 24


@pytest.mark.parametrize(
    ("config", "model_type"),
    [
        (
            DebertaV2Config(
                vocab_size=31, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
            ),
            "deberta-v2",
        ),
        (
            MPNetConfig(vocab_size=31, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8),
            "mpnet",
        ),
    ],
)
def test_families_whose_heads_share_position_tables_are_refused_by_name(config: object, model_type: str) -> None:
    """DeBERTa's queries also project shared relative embeddings; MPNet's one bias table has an entry per head."""
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(UnsupportedError) as caught:
        read_structure(model)
    assert f"models of type '{model_type}' cannot be pruned" in str(caught.value)
    assert all(name in str(caught.value) for name in ADAPTERS)
