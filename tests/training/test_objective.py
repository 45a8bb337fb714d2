"""Losses on batches: worked out by hand, weighted, masked and mapped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from compressor.errors import UserError
from compressor.training.objective import (
    PROJECTIONS,
    HiddenTerm,
    LogitTerm,
    add_projections,
    check_layer_map,
    cross_entropy,
    distillation_loss,
    label_loss,
    remove_projections,
    spread_layers,
)
from compressor.training.rows import Batch, Row, collate
from compressor.training.teacher import TeacherOutputs

Rows = Callable[[str, int], list[Row]]


class Fixed(nn.Module):
    """Answers with fixed logits and hidden states."""

    def __init__(self, logits: Tensor, hidden: list[Tensor]) -> None:
        super().__init__()
        self.config = SimpleNamespace(use_cache=False)
        self.logits, self.hidden = logits, hidden

    def forward(self, output_hidden_states: bool, **inputs: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits, hidden_states=self.hidden)


BATCH: Batch = {
    "input_ids": torch.zeros(2, 2, dtype=torch.long),
    "attention_mask": torch.tensor([[1, 1], [1, 0]]),
    "labels": torch.tensor([0, 1]),
    "index": torch.tensor([0, 1]),
}


def test_parts_are_summed_by_weight() -> None:
    student = Fixed(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), [torch.zeros(2, 2, 3), torch.ones(2, 2, 3)])
    taught = TeacherOutputs(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), {5: torch.full((2, 2, 3), 3.0)})
    loss = distillation_loss(
        lambda batch: taught,
        label_weight=0.1,
        logits=LogitTerm(0.9, "forward_kl", 2.0),
        hidden=HiddenTerm(0.5, "mse", (5,)),
        is_decoder=False,
    )
    total, parts, _ = loss(student, BATCH)
    p = torch.softmax(taught.logits / 2, -1)
    kl = (p * (p.log() - torch.log_softmax(student.logits / 2, -1))).sum(-1).mean() * 4
    assert parts["logits"].item() == pytest.approx(kl.item())
    assert parts["hidden"].item() == pytest.approx(4.0)  # (3 - 1)^2 on each real token
    assert parts["labels"].item() == pytest.approx(functional.cross_entropy(student.logits, BATCH["labels"]).item())
    assert total.item() == pytest.approx(0.1 * parts["labels"].item() + 0.9 * kl.item() + 0.5 * 4.0)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_a_student_that_agrees_with_its_teacher_has_no_loss(kind: str) -> None:
    logits = torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    term = LogitTerm(1.0, kind, 2.0)  # type: ignore[arg-type]
    loss = distillation_loss(
        lambda batch: TeacherOutputs(logits, {}), label_weight=0.0, logits=term, hidden=None, is_decoder=False
    )
    total, parts, _ = loss(Fixed(logits.clone(), []), BATCH)
    assert total.item() == pytest.approx(0.0, abs=1e-6)
    assert set(parts) == {"logits"}


def test_padding_does_not_change_a_language_models_distillation() -> None:
    torch.manual_seed(0)
    student, taught = torch.randn(2, 2, 5), torch.randn(2, 2, 5)
    term = LogitTerm(1.0, "forward_kl", 1.0)

    def total(logits: Tensor) -> float:
        loss = distillation_loss(
            lambda batch: TeacherOutputs(taught, {}), label_weight=0.0, logits=term, hidden=None, is_decoder=True
        )
        return float(loss(Fixed(logits, []), BATCH)[0])

    changed = student.clone()
    changed[1, 1] = 50.0  # the padded position
    assert total(changed) == pytest.approx(total(student))


def test_next_token_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0.0], [5.0, 0.0], [9.0, 9.0]]])
    labels = torch.tensor([[1, 0, -100]])
    assert cross_entropy(logits, labels, is_decoder=True).item() == pytest.approx(torch.log(torch.tensor(2.0)).item())


def test_label_loss_is_the_models_own(tiny_bert: PreTrainedModel, era: Rows) -> None:
    batch = collate(era("train", 6), pad_id=0)
    tiny_bert.eval()
    ours, _, _ = label_loss(is_decoder=False)(tiny_bert, batch)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids", "labels")}
    torch.testing.assert_close(ours, tiny_bert(**inputs).loss)


def test_label_loss_of_a_decoder_is_the_models_own(tiny_gpt2: PreTrainedModel, sotu_rows: Rows) -> None:
    batch = collate([*sotu_rows("train", 3), {"input_ids": [3, 4], "labels": [3, 4], "index": 3}], pad_id=0)
    tiny_gpt2.eval()
    ours, _, _ = label_loss(is_decoder=True)(tiny_gpt2, batch)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    torch.testing.assert_close(ours, tiny_gpt2(**inputs).loss)


def test_layers_spread_as_the_papers_have_them() -> None:
    assert spread_layers(3, 6) == (1, 3, 5)
    assert spread_layers(4, 12) == (2, 5, 8, 11)


@given(n_student=st.integers(1, 24), extra=st.integers(0, 24))
def test_spread_layers_rise_and_end_at_the_last(n_student: int, extra: int) -> None:
    layers = spread_layers(n_student, n_student + extra)
    assert list(layers) == sorted(set(layers))
    assert layers[-1] == n_student + extra - 1 and layers[0] >= 0


def test_a_layer_map_out_of_range_names_the_number_of_layers() -> None:
    with pytest.raises(UserError, match=r"layer_map \[1, 6\] leaves the teacher, which has 6 layers\n.*from 0 to 5"):
        check_layer_map((1, 6), 2, 6)


def test_a_layer_map_of_another_length_is_refused() -> None:
    with pytest.raises(UserError, match="names 2 layers, but the student has 3"):
        check_layer_map((1, 5), 3, 6)


def test_projections_hang_on_the_student_only_while_it_trains(tiny_bert: PreTrainedModel, tmp_path: Path) -> None:
    names = set(tiny_bert.state_dict())
    add_projections(tiny_bert, 4, 32, 32)
    assert set(tiny_bert.state_dict()) == names
    add_projections(tiny_bert, 4, 32, 48)
    assert getattr(tiny_bert, PROJECTIONS)[0].weight.shape == (48, 32)
    remove_projections(tiny_bert)
    assert set(tiny_bert.state_dict()) == names
