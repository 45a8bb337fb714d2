"""Export: every family equals torch, cached and uncached, padded and not; names and layout are what others expect."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers as hf
from graph_families import DECODERS, ENCODERS, VOCAB, Exported, build, each
from onnx_runs import decode, run, session, texts, torch_logits
from transformers.exporters import OnnxConfig, OnnxExporter

from compressor.errors import CheckpointError, StageError, UnsupportedError
from compressor.graphs.export import export_decoder, export_encoder
from compressor.graphs.files import file_bytes, load_onnx, save_onnx
from compressor.graphs.parity import check_parity, compare_logits

Get = Callable[[str], Exported]


@pytest.mark.parametrize("name", each(ENCODERS))
@pytest.mark.parametrize(("batch", "length", "pad"), [(1, 5, 0), (3, 12, 4), (2, 33, 20), (1, 1, 0)])
def test_an_encoder_equals_torch_at_any_shape(exported: Get, name: str, batch: int, length: int, pad: int) -> None:
    one = exported(name)
    feed = texts(batch, length, pad=pad)
    expected = torch_logits(one.model, feed, *one.result.input_names)
    check_parity(compare_logits(expected, run(one.path, feed)["logits"]), "fp32")


@pytest.mark.parametrize("name", each(ENCODERS))
def test_an_encoder_listens_to_its_mask(exported: Get, name: str) -> None:
    one = exported(name)
    feed = texts(2, 12, pad=5)
    unmasked = {**feed, "attention_mask": np.ones_like(feed["attention_mask"])}
    difference = np.abs(run(one.path, feed)["logits"] - run(one.path, unmasked)["logits"])
    assert difference[0].max() < 1e-5 < 1e-3 < difference[1].max()


@pytest.mark.parametrize("name", each(ENCODERS))
def test_an_encoder_declares_only_what_its_tokenizer_gives(exported: Get, name: str) -> None:
    types = ("token_type_ids",) if name in ("bert", "electra", "nomic-bert") else ()
    assert exported(name).result.input_names == ("input_ids", "attention_mask", *types)
    assert exported(name).result.output_names == ("logits",)


def test_token_types_go_where_they_belong(exported: Get) -> None:
    one = exported("bert")
    feed = texts(2, 9)
    feed["token_type_ids"][:, 4:] = 1
    expected = torch_logits(one.model, feed, *one.result.input_names)
    check_parity(compare_logits(expected, run(one.path, feed)["logits"]), "fp32")


@pytest.mark.slow
def test_two_outputs_are_exported_by_name(tmp_path: Path) -> None:
    config = build("bert").config
    config.num_labels = 2
    torch.manual_seed(1)
    answering = hf.BertForQuestionAnswering(config).eval()
    result = export_encoder(answering, tmp_path / "qa.onnx", output_names=("start_logits", "end_logits"))
    assert result.output_names == ("start_logits", "end_logits")
    feed = texts(2, 7, pad=2)
    with torch.no_grad():
        expected = answering(**{name: torch.from_numpy(value) for name, value in feed.items()})
    outputs = run(result.path, feed)
    np.testing.assert_allclose(outputs["start_logits"], expected.start_logits, atol=1e-5)
    np.testing.assert_allclose(outputs["end_logits"], expected.end_logits, atol=1e-5)
    with pytest.raises(UnsupportedError, match=r"BertForQuestionAnswering has no output logits; it has start_logits"):
        export_encoder(answering, tmp_path / "no.onnx")
    assert not (tmp_path / "no.onnx").exists()


@pytest.mark.parametrize("name", each(DECODERS))
def test_a_decoder_equals_torch_through_every_cut_of_the_cache(exported: Get, name: str) -> None:
    one = exported(name)
    feed = texts(3, 15, pad=3, left=True)
    feed["position_ids"] = np.maximum(feed["attention_mask"].cumsum(1) - 1, 0)
    expected = torch_logits(one.model, feed, "input_ids", "attention_mask", "position_ids")
    for cuts in ([], [9, 10, 11], [1, 5]):  # at once; prefill, two steps and a chunk; a first step of one token
        logits = decode(one.path, feed, cuts)
        check_parity(compare_logits(expected, logits, feed["attention_mask"]), "fp32")


@pytest.mark.parametrize("name", each(DECODERS))
def test_a_decoder_has_the_names_that_optimum_and_transformers_js_expect(exported: Get, name: str) -> None:
    inputs = [value.name for value in session(exported(name).path).get_inputs()]
    assert inputs[:2] == ["input_ids", "attention_mask"]
    assert inputs[2:6] == [f"past_key_values.{i}.{part}" for i in (0, 1) for part in ("key", "value")]
    assert inputs[6:] == ["position_ids"]
    outputs = exported(name).result.output_names
    assert outputs == ("logits", "present.0.key", "present.0.value", "present.1.key", "present.1.value")


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_file_is_portable_and_tells_nothing_about_the_machine(exported: Get, name: str) -> None:
    path = exported(name).path
    model = onnx.load(str(path))
    assert model.ir_version <= 10
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert not model.metadata_props and not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert str(Path(torch.__file__).parent.parent).encode() not in path.read_bytes()
    dims = [[dim.dim_param or dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in model.graph.input]
    assert dims[0] == ["batch_size", "sequence_length"]
    if name == "llama":
        assert dims[1] == ["batch_size", "total_sequence_length"]
        assert dims[2] == ["batch_size", 2, "past_sequence_length", 8]


def test_tied_weights_are_stored_once(exported: Get) -> None:
    one = exported("llama")
    tables = [t for t in onnx.load(str(one.path)).graph.initializer if sorted(t.dims) == [32, VOCAB]]
    assert len(tables) == 1


def test_uneven_pruned_models_export_and_equal_torch(exported: Get) -> None:
    bert = exported("bert-uneven")
    feed = texts(3, 11, pad=4)
    expected = torch_logits(bert.model, feed, *feed)
    check_parity(compare_logits(expected, run(bert.path, feed)["logits"]), "fp32")

    llama = exported("llama-uneven")
    heads = {v.name: v.shape[1] for v in session(llama.path).get_inputs() if v.name.endswith(".key")}
    assert heads == {"past_key_values.0.key": 1, "past_key_values.1.key": 2}
    feed = texts(2, 9, pad=2, left=True)
    feed["position_ids"] = np.maximum(feed["attention_mask"].cumsum(1) - 1, 0)
    expected = torch_logits(llama.model, feed, "input_ids", "attention_mask", "position_ids")
    check_parity(compare_logits(expected, decode(llama.path, feed, [5, 6]), feed["attention_mask"]), "fp32")


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    hybrid = hf.Lfm2ForCausalLM(
        hf.Lfm2Config(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            layer_types=["full_attention", "conv"],
        )
    )
    with pytest.raises(UnsupportedError, match=r"Lfm2ForCausalLM keeps a \w+ in layer 1 of its cache"):
        export_decoder(hybrid, tmp_path / "hybrid.onnx")
    with pytest.raises(UnsupportedError, match=r"torch.float16 on cpu; export takes fp32"):
        export_encoder(build("bert").half(), tmp_path / "half.onnx")

    class Branches(hf.BertForSequenceClassification):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:  # type: ignore[override]
            length = int(attention_mask.sum())  # a number that only the data knows
            return super().forward(input_ids[:, :length], attention_mask[:, :length])

    with pytest.raises(UnsupportedError, match=r"Branches cannot be exported: \w+"):
        export_encoder(Branches(build("bert").config).eval(), tmp_path / "branches.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    model = build("distilbert").train()
    export_encoder(model, tmp_path / "model.onnx")
    assert model.training


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "deberta-v3", "modernbert"])
def test_transformers_own_exporter_says_the_same(exported: Get, name: str, tmp_path: Path) -> None:
    """An oracle that shares no code of ours: another wrapper, its own names, its own dynamic shapes."""
    one, feed = exported(name), texts(2, 11, pad=3)
    inputs = {key: torch.from_numpy(feed[key]) for key in one.result.input_names}
    program = OnnxExporter().export(one.model, dict(inputs), OnnxConfig(dynamic=True))
    program.save_pretrained(tmp_path)
    for batch, length, pad in [(2, 11, 3), (3, 7, 2)]:
        feed = texts(batch, length, pad=pad, seed=5)
        oracle = run(tmp_path / "model.onnx", feed)["logits"]
        check_parity(compare_logits(oracle, run(one.path, feed)["logits"]), "fp32")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_transformers_own_exporter_caches_the_same_keys_and_values(exported: Get, name: str, tmp_path: Path) -> None:
    one = exported(name)
    shapes = {value.name: value.shape for value in session(one.path).get_inputs() if "past" in value.name}
    _, n_heads, _, size = shapes["past_key_values.0.key"]
    cache = hf.DynamicCache()
    for layer in range(len(shapes) // 2):
        cache.update(torch.randn(2, n_heads, 3, size), torch.randn(2, n_heads, 3, size), layer)
    inputs = {
        "input_ids": torch.arange(8).reshape(2, 4), "attention_mask": torch.ones(2, 7, dtype=torch.long),
        "position_ids": torch.arange(3, 7).repeat(2, 1), "past_key_values": cache, "use_cache": True,
    }  # fmt: skip
    OnnxExporter().export(one.model, inputs, OnnxConfig(dynamic=True)).save_pretrained(tmp_path)
    oracle = tmp_path / "model.onnx"
    theirs = {value.name for value in session(oracle).get_inputs()}
    assert theirs == {_theirs(value.name) for value in session(one.path).get_inputs()}

    for batch, length, past in [(3, 6, 5), (1, 2, 9)]:
        feed = texts(batch, length, seed=length)
        feed["attention_mask"] = np.ones((batch, past + length), np.int64)
        feed["position_ids"] = np.arange(past, past + length)[None].repeat(batch, 0)
        numbers = np.random.default_rng(past)
        feed |= {key: numbers.standard_normal((batch, n_heads, past, size)).astype(np.float32) for key in shapes}
        ours, says = run(one.path, feed), run(oracle, {_theirs(key): value for key, value in feed.items()})
        assert set(says) == {_theirs(key) for key in ours}
        for key, value in ours.items():
            assert value.shape == says[_theirs(key)].shape
            np.testing.assert_allclose(value, says[_theirs(key)], atol=1e-4 * np.abs(value).max(), err_msg=key)


def _theirs(name: str) -> str:
    """A tensor's name in transformers' export: `past_key_values.0.key` -> `input.past_key_values.layers.0.keys`."""
    if name.startswith(("past_key_values.", "present.")):
        _, layer, part = name.split(".")
        return f"{'input' if name.startswith('past') else 'output'}.past_key_values.layers.{layer}.{part}s"
    return name


class Eigenvalues(torch.nn.Module):
    """An operator that ONNX does not have."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + torch.linalg.eigvalsh(hidden.transpose(-1, -2) @ hidden)[:, None]


class Peeks(torch.nn.Module):
    """A branch on a value."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden if hidden.sum() > 0 else 2 * hidden


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "text"),
    [
        (
            Eigenvalues(),
            r"aten._linalg_eigh.* in bert.encoder.layer.1.output.dropout \(Eigenvalues\) on \(\w+, 32, 32\)",
        ),
        (Peeks(), r"data-dependent.* in bert.encoder.layer.1.output.dropout \(Peeks\) on \(\w+, \w+, 32\)"),
    ],
    ids=["operator", "branch"],
)
def test_a_module_that_cannot_be_exported_is_named_with_its_shape(
    module: torch.nn.Module, text: str, tmp_path: Path
) -> None:
    model = build("bert")
    model.bert.encoder.layer[1].output.dropout = module
    with pytest.raises(UnsupportedError, match=text):
        export_encoder(model, tmp_path / "no.onnx")
    assert not list(tmp_path.iterdir())


def test_large_weights_go_beside_the_graph(exported: Get, tmp_path: Path) -> None:
    one = exported("llama")
    path = tmp_path / "model.onnx"
    save_onnx(load_onnx(one.path), path, external_data_above_bytes=1000)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx_data"]
    assert file_bytes(path) > path.stat().st_size
    feed = texts(2, 6)
    feed["position_ids"] = np.maximum(feed["attention_mask"].cumsum(1) - 1, 0)
    np.testing.assert_array_equal(decode(path, feed, [4]), decode(one.path, feed, [4]))
    save_onnx(load_onnx(path), path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]  # no stale data file stays behind


def test_a_full_disk_leaves_nothing_half_written(exported: Get, tmp_path: Path) -> None:
    model = load_onnx(exported("bert").path)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the file of the stage before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # the kernel refuses the rest, as a full disk would
    try:
        with pytest.raises(StageError, match=r"model.onnx: could not be written \(File too large\)"):
            save_onnx(model, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"the file of the stage before"


def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such ONNX file"):
        load_onnx(tmp_path / "absent.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"\x08not onnx at all")
    with pytest.raises(CheckpointError, match=r"broken.onnx: (cannot be read as ONNX|holds an empty ONNX graph)"):
        load_onnx(tmp_path / "broken.onnx")
