"""`compressor layout`: files where other runtimes look for them; and doors really opened, where they are installed."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from tiny_checkpoints import make_checkpoint

from compressor.checkpoints.store import Checkpoint, seal
from compressor.errors import CheckpointError, UnsupportedError, UserError
from compressor.integrations.layout import DoorRow, lay_out, markdown
from compressor.methods.structure import LayerStructure, Structure
from compressor.methods.surgery import read_structure
from compressor.runtime.doors import DOOR_NAMES
from compressor.runtime.torch_models import load_module

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def encoder(tiny_bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tiny_bert_dir, tmp_path_factory.mktemp("layout") / "int8-01234567")


@pytest.fixture(scope="module")
def decoder(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tiny_llama_dir, tmp_path_factory.mktemp("layout") / "writer")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


TOKENIZER = {"config.json", "tokenizer.json", "tokenizer_config.json", "doors.json"}


@pytest.mark.parametrize(
    ("door", "expected"),
    [
        ("tei", TOKENIZER | {"model.onnx"}),
        ("openvino", TOKENIZER | {"model.onnx"}),
        ("fastembed", TOKENIZER | {"onnx/model.onnx"}),
        ("transformersjs", TOKENIZER | {f"onnx/model{end}.onnx" for end in ("", "_int8", "_quantized")}),
        ("sentence-transformers", TOKENIZER | {"model.safetensors", "onnx/model.onnx", "onnx/model_int8.onnx"}),
        ("triton", {"doors.json", "int8/config.pbtxt", "int8/1/model.onnx"}),
    ],
)
def test_files_lie_where_the_runtime_looks(door: Any, expected: set[str], encoder: Checkpoint, tmp_path: Path) -> None:
    rows = lay_out(encoder.path, door, tmp_path / "out")
    if importlib.util.find_spec("openvino") is None:
        assert files(tmp_path / "out") == expected
        assert not any(row.opened for row in rows)
    assert [row.difference for row in rows] == [0.0] * len(rows)
    assert json.loads((tmp_path / "out" / "doors.json").read_text()) == [row.to_json() for row in rows]
    # copies: whoever edits the layout leaves the checkpoint whole
    assert all(path.stat().st_nlink == 1 for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert not (tmp_path / ".out.partial").exists()


def test_a_door_of_one_graph_gets_what_load_would_open_or_what_is_asked_for(
    encoder: Checkpoint, tmp_path: Path
) -> None:
    (default,) = lay_out(encoder.path, "tei", tmp_path / "a")
    (asked,) = lay_out(encoder.path, "tei", tmp_path / "b", precision="fp32")
    assert (default.variant, asked.variant) == ("onnx-w8a8-dynamic", "onnx-fp32")
    assert (tmp_path / "a" / "model.onnx").read_bytes() == (encoder.path / "onnx" / "model_int8.onnx").read_bytes()
    assert (tmp_path / "b" / "model.onnx").read_bytes() == (encoder.path / "onnx" / "model.onnx").read_bytes()


def test_configs_say_what_the_runtime_reads(encoder: Checkpoint, tmp_path: Path) -> None:
    lay_out(encoder.path, "transformersjs", tmp_path / "js")
    config = json.loads((tmp_path / "js" / "config.json").read_text())
    assert config["transformers.js_config"] == {"dtype": "int8"}
    assert {key: value for key, value in config.items() if key != "transformers.js_config"} == json.loads(
        (encoder.path / "config.json").read_text()
    )
    lay_out(encoder.path, "fastembed", tmp_path / "fe")
    assert json.loads((tmp_path / "fe" / "tokenizer_config.json").read_text())["model_max_length"] == 128


def test_tokenizers_open_in_transformers_4_too(decoder: Checkpoint, tmp_path: Path) -> None:
    """Version 5 writes a class name that version 4, which Optimum's ONNX classes need, does not know."""
    lay_out(decoder.path, "transformersjs", tmp_path / "js")
    assert json.loads((tmp_path / "js" / "tokenizer_config.json").read_text())["tokenizer_class"] in (
        "PreTrainedTokenizerFast", "LlamaTokenizerFast", "GPT2TokenizerFast",
    )  # fmt: skip


def test_triton_s_config_names_every_tensor_and_the_tuned_threads(encoder: Checkpoint, tmp_path: Path) -> None:
    content = encoder.content
    variants = [variant.model_copy(update={"settings": {"threads": 3}}) for variant in content.variants]
    folder = tmp_path / "tuned-01234567"
    for name in content.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((encoder.path / name).read_bytes())
    seal(
        folder, task=content.task, model_type=content.model_type, architecture=content.architecture,
        labels=content.labels, variants=variants, structure=None, record=encoder.record,
    )  # fmt: skip
    lay_out(folder, "triton", tmp_path / "repository")
    text = (tmp_path / "repository" / "tuned" / "config.pbtxt").read_text()
    assert text.startswith('name: "tuned"\nbackend: "onnxruntime"\nmax_batch_size: 0\n')
    assert 'input [ { name: "input_ids" data_type: TYPE_INT64 dims: [ -1, -1 ] } ]' in text
    assert 'output [ { name: "logits" data_type: TYPE_FP32 dims: [ -1, 3 ] } ]' in text
    assert 'parameters { key: "intra_op_thread_count" value: { string_value: "3" } }' in text


def test_a_decoder_whose_layers_keep_unequal_heads_is_refused_where_the_config_says_how_many(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    """Seen with Optimum, which ends in ONNX Runtime's "Got: 4 Expected: 3"; Transformers.js builds its cache alike."""
    full = read_structure(load_module(tiny_llama_dir))
    first, *rest = full.layers
    halved = LayerStructure(first.heads_kept[:2], first.kv_heads_kept[:1], first.ffn_kept)
    structure = Structure(full.layers_kept, (halved, *rest))
    uneven = make_checkpoint(tiny_llama_dir, tmp_path / "uneven", structure=structure)
    with pytest.raises(
        UnsupportedError,
        match=r"uneven: Transformers.js takes as many key/value heads in every layer, and here layers keep 1, 2\n"
        r"  -> prune with `layout: uniform`, or heads alike and neurons freely; or use triton or openvino",
    ):
        lay_out(uneven.path, "transformersjs", tmp_path / "js")
    assert not (tmp_path / "js").exists()
    lay_out(uneven.path, "triton", tmp_path / "triton")


def test_decoders_go_through_doors_that_generate(decoder: Checkpoint, tmp_path: Path) -> None:
    rows = lay_out(decoder.path, "transformersjs", tmp_path / "js")
    assert [row.difference for row in rows] == [0.0, 0.0, 0.0]
    lay_out(decoder.path, "triton", tmp_path / "triton")
    text = (tmp_path / "triton" / "writer" / "config.pbtxt").read_text()
    heads = re.search(r'name: "past_key_values\.0\.key" data_type: TYPE_FP32 dims: \[ -1, (\d+), -1, (\d+) \]', text)
    assert heads is not None
    for door, title in (("tei", "Text Embeddings Inference"), ("fastembed", "fastembed")):
        with pytest.raises(UnsupportedError) as caught:
            lay_out(decoder.path, door, tmp_path / door)  # type: ignore[arg-type]
        assert str(caught.value) == (
            f"{decoder.path}: {title} serves encoders, and this is a causal-lm model\n"
            "  -> use transformersjs, triton or openvino"
        )
        assert not (tmp_path / door).exists()


def test_mistakes_leave_nothing_behind(encoder: Checkpoint, tiny_bert_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="full: the folder is not empty\n  -> name a new folder with --out"):
        lay_out(encoder.path, "tei", tmp_path / "full")
    with pytest.raises(
        CheckpointError, match="no variant with precision 'fp16' and runtime 'onnxruntime' here; there are"
    ):
        lay_out(encoder.path, "tei", tmp_path / "out", precision="fp16")
    torch_only = make_checkpoint(tiny_bert_dir, tmp_path / "torch", with_onnx=False)
    with pytest.raises(CheckpointError, match="there is no ONNX graph here to lay out\n  -> add an export stage"):
        lay_out(torch_only.path, "tei", tmp_path / "out")
    assert files(tmp_path / "full") == {"mine.txt"} and not (tmp_path / "out").exists()


def test_weights_beside_a_graph_are_refused(encoder: Checkpoint, tmp_path: Path) -> None:
    """`.onnx_data` for one runtime is `.onnx.data` for another; below 1.5 GB ours are one file."""
    folder = tmp_path / "large"
    for name in encoder.content.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((encoder.path / name).read_bytes())
    graph = onnx.load(str(folder / "onnx" / "model.onnx"))
    onnx.save(graph, str(folder / "onnx" / "model.onnx"), save_as_external_data=True, location="model.onnx.data")
    content = encoder.content
    seal(
        folder, task=content.task, model_type=content.model_type, architecture=content.architecture,
        labels=content.labels, variants=content.variants, structure=None, record=encoder.record,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match=r"keeps its weights in onnx/model\.onnx\.data, a name that differs from"):
        lay_out(folder, "tei", tmp_path / "out", precision="fp32")


def test_the_table_tells_opened_from_laid_out() -> None:
    rows = [
        DoorRow("OpenVINO", "model.onnx", "onnx-fp32", True, 3e-7, "OpenVINO 2026.4.1", ""),
        DoorRow("Triton", "m/1/model.onnx", "onnx-fp32", False, None, None, "Triton itself was not run here"),
    ]
    assert markdown(rows).splitlines()[2:] == [
        "| OpenVINO | model.onnx | onnx-fp32 | yes | 3.0e-07 (OpenVINO 2026.4.1) |  |",
        "| Triton | m/1/model.onnx | onnx-fp32 | laid out only | - | Triton itself was not run here |",
    ]


def test_the_command(encoder: Checkpoint, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "compressor.cli", "layout", str(encoder.path), "--for", "tei"]
    command += ["--out", str(tmp_path / "out"), "--markdown", str(tmp_path / "doors.md"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (row,) = json.loads(done.stdout)
    assert (row["door"], row["file"], row["opened"]) == ("Text Embeddings Inference", "model.onnx", False)
    assert "| laid out only | 0.0e+00 (ONNX Runtime" in (tmp_path / "doors.md").read_text()
    assert set(DOOR_NAMES) == set(
        re.findall(
            r"tei|transformersjs|fastembed|triton|sentence-transformers|openvino",
            subprocess.run(
                [*command[:4], "--help"], capture_output=True, text=True, check=True, env={"COLUMNS": "300", "PATH": ""}
            ).stdout,
        )
    )


# Really opened -------------------------------------------------------------------------------------------------------


def load_doors() -> ModuleType:
    spec = importlib.util.spec_from_file_location("doors", ROOT / "eval" / "doors.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["doors"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def doors() -> ModuleType:
    found = load_doors()
    missing = [tool for tool in found.TOOLS if not found.peers.is_built(tool)]
    if missing:
        pytest.skip(f"no environment for {', '.join(missing)}: python eval/peers/environments.py")
    return found


@pytest.mark.slow
def test_doors_really_open_an_encoder(doors: ModuleType, encoder: Checkpoint, tmp_path: Path) -> None:
    shop = doors.Workshop("encoder", encoder.path, tmp_path)
    rows = list(doors.encoder_doors(shop, ("fp32", "int8")))
    assert [row.door for row in rows][:5] == [
        "OpenVINO",
        "compressor.load(device='openvino')",
        "Optimum ORTModelForSequenceClassification",
        "Transformers.js",
        "fastembed",
    ]
    assert len(rows) == 10 and all(row.opened for row in rows)
    assert max(row.difference for row in rows[:5]) < 1e-5
    assert max(row.difference for row in rows[5:]) < 0.1  # sums of 8-bit products differ from runtime to runtime


@pytest.mark.slow
def test_doors_really_open_a_decoder(doors: ModuleType, decoder: Checkpoint, tmp_path: Path) -> None:
    shop = doors.Workshop("decoder", decoder.path, tmp_path)
    rows = list(doors.decoder_doors(shop, ("fp32",)))
    assert [row.door for row in rows] == ["OpenVINO", "Optimum ORTModelForCausalLM", "Transformers.js"]
    assert rows[0].difference < 1e-5
    assert [row.difference for row in rows[1:]] == [0.0, 0.0]  # every greedy token


def test_a_difference_is_relative_to_the_largest_value() -> None:
    assert load_doors().apart(np.array([1.0, -4.0]), np.array([1.0, -3.0])) == 0.25
