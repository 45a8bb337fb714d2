"""One problem for each mistake, in plain words, at the line and path that are to be changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
from pydantic import BaseModel

from compressor.errors import PipelineError
from compressor.spec.load import load_pipeline
from compressor.spec.pipeline import Pipeline
from compressor.spec.problems import _parts
from compressor.spec.stages import ACCEPTS, YIELDS, Stage

Changed = Callable[[str, str], str]

ONE_MISTAKE = {
    "unknown key": (
        "      epochs: 2\n",
        "      epohcs: 2\n",
        "job.yaml:18: stages.1.training.epohcs: unknown key\n  -> did you mean `epochs`?",
    ),
    "key one level too high": (
        "    layers: [1, 3]\n",
        "    layers: [1, 3]\n    learning_rate: 1e-4\n",
        "job.yaml:17: stages.1.learning_rate: unknown key\n"
        "  -> did you mean `training.learning_rate`? It goes under `training:`",
    ),
    "key like no other": (
        "    stage: export\n",
        "    stage: export\n    zzz: 1\n",
        "job.yaml:21: stages.2.zzz: unknown key\n  -> known here: id, from, stage, fuse, smooth, unpadded_path",
    ),
    "required key misspelt is one mistake": (
        "    teacher: teacher\n",
        "    taecher: teacher\n",
        "job.yaml:15: stages.1.taecher: unknown key\n  -> did you mean `teacher`?",
    ),
    "required key missing": (
        "    teacher: teacher\n",
        "",
        "job.yaml:13: stages.1.teacher: missing\n  -> The stage (or `model`) whose checkpoint teaches.",
    ),
    "whole section missing": (
        "workloads:\n  - {id: rows, from_data: true, batch: 8}\n",
        "",
        "job.yaml:1: workloads: missing",
    ),
    "stage of no kind": (
        "    stage: export\n",
        "",
        "job.yaml:19: stages.2: says no `stage`\n"
        "  -> add `stage:` and one of: finetune, distill, prune, trim-vocabulary, export, quantize, tune",
    ),
    "bad kind hides the stage's other keys": (
        "    stage: distill\n",
        "    stage: distil\n    nonsense: [1]\n",
        "job.yaml:14: stages.1.stage: `stage: distil` is no stage\n  -> did you mean `distill`?",
    ),
    "kind like no other": (
        "    stage: export\n",
        "    stage: zip\n",
        "job.yaml:20: stages.2.stage: `stage: zip` is no stage\n"
        "  -> stages are: finetune, distill, prune, trim-vocabulary, export, quantize, tune",
    ),
    "text for a number": (
        "epochs: 2",
        "epochs: two",
        "job.yaml:18: stages.1.training.epochs: must be a number, not the text 'two'",
    ),
    "quoted number": (
        "epochs: 2",
        'epochs: "2"',
        "job.yaml:18: stages.1.training.epochs: must be a number, not the text '2'",
    ),
    "truth value for a number": (
        "batch: 8",
        "batch: true",
        "job.yaml:25: workloads.0.batch: must be a whole number, not true",
    ),
    "fraction for a count": (
        "batch: 8",
        "batch: 2.5",
        "job.yaml:25: workloads.0.batch: must be a whole number, not the number 2.5",
    ),
    "word for a truth value": (
        "from_data: true",
        "from_data: yes",
        "job.yaml:25: workloads.0.from_data: must be true or false, not the text 'yes'",
    ),
    "number for text": (
        "name: job",
        "name: 7",
        'job.yaml:2: name: must be text, not the number 7\n  -> quote it to make it text: "7"',
    ),
    "text for a list": (
        "layers: [1, 3]",
        "layers: 1",
        "job.yaml:16: stages.1.layers: must be a list, not the number 1",
    ),
    "list for a mapping": (
        "  train: {path: train.jsonl}",
        "  train: [train.jsonl]",
        "job.yaml:7: data.train: must be a mapping of keys to values, not a list",
    ),
    "section without content": (
        "goals:\n  - {metric: accuracy, min_retained: 0.97}\n",
        "goals:\n",
        "job.yaml:26: goals: must be a list, not empty",
    ),
    "word outside a choice": (
        "scheme: w8a8-dynamic",
        "scheme: w8a8-dinamic",
        "job.yaml:23: stages.3.scheme: must be one of: fp16, bf16, w8a8-dynamic, w8a8-static, w8, w4; "
        "not the text 'w8a8-dinamic'\n  -> did you mean `w8a8-dynamic`?",
    ),
    "task that is none": (
        "task: sequence-classification",
        "task: translation",
        "job.yaml:4: model.task: must be one of: sequence-classification, multi-label-classification, regression, "
        "token-classification, question-answering, masked-lm, causal-lm, sentence-embedding, reranking; "
        "not the text 'translation'",
    ),
    "number out of range": (
        "min_retained: 0.97",
        "min_retained: 97",
        "job.yaml:27: goals.0.min_retained: must be at most 1, not 97",
    ),
    "zero where more is needed": (
        "batch: 8",
        "batch: 0",
        "job.yaml:25: workloads.0.batch: must be greater than 0, not 0",
    ),
    "negative layer": (
        "layers: [1, 3]",
        "layers: [1, -3]",
        "job.yaml:16: stages.1.layers.1: must be at least 0, not -3",
    ),
    "infinite rate": (
        "epochs: 2",
        "epochs: .inf",
        "job.yaml:18: stages.1.training.epochs: must be a finite number, not the number inf",
    ),
    "name that cannot be a folder": (
        "name: job",
        "name: My job/1",
        "job.yaml:2: name: 'My job/1' is not a name that can be used here\n"
        "  -> lower-case letters, digits, `.`, `_` and `-`, starting with a letter or digit: it is a folder's name too",
    ),
    "name that is too long": ("name: job", f"name: {'j' * 65}", "job.yaml:2: name: longer than 64 characters"),
    "empty list": (
        "workloads:\n  - {id: rows, from_data: true, batch: 8}\n",
        "workloads: []\n",
        "job.yaml:24: workloads: the list is empty; it needs at least one item",
    ),
    "goal without a limit": (
        "goals:\n",
        "metadata: {}\ngoals:\n  - {metric: macro_f1}\n",
        "job.yaml:28: goals.0: give exactly one of: min_retained, max_drop_points, max_ratio",
    ),
    "two sources of a model": (
        "  path: models/bert\n",
        "  path: models/bert\n  hub: org/bert\n",
        "job.yaml:3: model: give exactly one of: path, hub, config",
    ),
    "revision of a folder": (
        "  path: models/bert\n",
        "  path: models/bert\n  revision: main\n",
        "job.yaml:3: model: `revision` goes with `hub`",
    ),
    "tokenizer of a folder": (
        "  path: models/bert\n",
        "  path: models/bert\n  tokenizer: {path: x}\n",
        "job.yaml:3: model: `tokenizer` goes with `config`: a folder or a hub repository brings its own",
    ),
    "config without a type": (
        "  path: models/bert\n",
        "  config: {n_layer: 2}\n  tokenizer: {vocab_size: 100}\n",
        "job.yaml:3: model: `config` needs `model_type`, such as bert or gpt2",
    ),
    "workload of two kinds": (
        "from_data: true",
        "from_data: true, input_tokens: 32",
        "job.yaml:25: workloads.0: give exactly one of: from_data, input_tokens",
    ),
    "order of what has none": (
        "from_data: true",
        "input_tokens: 32, order: length",
        "job.yaml:25: workloads.0: `order` goes with `from_data: true`",
    ),
    "stride that leaves tokens out": (
        "goals:\n",
        "evaluate: {context: 64, stride: 65}\ngoals:\n",
        "job.yaml:26: evaluate: stride 65 is longer than context 64: tokens would be left out",
    ),
    "distillation without a teacher loss": (
        "    layers: [1, 3]\n",
        "    losses: {labels: 1.0, logits: null}\n",
        "job.yaml:16: stages.1.losses: a distillation needs a teacher loss: give one of logits, output, embeddings, "
        "hidden, attention, relations, pkd a weight above 0",
    ),
    "layer map of another depth": (
        "    layers: [1, 3]\n",
        "    layers: [1, 3]\n    losses: {hidden: {layer_map: [1]}}\n",
        "job.yaml:13: stages.1: `losses.hidden.layer_map` has 1 layers, and 2 of the student's 2 "
        "`layers` are compared: name one teacher layer for each",
    ),
    "pruning of nothing": (
        "    stage: export\n",
        "    stage: prune\n    keep: {ffn: 1.0}\n  - id: graph\n    stage: export\n",
        "job.yaml:21: stages.2.keep: layers, attention_sublayers, ffn_sublayers, hidden, heads, ffn are all 1.0, "
        "so nothing would be pruned",
    ),
    "pruning two ways": (
        "    stage: export\n",
        "    stage: prune\n    keep: {ffn: 0.5}\n    budget: {macs: 0.5}\n  - id: graph\n    stage: export\n",
        "job.yaml:19: stages.2: give exactly one of: keep, budget",
    ),
    "version missing": (
        "version: 1\n",
        "",
        "job.yaml:1: version: missing\n"
        "  -> add `version: 1` at the top: it says which pipeline language the file is written in",
    ),
    "version that is text": (
        "version: 1",
        'version: "1"',
        "job.yaml:1: version: must be the number 1, not the text '1'",
    ),
    "version that never was": (
        "version: 1",
        "version: 0",
        "job.yaml:1: version: there is no version 0 of the pipeline language\n  -> write `version: 1`",
    ),
}


@pytest.mark.parametrize("mistake", ONE_MISTAKE)
def test_one_mistake_gives_one_message(changed: Changed, mistake: str) -> None:
    old, new, message = ONE_MISTAKE[mistake]
    assert changed(old, new) == message


def test_a_newer_version_is_all_that_is_said(changed: Changed) -> None:
    assert changed("version: 1\n", "version: 2\nfuture: key\n") == (
        "job.yaml:1: version: this pipeline is of version 2, and this release reads version 1\n"
        "  -> pip install --upgrade joule-compressor"
    )


def test_all_mistakes_come_together_in_the_order_of_the_file(refusal: Callable[..., str], valid: str) -> None:
    text = valid
    for old, new in (
        ("name: job", "naem: job"),
        ("epochs: 2", "epochs: two"),
        ("    stage: export\n", "    stage: export\n  - id: late\n    stage: prune\n    keep: {ffn: 0.5}\n"),
        ("  - id: int8\n", "  - id: int8\n    from: onx\n"),
        ("metric: accuracy", "metric: acuracy"),
    ):
        text = text.replace(old, new)
    assert refusal(text) == (
        "job.yaml:2: naem: unknown key\n  -> did you mean `name`?\n"
        "job.yaml:18: stages.1.training.epochs: must be a number, not the text 'two'\n"
        "job.yaml:21: stages.3: `late` (prune) needs a torch checkpoint, but `onnx` (export) leaves onnx\n"
        "  -> write `from: student`, the last torch checkpoint before it\n"
        "job.yaml:25: stages.4.from: there is no stage `onx`\n  -> did you mean `onnx`?\n"
        "job.yaml:31: goals.0.metric: `acuracy` is neither a metric of sequence-classification nor a cost\n"
        "  -> did you mean `accuracy`?"
    )


def test_a_wrong_item_does_not_make_its_list_empty(changed: Changed) -> None:
    assert changed("id: rows,", "") == "job.yaml:25: workloads.0.id: missing"


def test_problems_can_be_read_by_programs(valid: str) -> None:
    with pytest.raises(PipelineError) as caught:
        load_pipeline({"version": 1, "name": "x", "stages": 3})
    assert {problem.path for problem in caught.value.problems} == {"model", "data", "stages", "workloads"}
    assert all(problem.line is None for problem in caught.value.problems)


def parts_within(part: type[BaseModel]) -> set[type[BaseModel]]:
    found = {part}
    for field in part.model_fields.values():
        for inner in _parts(field):
            found |= parts_within(inner)
    return found


def test_every_part_of_the_language_forbids_unknown_keys() -> None:
    parts = parts_within(Pipeline)
    assert len(parts) >= 20
    assert [part.__name__ for part in parts if part.model_config.get("extra") != "forbid"] == []
    assert [part.__name__ for part in parts if not part.model_config.get("frozen")] == []


def test_every_stage_says_what_it_accepts_and_yields() -> None:
    kinds = [get_args(part.model_fields["stage"].annotation)[0] for part in _parts(Stage)]
    assert kinds == list(ACCEPTS) == list(YIELDS)
