"""A loaded model in other people's code: `transformers.pipeline`, stock folders, and the file that fits the machine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import pipeline

from compressor.checkpoints.manifest import Content, Variant
from compressor.checkpoints.store import Checkpoint
from compressor.errors import CheckpointError, CompressorError, MissingPackageError, UnsupportedError
from compressor.runtime.choose import choose_variant, eight_bit_sums_saturate, files_of
from compressor.runtime.load import load

TEXTS = ["The people of the United States.", "Our citizens"]


@pytest.mark.parametrize("precision", ["torch-fp32", "onnx-fp32", "int8"])
def test_a_pipeline_classifies(bert: Checkpoint, precision: str) -> None:
    model = load(bert.path, precision=precision, threads=1)
    pipe = pipeline("text-classification", model=model.for_transformers(), tokenizer=model.tokenizer)
    answers = [pipe(text)[0] for text in TEXTS]  # one at a time, as `predict` below: dynamic INT8 depends on the batch
    expected = [model.predict(text)[0] for text in TEXTS]
    assert [one["label"] for one in answers] == [one["label"] for one in expected]
    assert [one["score"] for one in answers] == pytest.approx([one["score"] for one in expected], abs=1e-5)


@pytest.mark.parametrize("precision", ["torch-fp32", "onnx-fp32"])
def test_a_pipeline_generates(llama: Checkpoint, precision: str) -> None:
    model = load(llama.path, precision=precision, threads=1)
    pipe = pipeline("text-generation", model=model.for_transformers(), tokenizer=model.tokenizer)
    answers = [pipe(text, max_new_tokens=6, do_sample=False, return_full_text=False)[0] for text in TEXTS]
    expected = [model.generate(text, max_new_tokens=6)[0] for text in TEXTS]
    assert [one["generated_text"] for one in answers] == expected


def test_a_pipeline_that_is_given_the_model_itself_says_what_it_wants(bert: Checkpoint) -> None:
    model = load(bert.path, precision="onnx-fp32", threads=1)
    with pytest.raises(UnsupportedError, match=r"a model stays where it was loaded.*\n.*model.for_transformers\(\)"):
        pipeline("text-classification", model=model, tokenizer=model.tokenizer)  # type: ignore[call-overload]


def test_a_stock_folder_with_onnx_files_opens_and_says_what_it_lacks(bert: Checkpoint, tmp_path: Path) -> None:
    stock = tmp_path / "stock"
    shutil.copytree(bert.path, stock)
    (stock / "compressor.json").unlink()
    (stock / "onnx" / "model_int8.onnx").rename(stock / "onnx" / "model_quantized.onnx")
    model = load(stock, precision="int8", threads=1)
    assert model.missing == (
        "no compressor.json: its files are not verified against any sha256",
        "no certificate: nothing is known of what it lost or costs",
        "the precision of onnx/model_quantized.onnx goes by its name alone",
    )
    np.testing.assert_array_equal(model.logits(TEXTS), load(bert.path, precision="int8", threads=1).logits(TEXTS))
    assert load(stock, threads=1).missing == model.missing[:2]  # through torch, which opens the weights
    with pytest.raises(CheckpointError, match=r"no ONNX file in fp16; there are: onnx/model.onnx, onnx/model_quant"):
        load(stock, precision="fp16")
    assert load(bert.path, threads=1).missing == ()


def variant(id_: str, scheme: str, runtime: str = "onnxruntime", **facts: Any) -> Variant:
    sizes = {"parameters": 1, "size_bytes": 1}
    values = {"id": id_, "path": f"onnx/{id_}.onnx", "runtime": runtime, "scheme": scheme, "stage": "s", **sizes}
    return Variant.model_validate({**values, "facts": facts})


FP32, FP16 = variant("onnx-fp32", "fp32"), variant("onnx-fp16", "fp16")
TORCH = variant("torch-fp32", "fp32", "torch")
REDUCED = variant("reduced", "w8a8-static", arithmetic="u8s8-reduced")
FULL = variant("onnx-w8a8-dynamic", "w8a8-dynamic")


@pytest.mark.parametrize(
    ("variants", "options", "expected"),
    [
        ((TORCH, FP32, FULL), {}, FULL),
        ((TORCH, FP32, FULL), {"device": "cuda"}, FP32),
        ((FP32, REDUCED, FULL), {"saturates": True}, REDUCED),
        ((FP32, REDUCED, FULL), {"saturates": False}, FULL),
        ((FP32, REDUCED, FULL), {"precision": "int8", "saturates": True}, REDUCED),
        ((FP32, REDUCED, FULL), {"precision": "w8a8-dynamic", "saturates": True}, FULL),
        ((FP32, FULL), {"precision": "int8", "saturates": True}, FULL),
        ((FP32, FP16), {"precision": "fp32"}, FP32),
        ((FP32, TORCH), {"is_there": lambda name: False}, FP32),
        ((TORCH,), {"is_there": lambda name: False}, MissingPackageError),
        ((FULL,), {"device": "cuda"}, UnsupportedError),
        ((FP32,), {"precision": "int4"}, CheckpointError),
    ],
)
def test_the_variant_that_this_machine_serves(
    variants: tuple[Variant, ...], options: dict[str, Any], expected: Variant | type[CompressorError]
) -> None:
    content = Content(
        task="causal-lm", model_type="llama", architecture="", labels=None, files={}, variants=variants, structure=None
    )
    options = {"saturates": False, **options}
    if isinstance(expected, Variant):
        assert choose_variant(content, where="here", **options) == expected
    else:
        with pytest.raises(expected):
            choose_variant(content, where="here", **options)


@pytest.mark.parametrize(("flags", "expected"), [("avx2 fma", True), ("avx2 avx_vnni", False), ("", False)])
def test_whether_eight_bit_sums_saturate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, expected: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(f"model name : one\nflags\t\t: {flags}\n")
    assert eight_bit_sums_saturate(tmp_path) is expected
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert eight_bit_sums_saturate(tmp_path) is False


def test_a_variant_needs_no_other_variants_files(bert: Checkpoint) -> None:
    files = files_of(bert.content, bert.variant("onnx-w8a8-dynamic"))
    assert "onnx/model_int8.onnx" in files and "config.json" in files and "tokenizer.json" in files
    assert "onnx/model.onnx" not in files and "model.safetensors" not in files
