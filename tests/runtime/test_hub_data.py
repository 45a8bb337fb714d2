"""GLUE as `datasets` brings it: from a hub on this machine, and from its cache when there is no hub any more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hub_stand_in import Repository, stand_in

N_ROWS = {"train": 200, "validation": 40, "test": 10}
CLASSES = {"sst2": ("negative", "positive"), "mnli": ("entailment", "neutral", "contradiction")}
TEXTS = {"sst2": ("sentence",), "mnli": ("premise", "hypothesis")}
SPLITS = {"sst2": {"validation": "validation"}, "mnli": {"validation": "validation_matched"}}
PROGRAM = """
import json, sys
from compressor.errors import CompressorError
from compressor.measurement.judge import check_splits
from compressor.spec.load import load_pipeline
answers = []
for pipeline in json.loads(sys.stdin.read()):
    try:
        data = check_splits(load_pipeline(pipeline))
        rows = [len(data.train), len(data.validation)]
        first, names = data.train[0], data.train.column_names
        answers.append({"rows": rows, "digests": data.digests, "first": first, "columns": names})
    except CompressorError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def parquet(subset: str, split: str) -> bytes:
    """As the hub has it: labels as ids with names, and -1 where they are secret."""
    names = CLASSES[subset]
    rows = {column: [f"{column} {i} of {split}" for i in range(N_ROWS[split])] for column in TEXTS[subset]}
    if split == "validation":
        for column in TEXTS[subset]:
            rows[column][0] = f"{column} 7 of train"  # GLUE has some of these
    labels = [-1 if split == "test" else i % len(names) for i in range(N_ROWS[split])]
    types: dict[str, Any] = dict.fromkeys(TEXTS[subset], Value("string"))
    features = Features(types | {"label": ClassLabel(names=list(names)), "idx": Value("int32")})
    made = Dataset.from_dict({**rows, "label": labels, "idx": list(range(len(labels)))}, features=features)
    file = BytesIO()
    made.to_parquet(file)
    return file.getvalue()


def repository() -> Repository:
    files, lines = {}, ["---", "configs:"]
    for subset in CLASSES:
        lines += [f"- config_name: {subset}", "  data_files:"]
        for split in N_ROWS:
            name = SPLITS[subset].get(split, split)
            lines += [f"  - split: {name}", f"    path: {subset}/{name}-*"]
            files[f"{subset}/{name}-00000-of-00001.parquet"] = parquet(subset, split)
    made = Repository()
    made.add({**files, "README.md": "\n".join([*lines, "---", "# GLUE"]).encode()})
    return made


def pipeline(subset: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": 1,
        "name": "glue",
        "model": {"task": "sequence-classification", "path": "nowhere", "labels": list(CLASSES[subset])},
        "data": data,
        "stages": [{"id": "teacher", "stage": "finetune"}],
        "workloads": [{"id": "rows", "from_data": True}],
    }


SHIPPED = {
    "train": {"hub": "nyu-mll/glue", "subset": "sst2", "split": "train[2%:]"},
    "validation": {"hub": "nyu-mll/glue", "subset": "sst2", "split": "train[:2%]"},
    "test": {"hub": "nyu-mll/glue", "subset": "sst2", "split": "validation"},
    "columns": {"text": "sentence"},
    "leaks": "drop",
}
WRONG = {**SHIPPED, "train": {**SHIPPED["train"], "split": "trian"}}
PIPELINES = [
    pipeline("sst2", {"glue": "sst2"}),
    pipeline("mnli", {"glue": "mnli"}),
    pipeline("sst2", SHIPPED),
    pipeline("sst2", {**SHIPPED, "leaks": "refuse"}),
    pipeline("sst2", WRONG),
    pipeline("sst2", {split: {"hub": "organisation/notes"} for split in ("train", "validation", "test")}),
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Any]]]:
    """What a process says that reaches a hub, and one after it that finds none."""
    home = tmp_path_factory.mktemp("home")

    def ask(**environment: str) -> list[Any]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "HF_HOME": str(home), **environment},
            input=json.dumps(PIPELINES),
            capture_output=True,
            text=True,
            check=True,
        )
        found: list[Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    with stand_in() as hub:
        hub.repositories["nyu-mll/glue"] = repository()
        hub.repositories["organisation/notes"] = Repository()
        hub.repositories["organisation/notes"].add({"README.md": b"no rows here"})
        online = ask(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
        n_asked = len(hub.asked)
        offline = ask(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
        assert len(hub.asked) == n_asked > 0
    yield {"online": online, "offline": offline}


@pytest.mark.parametrize("where", ["online", "offline"])
def test_glue_by_its_name(answers: dict[str, list[Any]], where: str) -> None:
    sst2, mnli = answers[where][:2]
    assert sst2["rows"] == [189, 10]  # 95 % and 5 % of 200, and one row of train stands in the test split too
    assert sst2["columns"] == ["text", "label"] and sst2["first"] == {"text": "sentence 0 of train", "label": 0}
    assert mnli["rows"] == [189, 10]
    assert mnli["first"] == {"text": "premise 0 of train", "text_pair": "hypothesis 0 of train", "label": 0}


@pytest.mark.parametrize("where", ["online", "offline"])
def test_glue_as_the_shipped_pipelines_write_it(answers: dict[str, list[Any]], where: str) -> None:
    shipped, leaking, wrong = answers[where][2:5]
    assert shipped["rows"] == [195, 4]
    assert "1 row stands both in train and in test" in leaking
    assert wrong.startswith("nyu-mll/glue sst2 trian: ") and "trian" in wrong and "check `subset` and `split`" in wrong


def test_rows_from_the_cache_are_those_from_the_hub(answers: dict[str, list[Any]]) -> None:
    assert [one["digests"] for one in answers["online"][:3]] == [one["digests"] for one in answers["offline"][:3]]


def test_a_repository_without_rows(answers: dict[str, list[Any]]) -> None:
    told = "organisation/notes: the data set has no files that can be read\n  -> give a local file with `path`"
    assert answers["online"][5] == told
