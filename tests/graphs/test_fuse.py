"""Fusion: found in every family, equal in numbers, and left out with a reason where it does not hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_families import DECODERS, ENCODERS, Exported, Fused, each
from onnx_runs import decode, run, session, texts, torch_logits

from compressor.graphs.fuse import GROUP_QUERY_LIMIT, fuse, probe_feeds
from compressor.graphs.parity import check_parity, compare_logits

Get = Callable[[str], Exported]
GetFused = Callable[[str], Fused]

EXPECTED = {
    "bert": {"MultiHeadAttention": 2},
    "distilbert": {"MultiHeadAttention": 2},
    "roberta": {"MultiHeadAttention": 2},
    "xlm-roberta": {"MultiHeadAttention": 2},
    "electra": {"MultiHeadAttention": 2},
    "mpnet": {},
    "deberta-v3": {},
    "nomic-bert": {"MultiHeadAttention": 2, "RotaryEmbedding": 4},
    "gte": {"MultiHeadAttention": 2, "RotaryEmbedding": 4},
    "eurobert": {"MultiHeadAttention": 2, "RotaryEmbedding": 4, "SimplifiedLayerNormalization": 5},
    "modernbert": {"MultiHeadAttention": 3, "RotaryEmbedding": 6},
    "gpt2": {"GroupQueryAttention": 2},
    "llama": {"GroupQueryAttention": 2, "RotaryEmbedding": 4, "SimplifiedLayerNormalization": 5},
    "granite": {"GroupQueryAttention": 2, "RotaryEmbedding": 4, "SimplifiedLayerNormalization": 5},
    "qwen3": {"GroupQueryAttention": 2, "RotaryEmbedding": 4, "SimplifiedLayerNormalization": 9},
    "gemma3": {"GroupQueryAttention": 2, "RotaryEmbedding": 4, "SimplifiedLayerNormalization": 13},
    "smollm3": {"GroupQueryAttention": 2, "RotaryEmbedding": 2, "SimplifiedLayerNormalization": 5},
}


@pytest.mark.parametrize("name", each(ENCODERS))
def test_a_fused_encoder_equals_torch(exported: Get, fused: GetFused, name: str) -> None:
    one, report, path = exported(name), fused(name).report, fused(name).path
    assert report.counts == EXPECTED[name]
    assert report.n_nodes_after < report.n_nodes_before
    for batch, length, pad in [(1, 5, 0), (3, 12, 4), (2, 33, 20)]:
        feed = texts(batch, length, pad=pad)
        expected = torch_logits(one.model, feed, *one.result.input_names)
        check_parity(compare_logits(expected, run(path, feed)["logits"]), "fp32")


@pytest.mark.parametrize("name", each(DECODERS))
def test_a_fused_decoder_equals_torch_through_the_cache(exported: Get, fused: GetFused, name: str) -> None:
    one, report, path = exported(name), fused(name).report, fused(name).path
    assert report.counts == EXPECTED[name]
    assert report.limits == (GROUP_QUERY_LIMIT,)
    before, after = session(one.path), session(path)
    for part in ("get_inputs", "get_outputs"):
        describe = [[(value.name, value.shape, value.type) for value in getattr(s, part)()] for s in (before, after)]
        assert [(name, type_) for name, _, type_ in describe[0]] == [(name, type_) for name, _, type_ in describe[1]]
    for batch, cuts in ((3, []), (3, [9, 10, 11, 12, 13, 14]), (1, [1, 5, 9])):  # chunks after a past at batch 1 only
        feed = texts(batch, 15, pad=3, left=True)
        feed["position_ids"] = np.maximum(feed["attention_mask"].cumsum(1) - 1, 0)
        expected = torch_logits(one.model, feed, "input_ids", "attention_mask", "position_ids")
        check_parity(compare_logits(expected, decode(path, feed, cuts), feed["attention_mask"]), "fp32")


def test_pruned_layers_of_unequal_heads_fuse_like_dense_ones(exported: Get, fused: GetFused) -> None:
    bert = fused("bert-uneven")
    assert bert.report.counts == EXPECTED["bert"]
    heads = [
        next(a.i for a in node.attribute if a.name == "num_heads")
        for node in onnx.load(str(bert.path)).graph.node
        if node.op_type == "MultiHeadAttention"
    ]
    assert heads == [3, 1]
    feed = texts(3, 11, pad=4)
    expected = torch_logits(exported("bert-uneven").model, feed, *feed)
    check_parity(compare_logits(expected, run(bert.path, feed)["logits"]), "fp32")

    assert fused("llama-uneven").report.counts == EXPECTED["llama"]


def test_a_fusion_that_does_not_hold_on_the_samples_is_left_out_with_the_reason(exported: Get, tmp_path: Path) -> None:
    path = exported("llama").path
    heads = {v.name: v.shape for v in session(path).get_inputs() if v.name.startswith("past")}
    past = {name: np.ones((2, shape[1], 4, shape[3]), np.float32) for name, shape in heads.items()}
    chunk = {
        "input_ids": np.ones((2, 3), np.int64),
        "attention_mask": np.ones((2, 7), np.int64),
        "position_ids": np.arange(4, 7)[None].repeat(2, 0),
        **past,
    }
    report = fuse(path, tmp_path / "kept.onnx", samples=[chunk])  # a chunk after a past at batch 2
    assert report.counts == {} and report.fused_by == "" and report.n_nodes_after == report.n_nodes_before
    assert report.reason is not None and "attention: does not run" in report.reason
    assert "batch_size must be 1 when sequence_length > 1" in report.reason
    run(tmp_path / "kept.onnx", chunk)


def test_skip_norms_stay_fused_where_asked(exported: Get, fused: GetFused, tmp_path: Path) -> None:
    one = exported("bert")
    report = fuse(one.path, tmp_path / "fused.onnx", skip_norms=True)
    assert report.counts == {"BiasGelu": 2, "MultiHeadAttention": 2, "SkipLayerNormalization": 4}
    assert report.split == {}
    assert fused("bert").report.split == {
        "Add before LayerNormalization": 1,
        "BiasGelu": 2,
        "SkipLayerNormalization": 4,
    }
    feed = texts(2, 9, pad=3)
    np.testing.assert_allclose(
        run(fused("bert").path, feed)["logits"], run(tmp_path / "fused.onnx", feed)["logits"], atol=1e-5
    )


def test_probes_reach_every_path_of_a_decoder(exported: Get) -> None:
    feeds = probe_feeds(onnx.load(str(exported("llama").path)))
    past = [feed["past_key_values.0.key"].shape[2] for feed in feeds]
    assert past[0] == 0 and min(past[1:]) > 0
    assert {feed["input_ids"].shape[1] for feed in feeds[1:]} == {1, 3}
    assert (feeds[0]["attention_mask"] == 0).any()
