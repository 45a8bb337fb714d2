"""`compressor.load`: the right variant, verified, answering; and without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from compressor.checkpoints.store import Checkpoint
from compressor.errors import CheckpointError, MissingPackageError, UnsupportedError, UserError
from compressor.runtime.load import load

TEXTS = ["The people of the United States.", "Our citizens", "Congress and the treaty with Great Britain " * 3]
Copy = Callable[[Checkpoint], Path]


def refusal(path: Path | str, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path, **options)
    return str(caught.value)


def test_the_last_variant_is_the_one_that_opens(bert: Checkpoint) -> None:
    model = load(bert.path)
    assert model.variant is not None and model.variant.id == "onnx-w8a8-dynamic"
    assert repr(model) == f"CompressedModel({str(bert.path)!r}, variant='onnx-w8a8-dynamic')"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"precision": "int8"}, "onnx-w8a8-dynamic"),
        ({"precision": "w8a8-dynamic"}, "onnx-w8a8-dynamic"),
        ({"precision": "fp32"}, "onnx-fp32"),
        ({"precision": "torch-fp32"}, "torch-fp32"),
        ({"precision": "fp32", "runtime": "torch"}, "torch-fp32"),
        ({"runtime": "torch"}, "torch-fp32"),
    ],
)
def test_a_variant_is_chosen_by_precision_and_runtime(bert: Checkpoint, options: dict[str, Any], expected: str) -> None:
    model = load(bert.path, threads=1, **options)
    assert model.variant is not None and model.variant.id == expected


def test_a_precision_that_is_not_there(bert: Checkpoint) -> None:
    assert refusal(bert.path, precision="fp16", runtime="onnxruntime") == (
        f"{bert.path}: no variant with precision 'fp16' and runtime 'onnxruntime' here; there are: torch-fp32 (fp32), "
        "onnx-fp32 (fp32), onnx-w8a8-dynamic (w8a8-dynamic)"
    )


@pytest.mark.parametrize("precision", ["torch-fp32", "onnx-fp32"])
def test_answers_are_those_of_the_stock_model(bert: Checkpoint, precision: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bert.path)
    stock = AutoModelForSequenceClassification.from_pretrained(bert.path)
    with torch.inference_mode():
        expected = stock(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.numpy()
    model = load(bert.path, precision=precision, threads=1)
    np.testing.assert_allclose(model.logits(TEXTS, batch_size=2), expected, atol=1e-5)
    answers = model.predict(TEXTS)
    assert [answer["label"] for answer in answers] == [bert.content.labels[i] for i in expected.argmax(1)]  # type: ignore[index]
    odds = np.exp(expected.astype(np.float64))
    assert [a["score"] for a in answers] == pytest.approx((odds / odds.sum(1, keepdims=True)).max(1).tolist(), abs=1e-5)


def test_it_can_be_called_as_a_transformers_model(bert: Checkpoint) -> None:
    model = load(bert.path, precision="onnx-fp32", threads=1)
    from_torch = model(**model.tokenizer(TEXTS, padding=True, return_tensors="pt").to(model.device))
    from_numpy = model(**model.tokenizer(TEXTS, padding=True, return_tensors="np"))
    from_lists = model(**model.tokenizer(TEXTS, padding=True))
    assert isinstance(from_torch.logits, torch.Tensor) and isinstance(from_numpy["logits"], np.ndarray)
    np.testing.assert_array_equal(from_torch.logits.numpy(), from_numpy.logits)
    np.testing.assert_array_equal(from_lists.logits, model.logits(TEXTS))


def test_one_text_a_pair_and_none(bert: Checkpoint) -> None:
    model = load(bert.path, threads=1)
    assert len(model.predict("one text")) == 1
    assert model.logits([("a pair", "of texts")]).shape == (1, 3)
    assert model.predict([]) == []


def test_a_text_longer_than_the_model_is_cut(bert: Checkpoint) -> None:
    model = load(bert.path, precision="onnx-fp32", threads=1)
    assert model.logits("word " * 500).shape == (1, 3)


@pytest.mark.parametrize("precision", ["torch-fp32", "onnx-fp32"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_text_is_that_of_the_stock_model(name: str, precision: str, request: pytest.FixtureRequest) -> None:
    checkpoint: Checkpoint = request.getfixturevalue(name)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, padding_side="left")
    stock = AutoModelForCausalLM.from_pretrained(checkpoint.path)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    tokens = stock.generate(**inputs, max_new_tokens=10, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    model = load(checkpoint.path, precision=precision, threads=1)
    assert model.generate(TEXTS, max_new_tokens=10) == tokenizer.batch_decode(tokens, skip_special_tokens=True)
    assert model.generate(TEXTS[0], max_new_tokens=10) == model.generate(TEXTS, max_new_tokens=10)[:1]


def test_sampling_and_beams(llama: Checkpoint) -> None:
    model = load(llama.path, precision="onnx-fp32", threads=1)
    drawn = [model.generate(TEXTS, max_new_tokens=6, do_sample=True, temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(model.generate(TEXTS, max_new_tokens=6, num_beams=2)) == 3


def test_the_live_module_is_there_for_torch_only(bert: Checkpoint) -> None:
    assert isinstance(load(bert.path, runtime="torch", threads=1).module, torch.nn.Module)
    with pytest.raises(UnsupportedError, match=r"runs in ONNX Runtime and has no torch module\n  -> load\(path, ru"):
        _ = load(bert.path, precision="onnx-fp32", threads=1).module


def test_what_a_model_cannot_do(bert: Checkpoint, llama: Checkpoint) -> None:
    with pytest.raises(UnsupportedError, match=r"a sequence-classification model does not generate\n  -> use pre"):
        load(bert.path, threads=1).generate("a")
    model = load(llama.path, threads=1)
    with pytest.raises(UnsupportedError, match=r"a causal-lm model does not classify\n  -> use generate\(\)"):
        model.predict("a")
    with pytest.raises(UserError, match="a prompt is empty"):
        model.generate(["a", ""])
    assert model.generate([]) == []


def test_a_plain_hugging_face_folder(tiny_bert_dir: Path, tiny_llama_dir: Path) -> None:
    model = load(tiny_bert_dir, threads=1)
    assert model.predict("a")[0]["label"].startswith("LABEL_") and model.checkpoint is None
    assert isinstance(load(tiny_llama_dir, threads=1).generate("The", max_new_tokens=3)[0], str)
    assert refusal(tiny_bert_dir, precision="int8") == (
        f"{tiny_bert_dir}: a plain model without compressor.json, and no ONNX file in int8; there are: none\n"
        "  -> leave precision and runtime out, or make variants with a pipeline"
    )


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no") == (
        f"{tmp_path / 'no'}: no such checkpoint folder\n"
        "  -> check the path; a hub repository is written organisation/name"
    )


def test_a_device_that_does_not_exist(bert: Checkpoint) -> None:
    with pytest.raises(UserError, match="device: device 'tpu' is none of: cpu, cuda, openvino"):
        load(bert.path, device="tpu")  # type: ignore[arg-type]


def test_a_tampered_file(bert: Checkpoint, copy_of: Copy) -> None:
    folder = copy_of(bert)
    graph = folder / "onnx" / "model_int8.onnx"
    data = bytearray(graph.read_bytes())
    data[-100] ^= 1
    graph.write_bytes(bytes(data))
    assert f"{graph}: corrupt or changed: its sha256 is not the manifest's" in refusal(folder)


def test_a_half_copied_file(bert: Checkpoint, copy_of: Copy) -> None:
    folder = copy_of(bert)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"{weights}: corrupt: 1000 bytes where the manifest says " in refusal(folder)


def test_a_file_smuggled_in(bert: Checkpoint, copy_of: Copy) -> None:
    folder = copy_of(bert)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert "pytorch_model.bin: the file is not in the manifest" in refusal(folder)


def test_a_half_written_folder(bert: Checkpoint, copy_of: Copy, tmp_path: Path) -> None:
    folder = copy_of(bert)
    (folder / "compressor.json").unlink()
    partial = folder.rename(tmp_path / "student-01234567.partial")
    assert f"{partial}: no compressor.json: the folder was never finished" in refusal(partial)
    (tmp_path / "empty").mkdir()
    assert "no compressor.json: the folder was never finished" in refusal(tmp_path / "empty")


def test_a_manifest_of_a_newer_version(bert: Checkpoint, copy_of: Copy) -> None:
    manifest = copy_of(bert) / "compressor.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema": "compressor-manifest/9"}))
    assert "the manifest is of version 'compressor-manifest/9'; this toolkit reads" in refusal(manifest.parent)


WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None  # `import torch` fails, and nobody finds it
from compressor.errors import CompressorError
from compressor.runtime.load import load
encoder, decoder, texts = load(sys.argv[1], threads=1), load(sys.argv[2], precision="fp32", threads=1), sys.argv[4:]
answer = {
    "variants": [encoder.variant.id, decoder.variant.id],
    "predict": encoder.predict(texts),
    "logits": encoder(**encoder.tokenizer(texts, padding=True)).logits.tolist(),
    "generate": decoder.generate(texts, max_new_tokens=8),
    "sample": decoder.generate(texts, max_new_tokens=8, do_sample=True, seed=3),
    "stream": list(decoder.stream(texts[0], max_new_tokens=8)),
    "errors": [],
}
for go in (
    lambda: load(sys.argv[1], runtime="torch"),
    lambda: load(sys.argv[3]),
    lambda: decoder.generate(texts, num_beams=2),
):
    try:
        go()
    except CompressorError as error:
        answer["errors"].append([type(error).__name__, str(error)])
print(json.dumps(answer))
"""


def test_onnx_variants_need_no_torch(bert: Checkpoint, llama: Checkpoint, tiny_bert_dir: Path) -> None:
    folders = [str(bert.path), str(llama.path), str(tiny_bert_dir)]
    command = [sys.executable, "-c", WITHOUT_TORCH, *folders, *TEXTS]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["variants"] == ["onnx-w8a8-dynamic", "onnx-fp32"]
    with_torch = load(bert.path, threads=1)
    assert answer["predict"] == with_torch.predict(TEXTS)
    assert answer["logits"] == with_torch.logits(TEXTS).tolist()
    writer = load(llama.path, runtime="torch", threads=1)
    assert answer["generate"] == writer.generate(TEXTS, max_new_tokens=8)
    assert answer["sample"] == writer.generate(TEXTS, max_new_tokens=8, do_sample=True, seed=3)
    assert "".join(answer["stream"]) == writer.generate(TEXTS[0], max_new_tokens=8)[0]
    needed = (
        "the variant 'torch-fp32'",
        f"a plain Hugging Face folder ({tiny_bert_dir})",
        "beam search and transformers' generation settings",
    )
    assert answer["errors"] == [
        [
            MissingPackageError.__name__,
            f"{what} needs the package 'torch', which is not installed\n  -> pip install 'joule-compressor[torch]'",
        ]
        for what in needed
    ]
