"""Losses on batches: worked out by hand, weighted, masked and mapped."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from compressor.errors import UserError
from compressor.methods.losses import coarse_logits
from compressor.training.answers import label_error
from compressor.training.inside import Inside, Place
from compressor.training.objective import (
    PROJECTIONS,
    LogitTerm,
    StateTerm,
    Term,
    add_projections,
    distillation_loss,
    label_loss,
    make_projections,
    pair_layers,
    relation_heads,
    remove_projections,
    spread_layers,
)
from compressor.training.rows import Batch, Row, collate
from compressor.training.teacher import TeacherOutputs
from compressor.training.trainer import Loss

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


def made(taught: TeacherOutputs, *terms: Term, student: nn.Module, kind: Any = "class", labels: float = 0.0) -> Loss:
    """A distillation from fixed answers; the student is looked at where the terms ask for it."""
    places = [Place(term.what, ours) for term in terms if isinstance(term, StateTerm) for ours, _ in term.layers]
    return distillation_loss(
        lambda batch: taught, inside=Inside(student, places), terms=terms, label_weight=labels, kind=kind
    )


def test_parts_are_summed_by_weight() -> None:
    student = Fixed(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), [torch.zeros(2, 2, 3), torch.ones(2, 2, 3)])
    taught = TeacherOutputs(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), {Place("hidden", 5): torch.full((2, 2, 3), 3.0)})
    terms = (LogitTerm(0.9, "forward_kl", 2.0), StateTerm(0.5, "mse", "hidden", ((0, 5),)))
    total, parts, _ = made(taught, *terms, student=student, labels=0.1)(student, BATCH)
    p = torch.softmax(taught.answer / 2, -1)
    kl = (p * (p.log() - torch.log_softmax(student.logits / 2, -1))).sum(-1).mean() * 4
    assert parts["logits"].item() == pytest.approx(kl.item())
    assert parts["hidden"].item() == pytest.approx(4.0)  # (3 - 1)^2 on each real token
    assert parts["labels"].item() == pytest.approx(functional.cross_entropy(student.logits, BATCH["labels"]).item())
    assert total.item() == pytest.approx(0.1 * parts["labels"].item() + 0.9 * kl.item() + 0.5 * 4.0)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"])
@pytest.mark.parametrize("task", ["class", "classes"])
def test_a_student_that_agrees_with_its_teacher_has_no_loss(kind: str, task: str) -> None:
    logits = torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    student = Fixed(logits.clone(), [])
    loss = made(TeacherOutputs(logits, {}), LogitTerm(1.0, kind, 2.0), student=student, kind=task)  # type: ignore[arg-type]
    total, parts, _ = loss(student, BATCH)
    assert total.item() == pytest.approx(0.0, abs=1e-6)
    assert set(parts) == {"logits"}


def test_padding_does_not_change_a_language_models_distillation() -> None:
    torch.manual_seed(0)
    student, taught = torch.randn(2, 2, 5), torch.randn(2, 2, 5)

    def total(logits: Tensor) -> float:
        fixed = Fixed(logits, [])
        loss = made(TeacherOutputs(taught, {}), LogitTerm(1.0, "forward_kl", 1.0), student=fixed, kind="next_token")
        return float(loss(fixed, BATCH)[0])

    changed = student.clone()
    changed[1, 1] = 50.0  # the padded position
    assert total(changed) == pytest.approx(total(student))


def test_several_labels_are_several_yes_and_no_by_hand() -> None:
    # one row, one class: teacher p = 3/4, student p = 1/2
    student = Fixed(torch.zeros(2, 1), [])
    taught = TeacherOutputs(torch.full((2, 1), float(torch.log(torch.tensor(3.0)))), {})
    total, _, _ = made(taught, LogitTerm(1.0, "forward_kl", 1.0), student=student, kind="classes")(student, BATCH)
    assert total.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_a_span_is_a_distribution_over_the_tokens_that_are_there() -> None:
    # second row: one real token, so nothing to choose; first: start 3/4 and 1/4 against 1/2 and 1/2, ends agree
    taught, student = torch.zeros(2, 2, 2), torch.zeros(2, 2, 2)
    taught[0, 0, 0] = math.log(3.0)
    taught[1, 1] = 40.0  # padding
    fixed = Fixed(student[..., 0], [])
    fixed.forward = lambda output_hidden_states, **inputs: SimpleNamespace(  # type: ignore[method-assign]
        start_logits=student[..., 0], end_logits=student[..., 1]
    )
    loss = made(TeacherOutputs(taught, {}), LogitTerm(1.0, "forward_kl", 1.0), student=fixed, kind="span")
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert loss(fixed, BATCH)[0].item() == pytest.approx(forward / 4)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_coarse_logits_give_the_loss_of_the_kept_classes_and_one_for_the_rest(temperature: float) -> None:
    torch.manual_seed(0)
    student, taught = torch.randn(2, 2, 5), torch.randn(2, 2, 5)
    classes = taught.topk(2).indices
    coarse = TeacherOutputs(coarse_logits(taught, classes, temperature), {}, classes)
    fixed = Fixed(student, [])
    term = LogitTerm(1.0, "forward_kl", temperature)
    value = made(coarse, term, student=fixed, kind="next_token")(fixed, BATCH)[0].item()
    expected = []
    for row, position in ((0, 0), (0, 1), (1, 0)):
        p, q = (torch.softmax(side[row, position] / temperature, -1) for side in (taught, student))
        kept = classes[row, position]
        p, q = (torch.cat([side[kept], 1 - side[kept].sum(0, keepdim=True)]) for side in (p, q))
        expected.append(float((p * (p / q).log()).sum()) * temperature**2)
    assert value == pytest.approx(sum(expected) / 3, rel=1e-4)


def test_next_token_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0.0], [5.0, 0.0], [9.0, 9.0]]])
    labels = torch.tensor([[1, 0, -100]])
    assert label_error(logits, labels, "next_token").item() == pytest.approx(torch.log(torch.tensor(2.0)).item())


def test_label_loss_is_the_models_own(tiny_bert: PreTrainedModel, era: Rows) -> None:
    batch = collate(era("train", 6), pad_id=0)
    tiny_bert.eval()
    ours, _, _ = label_loss("class")(tiny_bert, batch)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids", "labels")}
    torch.testing.assert_close(ours, tiny_bert(**inputs).loss)


def test_label_loss_of_a_decoder_is_the_models_own(tiny_gpt2: PreTrainedModel, sotu_rows: Rows) -> None:
    batch = collate([*sotu_rows("train", 3), {"input_ids": [3, 4], "labels": [3, 4], "index": 3}], pad_id=0)
    tiny_gpt2.eval()
    ours, _, _ = label_loss("next_token")(tiny_gpt2, batch)
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
        pair_layers("hidden", (1, 6), "every", 2, 6)


def test_a_layer_map_of_another_length_is_refused() -> None:
    with pytest.raises(UserError, match="names 2 layers, but the student has 3"):
        pair_layers("hidden", (1, 5), "every", 3, 6)
    with pytest.raises(UserError, match=r"names 2 layers, but the student has 1 to compare \(last of 3\)"):
        pair_layers("relations", (1, 5), "last", 3, 6)


def test_which_layers_are_held() -> None:
    assert pair_layers("hidden", None, "every", 2, 6) == ((0, 2), (1, 5))
    assert pair_layers("hidden", None, "last", 2, 6) == ((1, 5),)
    assert pair_layers("pkd", None, "all but last", 3, 6) == ((0, 1), (1, 3))
    with pytest.raises(UserError, match="the student has one layer"):
        pair_layers("pkd", None, "all but last", 1, 6)


def test_relation_heads_are_the_most_that_divide_both_widths() -> None:
    assert relation_heads(768, 768, None) == 48
    assert relation_heads(224, 384, None) == 32
    assert relation_heads(312, 768, None) == 24
    assert relation_heads(312, 768, 12) == 12
    with pytest.raises(UserError, match=r"heads is 16, which does not divide .* 312 .* 768\n.*12, 24, or leave"):
        relation_heads(312, 768, 16)


def test_projections_hang_on_the_student_only_while_it_trains(tiny_bert: PreTrainedModel) -> None:
    names = set(tiny_bert.state_dict())
    terms = (StateTerm(1.0, "mse", "hidden", ((0, 1), (1, 3))), StateTerm(1.0, "mse", "embeddings", ((0, 0),)))
    assert make_projections(terms, 32, 32) is None
    add_projections(tiny_bert, make_projections(terms, 32, 48))
    shapes = {name: tensor.shape for name, tensor in getattr(tiny_bert, PROJECTIONS).state_dict().items()}
    assert shapes == {"hidden.0.weight": (48, 32), "hidden.1.weight": (48, 32), "embeddings.0.weight": (48, 32)}
    remove_projections(tiny_bert)
    assert set(tiny_bert.state_dict()) == names
