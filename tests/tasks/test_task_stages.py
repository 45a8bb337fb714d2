"""Every task through the stages: rows, heads, losses, validation, export, INT8, and the answers of what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from task_data import LABELS, model_section, write_task_data
from transformers import AutoModel, AutoTokenizer

import compressor
from compressor.checkpoints.store import Checkpoint
from compressor.data.splits import open_stage_data
from compressor.errors import CheckpointError, DataError, UnsupportedError, UserError
from compressor.runtime.load import CompressedModel
from compressor.runtime.torch_models import load_module
from compressor.spec.evaluation import Target
from compressor.spec.sources import Data, ModelSource
from compressor.spec.stages import Distill, Export, Finetune, Prune, Quantize, Training
from compressor.spec.tasks import TASKS, TaskName
from compressor.stages.context import StageContext, StageInputs
from compressor.stages.dispatch import run_here
from compressor.stages.source import make_source

EraRows = dict[str, list[dict[str, Any]]]
TRAINING = Training(epochs=1, learning_rate=2e-3, batch_size=8)
SLOW = pytest.mark.slow
VALIDATED_BY = {
    "multi-label-classification": "micro_f1", "regression": "pearson", "token-classification": "entity_f1",
    "question-answering": "exact_match", "masked-lm": "masked_perplexity", "sentence-embedding": "spearman",
    "reranking": "spearman",
}  # fmt: skip
QUICK: tuple[TaskName, ...] = ("token-classification", "sentence-embedding")
EVERY = [name if name in QUICK else pytest.param(name, marks=SLOW) for name in VALIDATED_BY]


@dataclass(frozen=True)
class Made:
    task: TaskName
    root: Path
    data: Data
    model: ModelSource
    rows: EraRows

    def context(self, name: str) -> StageContext:
        return StageContext(
            data=open_stage_data(self.data, TASKS[self.task], self.model.labels, seed=0),
            task=TASKS[self.task],
            labels=self.model.labels,
            max_tokens=48,
            calibration_rows=32,
            seed=0,
            target=Target(threads=1),
            fingerprint="0" * 64,
            versions={},
            emit=lambda event: None,
            workdir=self.root / name / "work",
        )

    def run(self, config: Any, source: Checkpoint, teacher: Checkpoint | None = None) -> Checkpoint:
        out = self.root / config.id / "out"
        return run_here(config, StageInputs(source, teacher), out, self.context(config.id))

    def source(self) -> Checkpoint:
        return make_source(self.model, self.root / "model" / "out", self.context("model"))


def prepare(task: TaskName, era_rows: EraRows, root: Path, **changed: Any) -> Made:
    torch.set_num_threads(1)
    data = Data.model_validate_json(json.dumps(write_task_data(task, era_rows, root)))
    model = ModelSource.model_validate_json(json.dumps({**model_section(task), **changed}))
    return Made(task, root, data, model, era_rows)


@pytest.mark.parametrize("task", EVERY)
def test_a_task_from_training_to_int8_and_its_answers(task: TaskName, era_rows: EraRows, tmp_path: Path) -> None:
    made = prepare(task, era_rows, tmp_path)
    source = made.source()
    assert source.content.labels == (LABELS.get(task))
    tuned = made.run(Finetune(stage="finetune", id="tuned", training=TRAINING), source)
    validated = tuned.record.realised["validation"]
    assert validated["metric"] == VALIDATED_BY[task]
    assert np.isfinite([validated["before"], validated["after"]]).all()
    exported = made.run(Export(stage="export", id="onnx"), tuned)
    int8 = made.run(Quantize(stage="quantize", id="int8", scheme="w8a8-dynamic"), exported)
    assert [variant.id for variant in int8.content.variants] == ["torch-fp32", "onnx-fp32", "onnx-w8a8-dynamic"]
    models = [compressor.load(int8.path, precision=name) for name in ("torch-fp32", "onnx-fp32", "int8")]
    texts = [row["text"] for row in era_rows["test"][:5]]
    answers = [answers_of(model, texts) for model in models]
    torch_answers, onnx_answers, int8_answers = answers
    assert len(torch_answers) == len(int8_answers) == len(texts)
    np.testing.assert_allclose(numbers_in(torch_answers), numbers_in(onnx_answers), atol=2e-4)
    # One text at a time, so nothing hangs on the batch or its padding.
    alone = [answer for text in texts for answer in answers_of(models[1], [text])]
    np.testing.assert_allclose(numbers_in(alone), numbers_in(onnx_answers), atol=2e-4)


def answers_of(model: CompressedModel, texts: list[str]) -> list[Any]:
    match model.task.name:
        case "sentence-embedding":
            return list(model.encode(texts))
        case "question-answering":
            return model.predict([("what comes first?", text) for text in texts])
        case "reranking":
            return model.predict([("the union", text) for text in texts])
        case "masked-lm":
            return model.predict([f"{text} {model.tokenizer.mask_token}" for text in texts])
    return model.predict(texts)


def numbers_in(answers: Any) -> list[float]:
    """All the numbers of answers of any form, in their order."""
    if isinstance(answers, np.ndarray | np.floating):
        return list(np.ravel(answers))
    if isinstance(answers, dict):
        return [number for key in sorted(answers) for number in numbers_in(answers[key])]
    if isinstance(answers, list):
        return [number for answer in answers for number in numbers_in(answer)]
    return [float(answers)] if isinstance(answers, int | float) else []


@pytest.mark.parametrize("task", [pytest.param(name, marks=SLOW) for name in VALIDATED_BY])
def test_a_student_of_every_task_is_taught_and_pruned(task: TaskName, era_rows: EraRows, tmp_path: Path) -> None:
    made = prepare(task, era_rows, tmp_path)
    source = made.source()
    losses: dict[str, Any] = {}
    if TASKS[task].kind in ("number", "embedding"):
        losses = {"losses": {"logits": None, "output": {"kind": "mse"}}}
    student = made.run(
        Distill(stage="distill", id="student", teacher="model", layers=(1,), training=TRAINING, **losses),
        source, source,
    )  # fmt: skip
    before, after = (student.record.realised["validation"][key] for key in ("before", "after"))
    assert np.isfinite([before, after]).all()
    pruned = made.run(Prune(stage="prune", id="pruned", keep={"heads": 0.5, "ffn": 0.5}, granule=8), student)
    assert pruned.record.realised["parameters"] < pruned.record.realised["parameters_before"]
    assert load_module(pruned).config.num_hidden_layers == 1


def test_an_embedder_is_taught_by_texts_alone(era_rows: EraRows, tmp_path: Path) -> None:
    made = prepare("sentence-embedding", era_rows, tmp_path)
    for split in ("train", "validation"):
        path = tmp_path / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({"sentence": row["sentence1"]}) + "\n" for row in rows))
    source = made.source()
    student = make_source(made.model, tmp_path / "other" / "out", replace(made.context("other"), seed=1))
    losses = {"logits": None, "output": {"kind": "cosine"}}
    config = Distill(stage="distill", id="student", teacher="model", training=TRAINING, losses=losses)
    validated = made.run(config, student, source).record.realised["validation"]
    assert validated["metric"] == "cosine_to_teacher"
    assert validated["after"] > validated["before"] + 0.1
    with pytest.raises(DataError, match="an embedder learns from pairs of texts with a label"):
        made.run(Finetune(stage="finetune", id="tuned", training=TRAINING), source)


def test_an_embedder_keeps_its_dense_layers_and_prompts(era_rows: EraRows, tmp_path: Path) -> None:
    made = prepare("sentence-embedding", era_rows, tmp_path)
    folder = made.source().path
    plain = made.root / "plain"
    plain.mkdir()
    for file in folder.iterdir():
        if file.is_file() and file.name != "compressor.json":
            (plain / file.name).write_bytes(file.read_bytes())
    add_dense(plain, width=32, out=16)
    prompts = {"prompts": {"query": "query: ", "document": "passage: "}, "default_prompt_name": "document"}
    (plain / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    model = ModelSource(task="sentence-embedding", path=str(plain))
    source = make_source(model, made.root / "dense" / "out", made.context("dense"))
    exported = made.run(Export(stage="export", id="onnx"), source)
    for name in ("modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"):
        assert (exported.path / name).read_bytes() == (plain / name).read_bytes()
    torch_model, onnx_model = (compressor.load(exported.path, runtime=name) for name in ("torch", "onnxruntime"))
    # the first by the name that sentence-transformers, Optimum and Text Embeddings Inference all ask for
    graph = onnx.load(exported.path / "onnx" / "model.onnx").graph
    assert [value.name for value in graph.output] == ["last_hidden_state", "sentence_embedding"]
    texts = [row["text"] for row in era_rows["test"][:3]]
    vectors = onnx_model.encode(texts)
    assert vectors.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors, torch_model.encode(texts), atol=1e-5)
    np.testing.assert_allclose(vectors, onnx_model.encode(texts, prompt="passage: "), atol=1e-6)
    np.testing.assert_allclose(vectors[0], onnx_model.encode(texts[0], prompt_name="document"), atol=1e-5)
    assert np.abs(vectors - onnx_model.encode(texts, prompt_name="query")).max() > 1e-4
    with pytest.raises(CheckpointError, match="the model has no prompt 'title'; its prompts are: query, document"):
        onnx_model.encode(texts, prompt_name="title")
    with pytest.raises(UserError, match="give one of: prompt, prompt_name"):
        onnx_model.encode(texts, prompt="a", prompt_name="query")
    with pytest.raises(UnsupportedError, match="a sentence-embedding model does not classify"):
        onnx_model.predict(texts)


def add_dense(folder: Path, *, width: int, out: int) -> None:
    from safetensors.torch import save_file

    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": width, "pooling_mode_mean_tokens": True})
    )
    (folder / "2_Dense").mkdir()
    activation = "torch.nn.modules.activation.Tanh"
    settings = {"in_features": width, "out_features": out, "bias": True, "activation_function": activation}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(settings))
    generator = torch.Generator().manual_seed(0)
    weights = {"linear.weight": torch.randn(out, width, generator=generator), "linear.bias": torch.zeros(out)}
    save_file(weights, folder / "2_Dense" / "model.safetensors")


def test_an_embedder_that_does_not_say_how_it_pools(era_rows: EraRows, tmp_path: Path) -> None:
    made = prepare("sentence-embedding", era_rows, tmp_path, pooling=None)
    with pytest.raises(UserError, match="nothing says how token vectors become one vector: the model has no modules"):
        made.source()


def test_a_head_of_classes_is_no_head_of_a_number(era_rows: EraRows, tiny_bert_dir: Path, tmp_path: Path) -> None:
    made = prepare("regression", era_rows, tmp_path)
    model = ModelSource(task="regression", path=str(tiny_bert_dir))
    with pytest.raises(UserError, match="tells 3 classes apart, and regression wants one number"):
        make_source(model, tmp_path / "out", made.context("model"))


def test_minilm_encodes_as_a_plain_mean_of_its_tokens(cached: Callable[[str], Path]) -> None:
    folder = cached("models/all-MiniLM-L6-v2")
    texts = ["A man is eating food.", "The girl carries a baby, and outside of the house it rains.", "x"]
    vectors = compressor.load(folder, threads=1).encode(texts)
    tokenizer, body = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens = body(**inputs).last_hidden_state
    real = inputs["attention_mask"].unsqueeze(-1).float()
    expected = torch.nn.functional.normalize((tokens * real).sum(1) / real.sum(1), dim=-1).numpy()
    np.testing.assert_allclose((vectors * expected).sum(axis=1), 1, atol=1e-6)
