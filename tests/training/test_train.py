"""Training: it learns, it is deterministic, it resumes to the same weights, and it stops when the loss is no number."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from compressor.errors import StageError
from compressor.schema.events import Event, Note, Progress
from compressor.training.metrics import ACCURACY, TOKEN_PERPLEXITY
from compressor.training.objective import label_loss
from compressor.training.rows import Row
from compressor.training.train import TrainResult, TrainSettings, n_steps, train
from compressor.training.trainer import LengthGroupedOrder, Loss

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
    assert {event.total for event in steps} == {n_steps(45, settings)} == {result.n_steps}
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


@pytest.mark.parametrize("every", [None, 4])
def test_a_resumed_training_ends_in_the_same_weights(
    every: int | None, tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path
) -> None:
    settings = TrainSettings(**{**vars(SETTINGS), "evaluate_every_steps": every})
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
    expected = 6 if every is None else 4
    assert result.resumed_at == expected
    assert Note("teacher", f"resumed after step {expected}") in events
    assert equal_weights(tiny_bert, resumed)
    assert result.after == straight.after
    assert [point.get("loss") for point in result.history] == [point.get("loss") for point in straight.history]


def test_gradient_accumulation_is_the_mean_over_the_larger_batch(
    tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path
) -> None:
    for module in tiny_bert.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
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


def test_without_validation_the_last_state_is_kept(tiny_bert: PreTrainedModel, era: Rows, tmp_path: Path) -> None:
    result = fit(tiny_bert, era, tmp_path, validated=False)
    assert (result.metric, result.before, result.after) == (None, None, None)
    assert result.n_steps == n_steps(45, SETTINGS) == 12


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


def test_the_order_of_rows_depends_on_seed_and_epoch_alone() -> None:
    order = LengthGroupedOrder([3, 9, 1, 5, 7, 2, 8, 4, 6, 10], group_rows=2, seed=1)
    torch.manual_seed(0)
    first = list(order)
    torch.manual_seed(99)
    assert list(order) == first
    assert sorted(first) == list(range(10))
    order.set_epoch(1)
    assert list(order) != first
