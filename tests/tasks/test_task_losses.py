"""Losses and validation metrics of every kind of task, against transformers' own models and by hand."""

from __future__ import annotations

import math

import pytest
import torch
import transformers as hf

from compressor.errors import UserError
from compressor.methods.pooling import SentenceEncoder, SentenceHead, pool
from compressor.spec.tasks import TASKS, Kind
from compressor.training.answers import answer_of, cosent, label_error
from compressor.training.metrics import metric_for
from compressor.training.rows import IGNORED, collate, labelled_rows, pair_rows

CONFIG = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 16,
}  # fmt: skip
IDS = torch.arange(12).reshape(2, 6) + 5
MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])


@pytest.mark.parametrize(
    ("kind", "model", "labels", "settings"),
    [
        ("class", hf.BertForSequenceClassification, torch.tensor([2, 0]), {"num_labels": 3}),
        ("classes", hf.BertForSequenceClassification, torch.tensor([[1.0, 0, 1], [0, 0, 1]]),
         {"num_labels": 3, "problem_type": "multi_label_classification"}),
        ("number", hf.BertForSequenceClassification, torch.tensor([0.5, -2.0]),
         {"num_labels": 1, "problem_type": "regression"}),
        ("token_class", hf.BertForTokenClassification,
         torch.tensor([[IGNORED, 0, 2, 1, 0, IGNORED], [IGNORED, 1, 1, IGNORED, IGNORED, IGNORED]]), {"num_labels": 3}),
        ("masked_token", hf.BertForMaskedLM,
         torch.tensor([[IGNORED, 7, IGNORED, IGNORED, 9, IGNORED], [IGNORED] * 3 + [8] + [IGNORED] * 2]), {}),
    ],
)  # fmt: skip
def test_the_loss_is_that_of_transformers(kind: Kind, model: type, labels: torch.Tensor, settings: dict) -> None:
    torch.manual_seed(0)
    module = model(hf.BertConfig(**CONFIG, **settings)).eval()
    outputs = module(input_ids=IDS, attention_mask=MASK, labels=labels)
    assert label_error(answer_of(outputs, kind), labels, kind).item() == pytest.approx(outputs.loss.item(), rel=1e-5)


def test_the_loss_of_a_span_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    module = hf.BertForQuestionAnswering(hf.BertConfig(**CONFIG)).eval()
    starts, ends = torch.tensor([1, 0]), torch.tensor([3, 2])
    outputs = module(input_ids=IDS, attention_mask=MASK, start_positions=starts, end_positions=ends)
    answer = answer_of(outputs, "span")
    assert answer.shape == (2, 6, 2)
    found = label_error(answer, torch.stack([starts, ends], dim=-1), "span")
    assert found.item() == pytest.approx(outputs.loss.item(), rel=1e-5)


def test_cosent_counts_the_pairs_in_the_wrong_order() -> None:
    cosines = torch.tensor([0.9, 0.5, 0.1])
    right = cosent(cosines, torch.tensor([3.0, 2.0, 1.0]))
    assert right == pytest.approx(math.log(1 + 2 * math.exp(-8) + math.exp(-16)), rel=1e-4)
    wrong = cosent(cosines, torch.tensor([1.0, 2.0, 3.0]))
    assert wrong == pytest.approx(math.log(1 + 2 * math.exp(8) + math.exp(16)), rel=1e-4)
    assert cosent(cosines, torch.tensor([5.0, 5.0, 5.0])) == 0
    assert cosent(cosines, torch.tensor([300.0, 2.0, 1.0])) == right  # only the order counts


def test_pairs_are_read_apart_and_stand_in_two_halves() -> None:
    rows = pair_rows(
        [{"input_ids": [1, 2]}, {"input_ids": [3]}], [{"input_ids": [4]}, {"input_ids": [5, 6, 7]}], [0.2, 0.8]
    )
    batch = collate(rows, pad_id=0)
    assert batch["input_ids"].tolist() == [[1, 2, 0], [3, 0, 0], [4, 0, 0], [5, 6, 7]]
    assert batch["labels"].tolist() == pytest.approx([0.2, 0.8])
    assert batch["index"].tolist() == [0, 1]


def test_labels_of_a_fixed_length_are_not_padded() -> None:
    rows = labelled_rows([{"input_ids": [1, 2, 3, 4]}, {"input_ids": [1]}], [(1, 2), (0, 0)])
    assert collate(rows, pad_id=0)["labels"].tolist() == [[1, 2], [0, 0]]
    per_token = labelled_rows([{"input_ids": [1, 2]}, {"input_ids": [1]}], [[0, 1], [2]])
    assert collate(per_token, pad_id=0)["labels"].tolist() == [[0, 1], [2, IGNORED]]


def test_an_embedder_without_pairs_cannot_learn_from_labels() -> None:
    with pytest.raises(UserError, match="an embedder learns from labels only where its rows are pairs"):
        label_error(torch.ones(3, 4), torch.ones(3), "embedding")


TOKENS = torch.tensor([[[1.0, 8.0], [3.0, 2.0], [99.0, 99.0]], [[4.0, 0.0], [5.0, 5.0], [6.0, -2.0]]])
REAL = torch.tensor([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("mode", "first", "second"),
    [
        ("cls", [1, 8], [4, 0]),
        ("lasttoken", [3, 2], [6, -2]),
        ("max", [3, 8], [6, 5]),
        ("mean", [2, 5], [5, 1]),
        ("mean_sqrt_len_tokens", [4 / 2**0.5, 10 / 2**0.5], [15 / 3**0.5, 3 / 3**0.5]),
        ("weightedmean", [7 / 3, 12 / 3], [32 / 6, 4 / 6]),
    ],
)
def test_pooling_by_hand(mode: str, first: list[float], second: list[float]) -> None:
    assert pool(TOKENS, REAL, mode).tolist() == [pytest.approx(first), pytest.approx(second)]
    # The same texts with their padding on the left.
    left = pool(torch.stack([TOKENS[0].roll(1, dims=0), TOKENS[1]]), torch.stack([REAL[0].roll(1), REAL[1]]), mode)
    assert left.tolist() == [pytest.approx(first), pytest.approx(second)]


def test_an_embedder_is_its_encoder_and_its_head() -> None:
    torch.manual_seed(0)
    body = hf.BertModel(hf.BertConfig(**CONFIG)).eval()
    module = SentenceEncoder(body, SentenceHead(["mean", "max"], [(torch.nn.Linear(32, 4), torch.nn.Tanh())], True))
    outputs = module(input_ids=IDS, attention_mask=MASK, output_hidden_states=True)
    assert outputs.sentence_embedding.norm(dim=-1).tolist() == pytest.approx([1, 1])
    assert outputs.last_hidden_state.shape == (2, 6, 16)
    assert outputs.hidden_states is not None and len(outputs.hidden_states) == 2
    assert module.base_model is body
    assert [name for name, one in module.head.named_parameters() if one.requires_grad] == []


def test_validation_counts_entities_only_where_tags_say_what_they_are() -> None:
    task = TASKS["token-classification"]
    assert metric_for(task, ("O", "B-PER", "I-PER")).name == "entity_f1"
    assert metric_for(task, ("noun", "verb")).name == "token_accuracy"
    metric = metric_for(task, ("O", "B-PER", "I-PER"))
    labels = torch.tensor([[IGNORED, 1, 2, 0], [1, IGNORED, 1, 0]])
    told = torch.tensor([[2, 1, 2, 0], [1, 1, 0, 0]])  # what is said of ignored places does not count
    kept = metric.per_row(torch.nn.functional.one_hot(told, 3).float(), labels)
    assert kept.tolist() == [[1, 1, 1], [1, 1, 2]]
    assert metric.overall(kept.numpy(), labels.numpy()) == pytest.approx(2 * 2 / 5)
