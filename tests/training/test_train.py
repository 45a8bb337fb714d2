"""Training: it learns, it is deterministic, it resumes to the same weights, and it stops when the loss is no number."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from compressor.errors import DataError, StageError
from compressor.schema.events import Event, Note, Progress
from compressor.training.batching import Batches, batch_sizes
from compressor.training.metrics import ACCURACY, TOKEN_PERPLEXITY
from compressor.training.objective import label_loss
from compressor.training.rows import Row
from compressor.training.train import TrainResult, TrainSettings, batches_of, n_drawn, n_steps, train
from compressor.training.trainer import Loss

Rows = Callable[[str, int], list[Row]]
SETTINGS = TrainSettings(epochs=2, learning_rate=1e-3, batch_size=8, seed=3, warmup_ratio=0.1, weight_decay=0.01)


def fit(
    model: nn.Module,
    era: Rows,
    workdir: Path,
    settings: TrainSettings = SETTINGS,
    *,
    loss: Loss | None = None,
    events: list[Event] | None = None,
    validated: bool = True,
) -> TrainResult:
    plain = label_loss("class")
    return train(
        model,
        train_rows=era("train", 45),
        validation_rows=era("validation", 30) if validated else None,
        loss=loss or plain,
        validation_loss=plain,
        metric=ACCURACY,
        settings=settings,
        pad_id=0,
        stage="teacher",
        emit=events.append if events is not None else lambda event: None,
        workdir=workdir,
    )


def equal_weights(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_training_lowers_the_loss_and_tells_of_it(tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path) -> None:
    events: list[Event] = []
    settings = TrainSettings(epochs=40, learning_rate=1e-3, batch_size=8, seed=0)
    result = fit(tiny_bert, era, tmp_path, settings, events=events)
    curve = [point["loss"] for point in result.history if "loss" in point]
    assert sum(curve[-20:]) < 0.8 * sum(curve[:20])
    assert result.metric == "accuracy"
    assert result.before is not None and result.after is not None
    validated = [point["validation_accuracy"] for point in result.history if "validation_accuracy" in point]
    assert result.after == max(validated)
    steps = [event for event in events if isinstance(event, Progress) and event.task == "train"]
    assert [event.done for event in steps] == list(range(1, result.n_steps + 1))
    assert {event.total for event in steps} == {result.n_steps} == {40 * 6}
    assert all(event.values["tokens_per_s"] > 0 for event in steps)
    assert any(isinstance(event, Progress) and event.task == "validate" for event in events)


def test_the_best_validated_state_is_kept(tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path) -> None:
    settings = TrainSettings(epochs=6, learning_rate=3e-3, batch_size=8, seed=0, evaluate_every_steps=3)
    result = fit(tiny_bert, era, tmp_path, settings)
    rows = era("validation", 30)
    n_right = 0
    for row in rows:
        inputs = {name: torch.tensor([row[name]]) for name in ("input_ids", "token_type_ids")}
        with torch.no_grad():
            n_right += int(tiny_bert(**inputs).logits.argmax()) == row["labels"]
    assert result.after == pytest.approx(n_right / len(rows))


def test_two_runs_with_one_seed_end_in_the_same_weights(tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path) -> None:
    twin = copy.deepcopy(tiny_bert)
    first = fit(tiny_bert, era, tmp_path / "a")
    second = fit(twin, era, tmp_path / "b")
    assert equal_weights(tiny_bert, twin)
    assert [point.get("loss") for point in first.history] == [point.get("loss") for point in second.history]


def test_another_seed_ends_elsewhere(tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path) -> None:
    twin = copy.deepcopy(tiny_bert)
    fit(tiny_bert, era, tmp_path / "a")
    fit(twin, era, tmp_path / "b", TrainSettings(**{**vars(SETTINGS), "seed": 4}))
    assert not equal_weights(tiny_bert, twin)


class Killed(Exception):
    """Stands for a crash in the middle of a training."""


def killed_after(n_steps_done: int) -> Loss:
    plain, calls = label_loss("class"), 0

    def loss(model: nn.Module, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > n_steps_done:
            raise Killed
        return plain(model, batch)

    return loss


@pytest.mark.parametrize(("every", "saved"), [(None, None), (4, None), (None, 7)])
def test_a_resumed_training_ends_in_the_same_weights(
    every: int | None, saved: int | None, tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path
) -> None:
    settings = TrainSettings(**{**vars(SETTINGS), "evaluate_every_steps": every, "save_every_steps": saved})
    start = copy.deepcopy(tiny_bert)
    straight = fit(tiny_bert, era, tmp_path / "straight", settings)
    crashed, resumed = copy.deepcopy(start), copy.deepcopy(start)
    with pytest.raises(Killed):
        fit(crashed, era, tmp_path / "work", settings, loss=killed_after(7))
    half_written = tmp_path / "work" / "trainer" / "checkpoint-99"
    half_written.mkdir()
    (half_written / "model.safetensors").write_bytes(b"half")
    events: list[Event] = []
    result = fit(resumed, era, tmp_path / "work", settings, events=events)
    expected = saved or 6  # the end of the first epoch
    assert result.resumed_at == expected
    assert Note("teacher", f"resumed after step {expected}") in events
    assert equal_weights(tiny_bert, resumed)
    assert result.after == straight.after
    assert [point.get("loss") for point in result.history] == [point.get("loss") for point in straight.history]


def without_dropout(model: PreTrainedModel) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def test_gradient_accumulation_is_the_mean_over_the_larger_batch(
    tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path
) -> None:
    without_dropout(tiny_bert)
    twin = copy.deepcopy(tiny_bert)
    whole = TrainSettings(epochs=1, learning_rate=1e-3, batch_size=8, seed=0, max_steps=3)
    halves = TrainSettings(**{**vars(whole), "batch_size": 4, "gradient_accumulation": 2})
    first = fit(tiny_bert, era, tmp_path / "a", whole, validated=False)
    second = fit(twin, era, tmp_path / "b", halves, validated=False)
    assert [p["loss"] for p in first.history] == pytest.approx([p["loss"] for p in second.history], rel=1e-4)


def test_a_loss_that_is_no_number_names_the_step_and_the_advice(
    tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path
) -> None:
    settings = TrainSettings(epochs=1, learning_rate=1e30, batch_size=8, seed=0)
    with pytest.raises(
        StageError, match=r"the loss became (nan|inf) in training step 2 \(epoch 0\.\d\d, rows \d+"
    ) as caught:
        fit(tiny_bert, era, tmp_path, settings)
    assert "lower learning_rate (now 1e+30)" in str(caught.value)


def test_a_loss_that_is_no_number_leaves_the_last_good_state(
    tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path
) -> None:
    plain, calls = label_loss("class"), 0

    def loss(model: nn.Module, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        value, parts, answer = plain(model, batch)
        return (value * float("nan") if calls == 6 else value), parts, answer

    settings = TrainSettings(**{**vars(SETTINGS), "save_every_steps": 2})
    with pytest.raises(StageError, match=r"(?s)nan in training step 6 .*the state of step 4 is kept in .*-4"):
        fit(tiny_bert, era, tmp_path, settings, loss=loss)
    kept = load_file(tmp_path / "trainer" / "checkpoint-4" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


def test_without_validation_the_last_state_is_kept(tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path) -> None:
    result = fit(tiny_bert, era, tmp_path, validated=False)
    assert (result.metric, result.before, result.after) == (None, None, None)
    batches = batches_of(era("train", 45), SETTINGS)
    assert result.n_steps == n_steps(batches, SETTINGS) == 12
    assert n_drawn(batches, SETTINGS) == 90
    assert n_drawn(batches, TrainSettings(**{**vars(SETTINGS), "max_steps": 5})) == round(45 * 5 / 6)


def test_language_models_are_judged_by_exact_token_perplexity(
    tiny_gpt2: PreTrainedModel, sotu_rows: Rows, tmp_path: Path
) -> None:
    rows = sotu_rows("train", 20)
    validation = [*sotu_rows("validation", 5), {"input_ids": [3, 4, 5], "labels": [3, 4, 5], "index": 5}]
    loss = label_loss("next_token")
    result = train(
        tiny_gpt2,
        train_rows=rows,
        validation_rows=validation,
        loss=loss,
        validation_loss=loss,
        metric=TOKEN_PERPLEXITY,
        settings=TrainSettings(epochs=3, learning_rate=1e-2, batch_size=4, seed=0),
        pad_id=0,
        stage="teacher",
        emit=lambda event: None,
        workdir=tmp_path,
    )
    nll, n_tokens = 0.0, 0
    for row in validation:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            log_p = tiny_gpt2(ids).logits[0, :-1].log_softmax(-1)
        nll -= float(log_p.gather(1, ids[0, 1:, None]).sum())
        n_tokens += ids.shape[1] - 1
    assert result.before is not None and result.after is not None
    assert result.after < result.before
    assert result.after == pytest.approx(float(torch.tensor(nll / n_tokens).exp()), rel=1e-4)


LENGTHS = [3, 9, 1, 5, 7, 2, 8, 4, 6, 10]


@pytest.mark.parametrize("tokens", [None, 20])
def test_the_order_of_rows_depends_on_seed_and_epoch_alone(tokens: int | None) -> None:
    batches = Batches(LENGTHS, batch_rows=2, tokens_per_batch=tokens, seed=1)
    torch.manual_seed(0)
    first = list(batches)
    torch.manual_seed(99)
    assert list(batches) == first
    assert len(first) == len(batches)
    assert sorted(row for batch in first for row in batch) == list(range(10))
    batches.set_epoch(1)
    assert list(batches) != first


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60), budget=st.integers(30, 200))
def test_no_batch_has_more_tokens_than_it_may_and_every_epoch_as_many_batches(lengths: list[int], budget: int) -> None:
    batches = Batches(lengths, batch_rows=8, tokens_per_batch=budget)
    for epoch in range(3):
        batches.set_epoch(epoch)
        made = list(batches)
        assert len(made) == len(batches)
        assert sorted(row for batch in made for row in batch) == list(range(len(lengths)))
        assert all(len(batch) * max(lengths[row] for row in batch) <= budget for batch in made)


def test_batch_sizes_by_hand() -> None:
    assert batch_sizes([2, 5, 5, 1, 1, 1, 1], 10) == [2, 5]
    with pytest.raises(DataError, match=r"a training row has 12 tokens, and a batch may have 10\n.*tokens_per_batch"):
        batch_sizes([12, 3], 10)


def test_epochs_take_the_variants_in_turn() -> None:
    batches = Batches([1] * 12, batch_rows=4, n_variants=3)
    seen = []
    for epoch in range(4):
        batches.set_epoch(epoch)
        seen.append(sorted(row for batch in batches for row in batch))
    assert len(batches) == 1
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [0, 1, 2, 3]]


def test_processes_share_out_every_batch() -> None:
    whole = list(Batches(LENGTHS, batch_rows=4, seed=2))
    shares = [list(Batches(LENGTHS, batch_rows=4, seed=2, process=number, n_processes=2)) for number in range(2)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert sorted(batch) == sorted([*first, *second])
    lonely = [list(Batches([5], batch_rows=4, process=number, n_processes=2)) for number in range(2)]
    assert lonely == [[[0]], [[0]]]


def test_a_budget_of_tokens_trains(tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path) -> None:
    settings = TrainSettings(**{**vars(SETTINGS), "tokens_per_batch": 96, "gradient_accumulation": 2})
    result = fit(tiny_bert, era, tmp_path, settings)
    assert result.n_steps == 2 * math.ceil(len(batches_of(era("train", 45), settings)) / 2)


def test_checkpointed_gradients_train_to_the_same_weights(
    tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path
) -> None:
    twin = copy.deepcopy(tiny_bert)
    fit(tiny_bert, era, tmp_path / "a")
    fit(twin, era, tmp_path / "b", TrainSettings(**{**vars(SETTINGS), "gradient_checkpointing": True}))
    for name, tensor in tiny_bert.state_dict().items():
        torch.testing.assert_close(tensor, twin.state_dict()[name], msg=name)


@pytest.mark.slow
def test_a_compiled_training_ends_where_the_plain_one_does(
    tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path
) -> None:
    without_dropout(tiny_bert)
    twin = copy.deepcopy(tiny_bert)
    short = TrainSettings(epochs=1, learning_rate=1e-3, batch_size=8, seed=0, max_steps=3)
    first = fit(tiny_bert, era, tmp_path / "a", short, validated=False)
    second = fit(twin, era, tmp_path / "b", TrainSettings(**{**vars(short), "compile": True}), validated=False)
    assert [p["loss"] for p in first.history] == pytest.approx([p["loss"] for p in second.history], rel=1e-3)
