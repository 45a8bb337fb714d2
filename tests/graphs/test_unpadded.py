"""A path without a mask: the same numbers with and without padding, and taken only where the mask hides nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from graph_families import Fused
from onnx_runs import Arrays, run, texts

from compressor.errors import StageError, UnsupportedError
from compressor.graphs.parity import check_parity, compare_logits
from compressor.graphs.quantise import convert_fp16, quantise_dynamic, quantise_static, quantise_weights
from compressor.graphs.unpadded import add_unpadded_path

Get = Callable[[str], Fused]


def branches_taken(path: Path, feed: Arrays, folder: Path) -> Counter[str]:
    """How many attentions ran on each path, by the runtime's own profile."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, {value.name: feed[value.name] for value in session.get_inputs()})
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [event for event in events if event.get("args", {}).get("op_name") == "MultiHeadAttention"]
    return Counter("else" if "/else" in event["name"] else "then" for event in ran)


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_both_paths_say_the_same_and_a_mask_that_hides_something_is_kept(fused: Get, name: str, tmp_path: Path) -> None:
    source, out = fused(name), tmp_path / "two-paths.onnx"
    n_layers = source.report.counts["MultiHeadAttention"]
    assert add_unpadded_path(source.path, out) == n_layers
    onnx.checker.check_model(onnx.load(str(out)), full_check=False)
    for batch, length, pad in [(1, 5, 0), (3, 12, 4), (2, 33, 0)]:
        feed = texts(batch, length, pad=pad, seed=length)
        expected = run(source.path, feed)["logits"]
        check_parity(compare_logits(expected, run(out, feed)["logits"]), "fp32")
    assert branches_taken(out, texts(2, 4), tmp_path) == {"then": n_layers}
    assert branches_taken(out, texts(2, 4, pad=1), tmp_path) == {"else": n_layers}
    # beyond its windows a local layer hides something without any padding
    beyond = branches_taken(out, texts(1, 33), tmp_path)
    assert beyond == ({"then": n_layers} if name == "bert" else {"then": 1, "else": 2})


@pytest.mark.parametrize("scheme", ["w8a8-dynamic", "w8a8-static", "w4"])
def test_a_graph_with_two_paths_is_quantised_as_the_plain_one_is(fused: Get, scheme: str, tmp_path: Path) -> None:
    plain, two = fused("bert").path, tmp_path / "two-paths.onnx"
    add_unpadded_path(plain, two)
    feeds = [texts(1, 9, seed=1), texts(1, 21, seed=2)]
    logits = []
    for number, source in enumerate((plain, two)):
        out = tmp_path / f"{number}.onnx"
        if scheme == "w8a8-dynamic":
            facts = quantise_dynamic(source, out)
        elif scheme == "w8a8-static":
            facts = quantise_static(source, out, feeds=feeds)
        else:
            facts = quantise_weights(source, out, bits=4)
        assert facts.n_quantised == 14
        logits.append(run(out, texts(2, 12, pad=4, seed=3))["logits"])
    np.testing.assert_array_equal(*logits)  # with padding both take the same path


def test_what_has_no_mask_to_skip_is_refused(fused: Get, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="has no attention with a mask that a call without padding could do without"):
        add_unpadded_path(fused("llama").path, tmp_path / "no.onnx")
    add_unpadded_path(fused("bert").path, tmp_path / "two-paths.onnx")
    with pytest.raises(UnsupportedError, match=r"If '.*MultiHeadAttention.*' holds a graph of its own, which fp16"):
        convert_fp16(tmp_path / "two-paths.onnx", tmp_path / "no.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["two-paths.onnx"]
