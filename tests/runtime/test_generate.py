"""Text from logits: sampling as transformers does it, streams, batches of unequal prompts, settings that apply."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    TemperatureLogitsWarper,
    TextIteratorStreamer,
    TextStreamer,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from compressor.checkpoints.store import Checkpoint, seal
from compressor.data.tokenize import load_tokenizer
from compressor.errors import UnsupportedError, UserError
from compressor.runtime.generate import drawn, likelihoods, most_likely, pieces
from compressor.runtime.load import load
from compressor.runtime.runners import Array

PROMPTS = ["The people of the United States.", "Our citizens", "Congress and the treaty with Great Britain " * 3]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, None, 1.0), (0.7, 5, 1.0), (1.3, None, 0.8), (0.5, 9, 0.6)]
)
def test_tokens_are_drawn_with_transformers_likelihoods(temperature: float, top_k: int | None, top_p: float) -> None:
    logits = np.random.default_rng(3).normal(size=(6, 50)).astype(np.float32) * 3
    scores = torch.from_numpy(logits).double()
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    for warper in warpers:
        scores = warper(None, scores)
    expected = scores.softmax(dim=-1).numpy()
    found = likelihoods(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_draws_have_the_frequencies_of_their_likelihoods() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]]))
    tokens = drawn(seed=1)(np.repeat(logits, 20_000, axis=0))
    np.testing.assert_allclose(np.bincount(tokens, minlength=4) / 20_000, [0.5, 0.3, 0.15, 0.05], atol=0.015)
    nucleus = drawn(top_p=0.6, seed=1)(np.repeat(logits, 2_000, axis=0))
    assert set(nucleus) == {0, 1}
    assert (drawn(top_k=1, seed=1)(logits) == most_likely(logits)).all()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"temperature": 0.0}, "temperature is 0; it must be above 0\n  -> do_sample=False is greedy"),
        ({"top_k": 0}, "top_k is 0; it must be 1 or more\n  -> leave it out to draw from all tokens"),
        ({"top_p": 1.5}, "top_p is 1.5; it must be above 0 and at most 1\n  -> 1 draws from all tokens"),
    ],
)
def test_values_out_of_range(values: dict[str, float], text: str, llama: Checkpoint) -> None:
    with pytest.raises(UserError) as caught:
        load(llama.path, precision="onnx-fp32", threads=1).generate("The", do_sample=True, **values)  # type: ignore[arg-type]
    assert str(caught.value) == text


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30))
@settings(max_examples=60, deadline=None)
def test_pieces_joined_are_the_text(text: str, llama_tokenizer_dir: Path) -> None:
    """Characters that take several byte-level tokens come out whole, and once."""
    tokenizer = load_tokenizer(llama_tokenizer_dir)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = list(pieces(tokenizer, ids))
    assert "".join(found) == tokenizer.decode(ids, skip_special_tokens=True)
    assert not any("\ufffd" in piece for piece in found[:-1]) or "\ufffd" in text


@pytest.fixture(scope="module")
def llama_tokenizer_dir(tiny_llama_dir: Path) -> Path:
    return tiny_llama_dir


def test_a_stream_is_the_text_in_pieces(llama: Checkpoint) -> None:
    model = load(llama.path, precision="onnx-fp32", threads=1)
    whole = model.generate(PROMPTS[0], max_new_tokens=12)[0]
    found = list(model.stream(PROMPTS[0], max_new_tokens=12))
    assert "".join(found) == whole and len(found) > 1
    by_lot = {"max_new_tokens": 12, "do_sample": True, "seed": 5, "temperature": 1.5}
    assert "".join(model.stream(PROMPTS[0], **by_lot)) == model.generate(PROMPTS[0], **by_lot)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"settings": {"repetition_penalty": 1.3}}])
def test_transformers_streamers_are_fed(
    llama: Checkpoint, options: Mapping[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(llama.path, precision="onnx-fp32", threads=1)
    printed = TextStreamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True)  # type: ignore[no-untyped-call]
    text = model.generate(PROMPTS[0], max_new_tokens=10, streamer=printed, **options)[0]  # type: ignore[arg-type]
    assert capsys.readouterr().out.removesuffix("\n") == text
    waiting = TextIteratorStreamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True)  # type: ignore[no-untyped-call]
    model.generate(PROMPTS[0], max_new_tokens=10, streamer=waiting, **options)  # type: ignore[arg-type]
    assert "".join(waiting) == text


def test_any_generation_setting_of_transformers(llama: Checkpoint) -> None:
    """On unequal prompts in one batch, against the stock model."""
    model = load(llama.path, precision="onnx-fp32", threads=1)
    chosen = {"repetition_penalty": 1.5, "min_new_tokens": 6}
    found = model.generate(PROMPTS, max_new_tokens=8, settings=chosen)
    stock = AutoModelForCausalLM.from_pretrained(llama.path)
    tokenizer = load_tokenizer(llama.path)
    inputs = tokenizer(PROMPTS, padding=True, padding_side="left", return_tensors="pt")
    tokens = stock.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id, **chosen)
    assert found == tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_settings_of_a_variant_are_applied_to_calls(bert: Checkpoint, tmp_path: Path) -> None:
    """Batches of the tuned size, texts of like length together, answers in the order of the texts."""
    folder = Path(shutil.copytree(bert.path, tmp_path / "tuned", ignore=shutil.ignore_patterns("compressor.json")))
    content = bert.content
    tuned = {"batch_size": 2, "sort_by_length": True, "threads": 1, "allow_spinning": False}
    variants = [
        variant.model_copy(update={"settings": tuned if variant.runtime != "torch" else {}})
        for variant in content.variants
    ]
    seal(
        folder, task=content.task, model_type=content.model_type, architecture=content.architecture,
        labels=content.labels, variants=variants, structure=None, record=bert.record,
    )  # fmt: skip
    model = load(folder, precision="onnx-fp32")
    shapes: list[tuple[int, ...]] = []
    forward = model.runner.forward

    def watched(inputs: Mapping[str, Array]) -> dict[str, Array]:
        shapes.append(inputs["input_ids"].shape)
        return forward(inputs)

    model.runner.forward = watched  # type: ignore[method-assign]
    texts = ["a " * n for n in (20, 1, 18, 2, 3)]
    found = model.logits(texts)
    assert [rows for rows, _ in shapes] == [2, 2, 1] and shapes[0][1] < shapes[1][1] < shapes[2][1]
    np.testing.assert_allclose(found, load(bert.path, precision="onnx-fp32", threads=1).logits(texts), atol=1e-5)
    shapes.clear()
    model.logits(texts, batch_size=5)
    assert [rows for rows, _ in shapes] == [5]
    assert load(folder, precision="onnx-fp32", settings={"batch_size": 3}).settings["batch_size"] == 3


def test_a_provider_that_is_not_installed(bert: Checkpoint) -> None:
    with pytest.raises(UnsupportedError, match="ONNX Runtime has no OpenVINOExecutionProvider here; it has: "):
        load(bert.path, precision="onnx-fp32", device="openvino")


@pytest.mark.slow
def test_a_real_model_writes_torch_s_tokens(cached_smollm: Path, tmp_path: Path) -> None:
    """SmolLM2-135M through ONNX fp32, unequal prompts in one batch, token for token what torch writes."""
    from tiny_checkpoints import make_checkpoint

    checkpoint = make_checkpoint(cached_smollm, tmp_path / "smollm")
    prompts = ["The state of the union is", "Fellow citizens, I congratulate you", "We must"]
    stock = AutoModelForCausalLM.from_pretrained(cached_smollm, dtype=torch.float32)
    tokenizer = load_tokenizer(cached_smollm)
    inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
    common = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    model = load(checkpoint.path, precision="onnx-fp32", threads=1)
    for beams in (1, 3):
        tokens = stock.generate(**inputs, num_beams=beams, **common)[:, inputs["input_ids"].shape[1] :]
        expected = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        assert model.generate(prompts, max_new_tokens=24, num_beams=beams) == expected


@pytest.fixture
def cached_smollm(cached: object) -> Path:
    path: Path = cached("models/smollm2-135m-instruct-dequantised-q4_1")  # type: ignore[operator]
    return path
