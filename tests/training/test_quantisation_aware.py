"""Quantisation-aware training: nothing of it stays on the module, and what it teaches survives rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.errors import StageError
from compressor.methods.losses import logit_kl
from compressor.training.metrics import TOKEN_PERPLEXITY
from compressor.training.objective import PROJECTIONS, label_loss
from compressor.training.quantisation_aware import Scheme, fake_quantised, input_limits
from compressor.training.rows import Batch, Row, collate
from compressor.training.train import TrainSettings, train
from compressor.training.trainer import Loss

Rows = Callable[[str, int], list[Row]]
SCHEMES: tuple[Scheme, ...] = ("w8a8-dynamic", "w8a8-static", "w8", "w4")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_names_and_sharing_stay_and_every_weight_gets_a_gradient(
    tiny_gpt2: PreTrainedModel, sotu_rows: Rows, scheme: Scheme
) -> None:
    rows = sotu_rows("train", 4)
    batch = collate(rows, pad_id=0)
    before = {name: tensor.clone() for name, tensor in tiny_gpt2.state_dict().items()}
    limits = input_limits(tiny_gpt2, [collate([row], pad_id=0) for row in rows])
    assert set(limits) >= {"lm_head", "transformer.h.0.attn.c_attn", "transformer.h.3.mlp.c_proj"}
    loss = label_loss("next_token")
    plain = loss(tiny_gpt2.eval(), batch)[0]
    with fake_quantised(tiny_gpt2, scheme, limits):
        assert list(tiny_gpt2.state_dict()) == list(before)
        assert tiny_gpt2.lm_head.weight is tiny_gpt2.transformer.wte.weight
        rounded = loss(tiny_gpt2, batch)[0]
        rounded.backward()
    assert rounded != plain
    assert all(weight.grad is not None and weight.grad.any() for weight in tiny_gpt2.parameters())
    assert loss(tiny_gpt2, batch)[0] == plain
    assert not any("forward" in vars(module) for module in tiny_gpt2.modules())
    for name, tensor in tiny_gpt2.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_module_is_itself_again_after_an_error(tiny_bert: PreTrainedModel) -> None:
    with pytest.raises(ZeroDivisionError), fake_quantised(tiny_bert, "w8"):
        raise ZeroDivisionError
    assert not any("forward" in vars(module) for module in tiny_bert.modules())


def test_projections_of_a_distillation_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(32, 4))
    model.add_module(PROJECTIONS, nn.ModuleDict({"hidden": nn.ModuleList([nn.Linear(4, 8, bias=False)])}))
    vectors = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    projection = model.get_submodule(f"{PROJECTIONS}.hidden.0")
    plain = projection(vectors)
    with fake_quantised(model, "w4"):
        assert torch.equal(projection(vectors), plain)
        assert "forward" in vars(model[0])


def test_a_module_without_products_is_refused() -> None:
    text = "Embedding has no linear map, so quantisation-aware training would change nothing"
    with pytest.raises(StageError, match=text), fake_quantised(nn.Embedding(3, 4), "w8"):
        pass


def test_ranges_span_all_batches_and_products_that_nothing_reaches_stay_as_they_are() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            out: Tensor = self.used(input_ids)
            return out

    model, mask = Two().train(), torch.ones(1, 2)
    batches = [
        {"input_ids": torch.tensor([[-1.0, 2.0]]), "attention_mask": mask},
        {"input_ids": torch.tensor([[0.5, 3.0]]), "attention_mask": mask},
    ]
    limits = input_limits(model, batches)
    assert limits == {"used": (-1.0, 3.0)} and model.training
    with fake_quantised(model, "w8a8-static", limits):
        assert "forward" not in vars(model.unused)


def test_a_training_cut_short_goes_on_to_the_same_weights(
    tiny_gpt2: PreTrainedModel, sotu_rows: Rows, tmp_path: Path
) -> None:
    """Checkpoints hold the plain weights, and the ranges are those of the weights that training began with."""
    rows, plain = sotu_rows("train", 24), label_loss("next_token")
    start = copy.deepcopy(tiny_gpt2)
    limits = input_limits(start, [collate([row], pad_id=0) for row in rows[:4]])

    def fit(model: PreTrainedModel, workdir: Path, loss: Loss) -> None:
        settings = TrainSettings(epochs=2, learning_rate=1e-3, batch_size=8, seed=3)
        with fake_quantised(model, "w8a8-static", limits):
            train(
                model, train_rows=rows, validation_rows=sotu_rows("validation", 4), loss=loss, validation_loss=plain,
                metric=TOKEN_PERPLEXITY, settings=settings, pad_id=0, stage="rounded", emit=lambda event: None,
                workdir=workdir,
            )  # fmt: skip

    def cut_short(model: nn.Module, batch: Any) -> Any:
        if list(tmp_path.glob("work/trainer/checkpoint-3/trainer_state.json")):
            raise KeyboardInterrupt
        return plain(model, batch)

    straight, resumed = copy.deepcopy(start), copy.deepcopy(start)
    fit(straight, tmp_path / "straight", plain)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_gpt2, tmp_path / "work", cut_short)
    fit(resumed, tmp_path / "work", plain)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])
        assert not torch.equal(tensor, start.state_dict()[name])


def test_what_rounding_to_four_bits_costs_is_learned_back(tiny_gpt2: PreTrainedModel, sotu_rows: Rows) -> None:
    """A trained model against itself in fp32, on unseen text; as many plain steps beside it win nothing back."""
    for module in tiny_gpt2.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batches = [collate(sotu_rows("train", 64)[at : at + 16], pad_id=0) for at in range(0, 64, 16)]
    unseen, labels = collate(sotu_rows("validation", 32), pad_id=0), label_loss("next_token")
    learn(tiny_gpt2, batches, 100, 1e-2, lambda model, batch: labels(model, batch)[0])
    with torch.no_grad():
        answers = {id(batch): logits(tiny_gpt2, batch) for batch in (*batches, unseen)}

    def divergence(model: nn.Module, batch: Batch) -> Tensor:
        said, taught = logits(model, batch), answers[id(batch)]
        return logit_kl(said, taught, 1.0, batch["attention_mask"])

    def cost_of_rounding(model: PreTrainedModel) -> float:
        with torch.no_grad(), fake_quantised(model, "w4"):
            return float(divergence(model, unseen))

    plain, aware = copy.deepcopy(tiny_gpt2), copy.deepcopy(tiny_gpt2)
    learn(plain, batches, 24, 3e-4, divergence)
    with fake_quantised(aware, "w4"):
        learn(aware, batches, 24, 3e-4, divergence)
    assert cost_of_rounding(aware) < 0.75 * min(cost_of_rounding(tiny_gpt2), cost_of_rounding(plain))


def learn(
    model: nn.Module, batches: list[Batch], n_steps: int, rate: float, loss: Callable[[nn.Module, Batch], Tensor]
) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for step in range(n_steps):
        loss(model, batches[step % len(batches)]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()


def logits(model: nn.Module, batch: Batch) -> Tensor:
    found: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return found
