"""The laws of the waist, for torch and ONNX Runtime alike, dense and pruned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from compressor.checkpoints.store import Checkpoint
from compressor.data.tokenize import Encoded, load_tokenizer, pad
from compressor.errors import CheckpointError, UnsupportedError, UserError
from compressor.runtime.generate import generate, steps
from compressor.runtime.onnx_runner import OnnxDecoderRunner, session_options
from compressor.runtime.runners import Array, DecoderRunner, Runner, open_runner, position_ids
from compressor.runtime.torch_generation import generate_with_transformers
from compressor.runtime.torch_models import load_module

DECODERS = ("gpt2", "llama", "pruned_llama")
VARIANTS = ("torch-fp32", "onnx-fp32")
N_NEW = 12


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Checkpoint)
    return found


def open_decoder(checkpoint: Checkpoint, variant: str) -> DecoderRunner:
    runner = open_runner(checkpoint, variant, threads=1)
    assert isinstance(runner, DecoderRunner)
    return runner


@pytest.fixture
def prompts(sotu_text: dict[str, Path]) -> list[str]:
    words = sotu_text["test"].read_text().split()
    return [" ".join(words[:4]), " ".join(words[10:25]), " ".join(words[40:49])]


def left_padded(checkpoint: Checkpoint, prompts: list[str]) -> dict[str, Array]:
    tokenizer = load_tokenizer(checkpoint.path)
    rows: list[Encoded] = [dict(tokenizer(prompt)) for prompt in prompts]
    assert isinstance(tokenizer.pad_token_id, int)
    return pad(rows, tokenizer.pad_token_id, side="left")


def test_torch_and_onnx_classify_alike(bert: Checkpoint, prompts: list[str]) -> None:
    batch = dict(load_tokenizer(bert.path)(prompts, padding=True, return_tensors="np"))
    logits = [open_runner(bert, variant, threads=1).forward(batch)["logits"] for variant in VARIANTS]
    assert logits[0].shape == (3, 3)
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)


@pytest.mark.parametrize("checkpoint", DECODERS, indirect=True)
def test_onnx_writes_torch_s_greedy_tokens(checkpoint: Checkpoint, prompts: list[str]) -> None:
    """Against transformers' own `generate`, in a batch of unequal prompts and one by one."""
    batch = left_padded(checkpoint, prompts)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert mask.min() == 0
    expected = load_module(checkpoint).generate(
        input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), max_new_tokens=N_NEW, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    expected = expected[:, ids.shape[1] :].numpy()
    for variant in VARIANTS:
        runner = open_decoder(checkpoint, variant)
        np.testing.assert_array_equal(generate(runner, ids, mask, max_new_tokens=N_NEW), expected)
        alone = [
            generate(runner, row[real == 1][None], real[real == 1][None], max_new_tokens=N_NEW)
            for row, real in zip(ids, mask, strict=True)
        ]
        np.testing.assert_array_equal(np.concatenate(alone), expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("checkpoint", DECODERS, indirect=True)
def test_the_cached_path_gives_the_uncached_logits(checkpoint: Checkpoint, variant: str, prompts: list[str]) -> None:
    runner = open_decoder(checkpoint, variant)
    ids = load_tokenizer(checkpoint.path)(prompts[1], return_tensors="np")["input_ids"]
    whole = runner.forward({"input_ids": ids, "attention_mask": np.ones_like(ids)})["logits"]
    logits, state = runner.prefill(ids[:, :5], np.ones_like(ids[:, :5]))
    np.testing.assert_allclose(logits, whole[:, 4], atol=1e-4)
    for step in range(5, 9):  # one by one
        logits, state = runner.decode(ids[:, step : step + 1], state)
        np.testing.assert_allclose(logits, whole[:, step], atol=1e-4)
    logits, _ = runner.decode(ids[:, 9:13], state)  # and a chunk
    np.testing.assert_allclose(logits, whole[:, 12], atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("checkpoint", ["llama", "pruned_llama"], indirect=True)
def test_a_state_can_be_used_again_and_reordered(checkpoint: Checkpoint, variant: str, prompts: list[str]) -> None:
    runner = open_decoder(checkpoint, variant)
    batch = left_padded(checkpoint, prompts)
    _, state = runner.prefill(batch["input_ids"], batch["attention_mask"])
    tokens = np.array([[5], [6], [7]])
    first, later = runner.decode(tokens, state)
    runner.decode(tokens, later)
    again, _ = runner.decode(tokens, state)
    np.testing.assert_array_equal(first, again)
    index = np.array([2, 0, 0, 1])
    moved, _ = runner.decode(tokens[index], runner.reorder(state, index))
    np.testing.assert_allclose(moved, first[index], atol=1e-5)
    np.testing.assert_array_equal(runner.decode(tokens, state)[0], first)


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 1}])
@pytest.mark.parametrize("checkpoint", ["gpt2", "pruned_llama"], indirect=True)
def test_transformers_beams_run_over_the_onnx_cache(
    checkpoint: Checkpoint, settings: dict[str, int], prompts: list[str]
) -> None:
    batch = left_padded(checkpoint, prompts)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    module = load_module(checkpoint)
    common = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **settings}
    expected = module.generate(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), **common)
    runner = open_decoder(checkpoint, "onnx-fp32")
    found = generate_with_transformers(runner, ids, mask, config=module.config, settings=common)
    np.testing.assert_array_equal(found, expected[:, ids.shape[1] :].numpy())


def test_sampling_follows_its_seed_and_leaves_torch_s_alone(llama: Checkpoint, prompts: list[str]) -> None:
    batch = left_padded(llama, prompts)
    runner, config = open_decoder(llama, "onnx-fp32"), load_module(llama).config
    settings = {"max_new_tokens": 8, "do_sample": True, "top_k": 0, "eos_token_id": None, "pad_token_id": 0}

    def draw(seed: int) -> list[list[int]]:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        tokens = generate_with_transformers(runner, ids, mask, config=config, settings=settings, seed=seed)
        return [list(row) for row in tokens]

    before = torch.get_rng_state()
    assert draw(1) == draw(1) != draw(2)
    assert torch.equal(before, torch.get_rng_state())


def test_rows_end_at_their_own_end_token(llama: Checkpoint, prompts: list[str]) -> None:
    batch = left_padded(llama, prompts)
    runner, ids, mask = open_decoder(llama, "onnx-fp32"), batch["input_ids"], batch["attention_mask"]
    free = generate(runner, ids, mask, max_new_tokens=N_NEW)
    stop = int(free[0, 3])
    ended = generate(runner, ids, mask, max_new_tokens=N_NEW, eos_ids=[stop], pad_id=511)
    for row, all_of_it in zip(ended.tolist(), free.tolist(), strict=True):
        end = all_of_it.index(stop) + 1 if stop in all_of_it else len(row)
        assert row[:end] == all_of_it[:end] and set(row[end:]) <= {511}
    alone = generate(runner, ids[:1], mask[:1], max_new_tokens=N_NEW, eos_ids=[stop])
    assert alone.shape[1] == free[0].tolist().index(stop) + 1


def test_prompts_padded_on_the_right_are_refused(llama: Checkpoint) -> None:
    with pytest.raises(UserError, match="each prompt needs a token at its end\n  -> pad on the left"):
        next(steps(open_decoder(llama, "onnx-fp32"), np.ones((1, 2), int), np.array([[1, 0]]), max_new_tokens=1))


def test_positions_count_real_tokens_only() -> None:
    assert position_ids(np.array([[0, 0, 1, 1], [1, 1, 1, 1]])).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


def test_each_layer_s_cache_has_its_own_number_of_heads(pruned_llama: Checkpoint) -> None:
    runner = open_decoder(pruned_llama, "onnx-fp32")
    assert isinstance(runner, OnnxDecoderRunner)
    heads = [shape[1] for name, (shape, _) in runner.past.items() if name.endswith(".key")]
    assert heads == [1, 2, 1]


def test_an_encoder_is_no_decoder(bert: Checkpoint) -> None:
    runner = open_runner(bert, "onnx-fp32", threads=1)
    assert isinstance(runner, Runner) and not isinstance(runner, DecoderRunner)


def test_an_input_that_is_not_given(bert: Checkpoint) -> None:
    with pytest.raises(UserError, match="the graph wants the input 'attention_mask'; given: input_ids"):
        open_runner(bert, "onnx-fp32", threads=1).forward({"input_ids": np.ones((1, 2), np.int64)})


def test_token_types_that_no_tokenizer_gives_are_zeros(bert: Checkpoint) -> None:
    runner = open_runner(bert, "onnx-fp32", threads=1)
    ids = {"input_ids": np.array([[2, 5, 3]]), "attention_mask": np.ones((1, 3), np.int64)}
    given = runner.forward({**ids, "token_type_ids": np.zeros((1, 3), np.int64)})
    np.testing.assert_array_equal(runner.forward(ids)["logits"], given["logits"])


def test_an_unknown_provider_names_those_that_are_there(bert: Checkpoint) -> None:
    with pytest.raises(UnsupportedError) as caught:
        open_runner(bert, "onnx-fp32", threads=1, provider="TensorrtExecutionProvider")
    assert str(caught.value) == (
        "target.provider: ONNX Runtime has no TensorrtExecutionProvider here; it has: "
        f"{', '.join(ort.get_available_providers())}\n"
        "  -> choose one of these, or install the onnxruntime package that brings it"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_torch_without_a_gpu(bert: Checkpoint) -> None:
    with pytest.raises(UnsupportedError, match=r"target\.device: torch sees no CUDA device here\n  -> use device: cpu"):
        open_runner(bert, "torch-fp32", threads=1, provider="CUDAExecutionProvider")


def test_settings_reach_the_session() -> None:
    settings = {
        "allow_spinning": False, "graph_optimisation": "basic", "memory_arena": False, "memory_pattern": False,
        "x64_quant_precision": True,
    }  # fmt: skip
    options = session_options(3, settings)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.x64quantprecision") == "1"
    assert not options.enable_cpu_mem_arena and not options.enable_mem_pattern


@pytest.mark.parametrize("checkpoint", ["bert", "llama"], indirect=True)
def test_io_binding_changes_no_answer(checkpoint: Checkpoint, prompts: list[str]) -> None:
    batch = left_padded(checkpoint, prompts)
    plain, bound = (
        open_runner(checkpoint, "onnx-fp32", threads=1, settings={"io_binding": flag}) for flag in (False, True)
    )
    np.testing.assert_array_equal(plain.forward(batch)["logits"], bound.forward(batch)["logits"])
    if isinstance(plain, DecoderRunner) and isinstance(bound, DecoderRunner):
        ids, mask = batch["input_ids"], batch["attention_mask"]
        np.testing.assert_array_equal(
            generate(plain, ids, mask, max_new_tokens=4), generate(bound, ids, mask, max_new_tokens=4)
        )


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["bert", "llama"], indirect=True)
def test_torch_compile_gives_eager_answers(checkpoint: Checkpoint, prompts: list[str]) -> None:
    """One compiled module for batches and lengths that differ, prefill and decode included."""
    eager, compiled = (
        open_runner(checkpoint, "torch-fp32", threads=1, settings={"compile": flag}) for flag in (False, True)
    )
    for texts in (prompts, prompts[:1]):
        batch = left_padded(checkpoint, texts)
        np.testing.assert_allclose(eager.forward(batch)["logits"], compiled.forward(batch)["logits"], atol=1e-5)
        if isinstance(eager, DecoderRunner) and isinstance(compiled, DecoderRunner):
            ids, mask = batch["input_ids"], batch["attention_mask"]
            np.testing.assert_array_equal(
                generate(eager, ids, mask, max_new_tokens=4), generate(compiled, ids, mask, max_new_tokens=4)
            )


def test_torch_has_settings_of_its_own(bert: Checkpoint) -> None:
    with pytest.raises(
        UserError, match="torch has no runtime setting 'memory_arena'; there are: compile\n  -> and for an"
    ):
        open_runner(bert, "torch-fp32", threads=1, settings={"memory_arena": False})


def test_settings_that_do_not_exist(bert: Checkpoint) -> None:
    with pytest.raises(
        UserError, match="ONNX Runtime has no runtime setting 'spin'; there are: allow_spinning, graph_opt"
    ):
        open_runner(bert, "onnx-fp32", settings={"spin": True})
    with pytest.raises(UserError, match="graph_optimisation is 'most'; it can be: none, basic, extended, all"):
        session_options(1, {"graph_optimisation": "most"})


def test_a_file_that_is_no_graph(bert: Checkpoint, tmp_path: Path) -> None:
    from compressor.runtime.onnx_runner import open_onnx

    (tmp_path / "a.onnx").write_bytes(b"no graph at all")
    with pytest.raises(CheckpointError, match=r"a\.onnx: ONNX Runtime cannot open it: .*\n  -> export the model again"):
        open_onnx(tmp_path / "a.onnx", is_decoder=False, threads=1, provider="CPUExecutionProvider", settings={})
