"""An embedder's prompts: put before the texts of every split, as `encode` puts them before the texts of a user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_task_stages import TRAINING, EraRows, Made, prepare

import compressor
from compressor.checkpoints.files import sha256_file
from compressor.checkpoints.sentence import read_sentence_modules
from compressor.checkpoints.store import Checkpoint
from compressor.data.splits import open_stage_data, open_test_data
from compressor.errors import CheckpointError, UserError
from compressor.schema.events import Event, Note
from compressor.spec.distillation import DistillLosses
from compressor.spec.sources import ModelSource, TokenizerSource
from compressor.spec.stages import Distill
from compressor.spec.tasks import TASKS
from compressor.stages.source import make_source, prompt_texts

PROMPTS = {"prompts": {"query": "query: ", "document": "passage: "}, "default_prompt_name": "document"}
PROMPTS_FILE = "config_sentence_transformers.json"


@pytest.fixture
def made(era_rows: EraRows, tmp_path: Path) -> Made:
    return prepare("sentence-embedding", era_rows, tmp_path)


def folder_with(made: Made, name: str, settings: dict[str, Any] | None) -> Path:
    """The tiny embedder as users have theirs: no manifest, and perhaps prompts."""
    folder = made.root / name
    (folder / "1_Pooling").mkdir(parents=True)
    source = made.root / "model" / "out"
    if not source.exists():
        made.source()
    for file in (*source.glob("*"), source / "1_Pooling" / "config.json"):
        if file.is_file() and file.name != "compressor.json":
            (folder / file.relative_to(source)).write_bytes(file.read_bytes())
    if settings is not None:
        (folder / PROMPTS_FILE).write_text(json.dumps(settings))
    return folder


def model_at(folder: Path) -> ModelSource:
    return ModelSource(task="sentence-embedding", path=str(folder))


def test_prompts_go_before_the_texts_of_every_split(made: Made) -> None:
    task = TASKS["sentence-embedding"]
    plain = open_stage_data(made.data, task, None, seed=0)
    data = made.data.model_copy(update={"prompts": {"text": "query: "}})
    found = open_stage_data(data, task, None, seed=0)
    for split in ("train", "validation", "calibration"):
        before, after = getattr(plain, split), getattr(found, split)
        assert after["text"] == [f"query: {text}" for text in before["text"]]
        assert (after["text_pair"], after["label"]) == (before["text_pair"], before["label"])
        assert found.digests[split] != plain.digests[split]
    assert open_test_data(data, task, None).rows["text"][0].startswith("query: ")


def test_a_prompt_is_named_or_written_or_the_model_s_default(made: Made) -> None:
    with_prompts, without = model_at(folder_with(made, "a", PROMPTS)), model_at(folder_with(made, "b", None))
    assert prompt_texts(with_prompts, None) == {"text": "passage: ", "text_pair": "passage: "}
    asked = {"text": "query", "text_pair": "title: "}
    assert prompt_texts(with_prompts, asked) == {"text": "query: ", "text_pair": "title: "}
    assert prompt_texts(with_prompts, {}) == prompt_texts(without, None) == {}
    broken = model_at(folder_with(made, "c", {**PROMPTS, "default_prompt_name": "title"}))
    with pytest.raises(CheckpointError, match="the model has no prompt 'title'; its prompts are: query, document"):
        prompt_texts(broken, None)
    assert prompt_texts(ModelSource(task="regression", path="nowhere"), None) == {}


@pytest.mark.slow
def test_training_reads_the_prompts_that_encode_puts(made: Made) -> None:
    events: list[Event] = []
    written = made.data.model_dump(mode="json", exclude_none=True)
    for split in ("train", "validation", "test"):
        path = made.root / f"written-{split}.jsonl"
        rows = [json.loads(line) for line in Path(written[split]["path"]).read_text().splitlines()]
        for row in rows:
            row |= {name: f"passage: {row[name]}" for name in ("sentence1", "sentence2")}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        written[split]["path"] = str(path)
    given = made.data.model_dump(mode="json", exclude_none=True)
    tuned = [
        run_tuning(made, folder_with(made, "with", PROMPTS), given, events),
        run_tuning(made, folder_with(made, "without", None), written, []),
        run_tuning(made, folder_with(made, "unused", PROMPTS), {**given, "prompts": {}}, []),
    ]
    weights = [sha256_file(one.path / "model.safetensors") for one in tuned]
    assert weights[0] == weights[1] != weights[2]
    told = [event.text for event in events if isinstance(event, Note) and "default prompt" in event.text]
    assert told == ["the model's default prompt 'passage: ' goes before every text (data.prompts: {} puts none)"]


def run_tuning(made: Made, folder: Path, data: dict[str, Any], events: list[Event]) -> Checkpoint:
    pipeline = {
        "version": 1,
        "name": "prompts",
        "model": {"task": "sentence-embedding", "path": str(folder)},
        "data": data,
        "target": {"threads": 1},
        "stages": [{"id": "tuned", "stage": "finetune", "training": {"max_steps": 2, "batch_size": 8}}],
        "workloads": [{"id": "rows", "from_data": True}],
    }
    out = made.root / f"run-{folder.name}"
    return compressor.run(pipeline, out=out, until="tuned", on_event=events.append).checkpoints["tuned"]


def test_a_student_that_puts_another_prompt_is_refused(made: Made) -> None:
    teacher, student = (
        make_source(model_at(folder_with(made, name, settings)), made.root / f"{name}-out", made.context(name))
        for name, settings in (("teacher", PROMPTS), ("student", None))
    )
    losses = {"logits": None, "output": {"kind": "mse"}}
    config = Distill(stage="distill", id="taught", teacher="model", training=TRAINING, losses=losses)
    told = "the teacher 'model' puts 'passage: ' before every text that it encodes, the student 'model' puts ''"
    with pytest.raises(UserError, match=told):
        made.run(config, student, teacher)


def test_a_student_that_does_not_say_how_it_pools_does_so_as_its_teacher(made: Made) -> None:
    teacher = make_source(model_at(folder_with(made, "teacher", PROMPTS)), made.root / "out", made.context("teacher"))
    shape = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 16, "max_position_embeddings": 64}  # fmt: skip
    tokenizer = TokenizerSource(path=str(teacher.path))
    model = ModelSource(task="sentence-embedding", config=shape, tokenizer=tokenizer)
    context = made.context("student")
    student = make_source(model, made.root / "narrow", context, pools_like=teacher.path)
    ours, theirs = (read_sentence_modules(one.path) for one in (student, teacher))
    assert ours == theirs and ours is not None and ours.default_prompt == "document"
    widths = [
        json.loads((one.path / "1_Pooling" / "config.json").read_text())["word_embedding_dimension"]
        for one in (student, teacher)
    ]
    assert widths == [16, 32]
    losses = {"logits": None, "hidden": {"kind": "mse"}}
    config = Distill(stage="distill", id="taught", teacher="model", training=TRAINING, losses=losses)
    assert read_sentence_modules(made.run(config, student, teacher).path) == theirs
    asked = config.model_copy(update={"losses": DistillLosses(logits=None, output={"kind": "mse"})})
    with pytest.raises(UserError, match=r"losses\.output compares vectors of one width, but the student's are 16 wide"):
        made.run(asked, student, teacher)
    for split in ("validation", "train"):
        path = made.root / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({"text": row["sentence1"]}) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"texts without labels are validated by the teacher's vectors"):
        made.run(config, student, teacher)
