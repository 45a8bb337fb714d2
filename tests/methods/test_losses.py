"""Losses against numbers worked out by hand, and the laws they share: padding, widths, heads."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compressor.errors import DataError
from compressor.methods import losses


def log(*probabilities: float) -> Tensor:
    """Logits whose softmax at T = 1 is exactly these probabilities."""
    return torch.tensor(probabilities).log()


# student (1/2, 1/2), teacher (3/4, 1/4):
FORWARD = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # 0.13081
REVERSE = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)  # 0.14384


def test_forward_and_reverse_kl_by_hand() -> None:
    student, teacher = log(0.5, 0.5)[None], log(0.75, 0.25)[None]
    assert losses.logit_kl(student, teacher).item() == pytest.approx(FORWARD, abs=1e-6)
    assert losses.reverse_kl(student, teacher).item() == pytest.approx(REVERSE, abs=1e-6)


def test_temperature_scales_by_its_square() -> None:
    student, teacher = log(0.5, 0.5)[None], 2 * log(0.75, 0.25)[None]  # halved again by T = 2
    assert losses.logit_kl(student, teacher, temperature=2.0).item() == pytest.approx(4 * FORWARD, abs=1e-6)
    assert losses.reverse_kl(student, teacher, temperature=2.0).item() == pytest.approx(4 * REVERSE, abs=1e-6)
    with pytest.raises(ValueError, match="temperature must be positive"):
        losses.logit_kl(student, teacher, temperature=0.0)


def test_jsd_by_hand() -> None:
    # mixture (5/8, 3/8)
    to_teacher = 0.75 * math.log(0.75 / 0.625) + 0.25 * math.log(0.25 / 0.375)
    to_student = 0.5 * math.log(0.5 / 0.625) + 0.5 * math.log(0.5 / 0.375)
    value = losses.jsd(log(0.5, 0.5)[None], log(0.75, 0.25)[None])
    assert value.item() == pytest.approx(0.5 * to_teacher + 0.5 * to_student, abs=1e-6)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        losses.jsd(log(0.5, 0.5), log(0.5, 0.5), beta=1.0)


def test_skew_kl_by_hand() -> None:
    student, teacher = log(0.5, 0.5)[None], log(0.75, 0.25)[None]
    # skew 0.2: forward mixture (0.2 x 0.75 + 0.8 x 0.5, ...) = (0.55, 0.45); reverse (0.7, 0.3)
    forward = 0.75 * math.log(0.75 / 0.55) + 0.25 * math.log(0.25 / 0.45)
    reverse = 0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.3)
    assert losses.skew_kl(student, teacher, skew=0.2).item() == pytest.approx(forward, abs=1e-6)
    assert losses.skew_reverse_kl(student, teacher, skew=0.2).item() == pytest.approx(reverse, abs=1e-6)
    assert losses.skew_kl(student, teacher, skew=0.0).item() == pytest.approx(FORWARD, abs=1e-6)


def test_coarse_logits_by_hand_keep_the_tail_as_one_class() -> None:
    coarse = losses.coarse_logits(log(0.1, 0.2, 0.3, 0.4)[None], torch.tensor([[3, 1]]))
    torch.testing.assert_close(coarse.softmax(-1), torch.tensor([[0.4, 0.2, 0.4]]))
    # at T = 2 square roots of the probabilities are shared out
    warm = losses.coarse_logits(log(0.01, 0.04, 0.16, 0.64)[None], torch.tensor([[3]]), temperature=2.0)
    torch.testing.assert_close(warm.softmax(-1), torch.tensor([[0.8 / 1.5, 0.7 / 1.5]]))


@given(seed=st.integers(0, 1000), k=st.integers(1, 6), temperature=st.sampled_from([1.0, 2.0, 4.0]))
def test_coarse_divergence_is_a_lower_bound_and_exact_where_tails_agree(seed: int, k: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 3, 7, generator=generator).unbind(0)
    classes = teacher.topk(k, dim=-1).indices

    def coarse(side: Tensor) -> float:
        ours, theirs = (losses.coarse_logits(each, classes, temperature) for each in (side, teacher))
        return float(losses.logit_kl(ours, theirs) * temperature**2)

    assert coarse(student) <= float(losses.logit_kl(student, teacher, temperature)) + 1e-5
    same_tail = teacher.scatter(-1, classes, student.gather(-1, classes))
    assert coarse(same_tail) == pytest.approx(float(losses.logit_kl(same_tail, teacher, temperature)), abs=1e-4)


def test_output_mse_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 4.0], [3.0, 0.0]])
    assert losses.output_mse(student, teacher).item() == pytest.approx((4 + 9) / 4)
    assert losses.output_mse(student, teacher, torch.tensor([1, 0])).item() == pytest.approx(2.0)
    with pytest.raises(DataError, match=r"outputs \(2, 2\) \(student\) and \(2, 1\)"):
        losses.output_mse(student, teacher[:, :1])


@given(seed=st.integers(0, 1000))
def test_divergences_are_positive_and_zero_only_at_the_teacher(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 4, 5, generator=generator).unbind(0)
    for loss in (losses.logit_kl, losses.reverse_kl, losses.jsd, losses.skew_kl, losses.skew_reverse_kl):
        assert loss(student, teacher).item() > 0
        assert loss(teacher, teacher).item() == pytest.approx(0.0, abs=1e-6)


def test_padding_changes_no_logit_loss() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 1, 3, 5).unbind(0)
    garbage = torch.full((1, 2, 5), 1e30)
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    padded = torch.cat([student, garbage], 1), torch.cat([teacher, -garbage], 1)
    for loss in (losses.logit_kl, losses.reverse_kl, losses.jsd, losses.skew_kl, losses.skew_reverse_kl):
        torch.testing.assert_close(loss(*padded, mask=mask), loss(student, teacher))


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = (torch.randn(2, 5, requires_grad=True) for _ in range(2))
    losses.logit_kl(student, teacher).backward()
    assert teacher.grad is None and student.grad is not None


def test_gradient_of_kl_is_the_difference_of_probabilities() -> None:
    student = log(0.5, 0.5)[None].requires_grad_()
    losses.logit_kl(student, log(0.75, 0.25)[None]).backward()
    torch.testing.assert_close(student.grad, torch.tensor([[-0.25, 0.25]]))


def test_a_class_of_probability_zero_gives_no_nan() -> None:
    student = torch.zeros(1, 2, requires_grad=True)
    value = losses.logit_kl(student, torch.tensor([[0.0, -1e5]]))
    value.backward()
    assert value.item() == pytest.approx(math.log(2)) and student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_hidden_mse_by_hand_with_padding_and_projection() -> None:
    student = torch.tensor([[[1.0, 2.0], [3.0, 3.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[0.0, 2.0], [3.0, 5.0], [0.0, 0.0]]])
    mask = torch.tensor([[1, 1, 0]])
    # tokens: (1 + 0) / 2 and (0 + 4) / 2
    assert losses.hidden_mse(student, teacher, mask).item() == pytest.approx((0.5 + 2.0) / 2)
    projection = torch.nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        projection.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    wide = torch.tensor([[[1.0, 2.0, 0.0], [3.0, 3.0, 6.0], [0.0, 0.0, 0.0]]])
    assert losses.hidden_mse(student, wide, mask, projection).item() == pytest.approx(9 / 3 / 2)
    with pytest.raises(DataError, match="give a projection to the teacher's width"):
        losses.hidden_mse(student, wide, mask)


def test_hidden_cosine_by_hand() -> None:
    student = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [5.0, 5.0]]])
    teacher = torch.tensor([[[0.0, 2.0], [3.0, 3.0], [-5.0, 0.0]]])
    assert losses.hidden_cosine(student, teacher, torch.tensor([[1, 1, 0]])).item() == pytest.approx(0.5, abs=1e-6)


def test_pkd_by_hand() -> None:
    student = torch.tensor([[[[3.0, 4.0], [7.0, 7.0]]], [[[0.0, 2.0], [7.0, 7.0]]]])  # (M=2, B=1, T=2, H=2)
    teacher = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]], [[[0.0, 9.0], [0.0, 1.0]]]])
    assert losses.pkd(student, teacher).item() == pytest.approx((0.6 - 1) ** 2 + 0.8**2)


def test_attention_mse_by_hand_zeroes_masked_pairs() -> None:
    student = torch.zeros(1, 1, 3, 3)
    teacher = torch.tensor([[[[1.0, 2.0, -1e9], [0.0, 1.0, -1e9], [5.0, 5.0, -1e9]]]])
    value = losses.attention_mse(student, teacher, torch.tensor([[1, 1, 0]]))
    assert value.item() == pytest.approx((1 + 4 + 0 + 1) / 4)
    with pytest.raises(DataError, match="equal head counts"):
        losses.attention_mse(student, teacher.repeat(1, 2, 1, 1))


def test_attention_kl_by_hand() -> None:
    student = log(0.5, 0.5).expand(1, 1, 2, 2)
    teacher = log(0.75, 0.25).expand(1, 1, 2, 2)
    assert losses.attention_kl(student, teacher).item() == pytest.approx(FORWARD, abs=1e-6)
    with pytest.raises(DataError, match="relation loss takes any head counts"):
        losses.attention_kl(student, teacher.repeat(1, 2, 1, 1))


def test_relation_kl_by_hand() -> None:
    # one head of width 1: tokens (0, c) give scores [[0, 0], [0, c^2]]; the first row agrees, the second is FORWARD
    teacher = torch.tensor([[[0.0], [math.sqrt(math.log(3.0))]]])  # softmax (1/4, 3/4)
    student = torch.zeros(1, 2, 1)
    assert losses.relation_kl(student, teacher, 1).item() == pytest.approx(FORWARD / 2, abs=1e-6)


@given(seed=st.integers(0, 1000), heads=st.sampled_from([1, 2, 4]))
def test_relation_kl_takes_any_width_and_ignores_padding(seed: int, heads: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(2, 4, 8, generator=generator)
    teacher = torch.randn(2, 4, 12, generator=generator)
    value = losses.relation_kl(student, teacher, heads)
    assert value.item() > 0
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 0]])
    padded = (torch.cat([v, torch.full_like(v[:, :1], 1e3)], dim=1) for v in (student, teacher))
    torch.testing.assert_close(losses.relation_kl(*padded, heads, mask), value)


def test_relation_kl_names_a_divisor_that_works() -> None:
    with pytest.raises(DataError, match=r"5 relation heads do not divide the student's width 8\n.*such as 4"):
        losses.relation_kl(torch.zeros(1, 2, 8), torch.zeros(1, 2, 12), 5)


def test_attention_losses_ignore_padding() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 4, 4).unbind(0)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0]])
    for loss in (losses.attention_mse, losses.attention_kl):
        torch.testing.assert_close(loss(student, teacher, mask), loss(student[..., :3, :3], teacher[..., :3, :3]))


def test_a_causal_comparison_leaves_out_what_a_token_has_not_seen() -> None:
    student, teacher = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 9.0], [math.log(3.0), 0.0]]]])
    value = losses.attention_mse(student, teacher, is_causal=True)
    assert value.item() == pytest.approx((1 + math.log(3.0) ** 2) / 3)
    # the first query sees one key, so it has no divergence; the second: (1/2, 1/2) against (3/4, 1/4)
    assert losses.attention_kl(student, teacher, is_causal=True).item() == pytest.approx(FORWARD / 2, abs=1e-6)


def test_attention_scores_by_hand_with_shared_keys() -> None:
    queries = losses.split_heads(torch.tensor([[[1.0, 0.0, 0.0, 2.0]]]), 2)  # (1, 2, 1, 2)
    keys = losses.split_heads(torch.tensor([[[3.0, 4.0]]]), 1)
    scores = losses.dot_products(queries, keys)
    torch.testing.assert_close(scores.flatten(), torch.tensor([3.0, 8.0]) / math.sqrt(2))


def test_only_padding_is_an_error() -> None:
    with pytest.raises(DataError, match="without a single unpadded position"):
        losses.logit_kl(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), mask=torch.zeros(1, 2))
