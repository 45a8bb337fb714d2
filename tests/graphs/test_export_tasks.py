"""Export for every row of the task table: its outputs by name, axes that vary, and torch's numbers at other shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from graph_families import VOCAB
from onnx_runs import Arrays, empty_past, run, session, texts

from compressor.graphs.export import export_decoder, export_encoder
from compressor.methods.pooling import SentenceEncoder, SentenceHead
from compressor.spec.tasks import TASKS, Task, TaskName

TINY = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2}  # fmt: skip
N_LABELS: dict[TaskName, int] = {"multi-label-classification": 4, "token-classification": 5, "question-answering": 2}
SEEN_ELSEWHERE = ("sequence-classification", "multi-label-classification", "regression", "reranking", "causal-lm")
"""Tasks whose graph the families' tests export, or one of other widths; the slow tests export them here too."""
WIDTHS = {
    "sequence-classification": [3], "multi-label-classification": [4], "regression": [1], "reranking": [1],
    "token-classification": ["sequence_length", 5], "question-answering": ["sequence_length"],
    "masked-lm": ["sequence_length", VOCAB], "causal-lm": ["sequence_length", VOCAB],
    "sentence-embedding": ["sequence_length", 16],
}  # fmt: skip
"""Axes of a task's first output after the batch."""


def tiny(task: Task) -> torch.nn.Module:
    """A one-layer model of the class that the task table names, large weights, and what makes its answer."""
    torch.manual_seed(0)
    if task.is_decoder:
        config = hf.GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2)
    else:
        n_labels = N_LABELS.get(task.name, 1 if task.kind == "number" else 3)
        config = hf.BertConfig(**TINY, num_labels=n_labels)
    model = getattr(hf, task.auto_class).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0)
    if task.kind == "embedding":
        return SentenceEncoder(model, SentenceHead(("mean",), (), normalise=True)).eval()
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SEEN_ELSEWHERE else ()) for name in TASKS]
)
def test_a_tasks_graph_has_its_outputs_and_takes_any_shape(name: TaskName, tmp_path: Path) -> None:
    task, path = TASKS[name], tmp_path / "model.onnx"
    model = tiny(task)
    result = export_decoder(model, path) if task.is_decoder else export_encoder(model, path, output_names=task.outputs)
    assert result.output_names[: len(task.outputs)] == task.outputs
    opened = session(path)
    assert opened.get_inputs()[0].shape == ["batch_size", "sequence_length"]
    assert opened.get_outputs()[0].shape == ["batch_size", *WIDTHS[name]]
    if not task.is_decoder:
        assert {value.name for value in opened.get_outputs()} == set(task.outputs)

    for batch, length, pad in [(1, 5, 0), (3, 9, 4)]:
        feed: Arrays = texts(batch, length, pad=pad, seed=length)
        feed["position_ids"] = np.maximum(feed["attention_mask"].cumsum(1) - 1, 0)
        if task.is_decoder:
            feed |= empty_past(path, batch)
        names = {value.name for value in opened.get_inputs() if not value.name.startswith("past_key_values.")}
        with torch.no_grad():
            expected = model(**{each: torch.from_numpy(feed[each]) for each in sorted(names)})
        answers = run(path, feed)
        for output in task.outputs:
            reference, answer = getattr(expected, output).numpy(), answers[output]
            if answer.shape[:2] == (batch, length):  # a token's answer counts where there is a token
                reference, answer = reference[feed["attention_mask"] != 0], answer[feed["attention_mask"] != 0]
            assert answer.shape == reference.shape
            np.testing.assert_allclose(answer, reference, atol=1e-4 * np.abs(reference).max())
