"""Rows from files, from the hub's cache and from memory; each mistake with its file and row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from compressor.data.rows import dataset_from_memory, load_rows, rows_digest
from compressor.errors import DataError
from compressor.spec.sources import DataSource
from compressor.spec.tasks import TASKS

CLASSIFY, LANGUAGE = TASKS["sequence-classification"], TASKS["causal-lm"]
Read = Callable[..., datasets.Dataset]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """`read("name.csv", "text of the file")`: the rows of that file."""
    monkeypatch.chdir(tmp_path)

    def go(name: str, text: str | bytes, **options: Any) -> datasets.Dataset:
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        values = {"task": CLASSIFY, "columns": {}, "labels": None, **options}
        given = {key: values.pop(key) for key in ("rows", "format", "how_to_get") if key in values}
        return load_rows(DataSource(path=name, **given), **values)

    return go


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    return str(caught.value)


def test_every_format_gives_the_same_rows(read: Read, tmp_path: Path) -> None:
    rows = [{"text": 'he said "a, b"', "label": 1}, {"text": "Ünï", "label": 0}]
    lines = "\n".join(json.dumps(row) for row in rows)
    frames = datasets.Dataset.from_list(rows)
    frames.to_parquet(str(tmp_path / "source.parquet"))
    found = [
        read("a.csv", 'text,label\n"he said ""a, b""",1\nÜnï,0\n'),
        read("a.tsv", 'text\tlabel\nhe said "a, b"\t1\nÜnï\t0\n'),
        read("bom.csv", '\ufefftext,label\n"he said ""a, b""",1\nÜnï,0\n'),
        read("a.jsonl", lines),
        read("a.data", lines, format="jsonl"),
        read("a.parquet", (tmp_path / "source.parquet").read_bytes()),
        dataset_from_memory(rows, CLASSIFY, {}, None),
        dataset_from_memory(frames, CLASSIFY, {}, None),
        dataset_from_memory(frames.to_pandas(), CLASSIFY, {}, None),
    ]
    assert [dataset.to_list() for dataset in found] == [rows] * len(found)
    assert len({rows_digest(dataset) for dataset in found}) == 1


def test_csv_words_stay_what_they_are(read: Read) -> None:
    assert read("a.csv", "text,label\nnull,0\nNA,1\n007,0\n")["text"] == ["null", "NA", "007"]


def test_a_quote_in_a_tsv_is_text_and_joins_no_rows(read: Read) -> None:
    assert read("a.tsv", 'text\tlabel\n"Unclosed\t0\n"q" z\t1\n')["text"] == ['"Unclosed', '"q" z']


def test_a_text_file_is_a_document_to_a_line(read: Read) -> None:
    assert read("a.txt", "one\r\n\n  \ntwo", task=LANGUAGE).to_list() == [{"text": "one"}, {"text": "two"}]


def test_columns_are_renamed_and_others_dropped(read: Read) -> None:
    dataset = read(
        "a.csv", "id,premise,hypothesis,gold\n7,p,h,1\n",
        columns={"text": "premise", "text_pair": "hypothesis", "label": "gold"},
    )  # fmt: skip
    assert dataset.to_list() == [{"text": "p", "text_pair": "h", "label": 1}]


def test_the_first_rows_only(read: Read) -> None:
    assert read("a.csv", "text,label\na,0\nb,1\nc,0\n", rows=2)["text"] == ["a", "b"]
    assert read("a.csv", "text,label\na,0\n", rows=9)["text"] == ["a"]


def test_the_digest_sees_order_and_values(read: Read) -> None:
    texts = ["text,label\na,0\nb,1\n", "text,label\nb,1\na,0\n", "text,label\na,1\nb,1\n"]
    assert len({rows_digest(read(f"{number}.csv", text)) for number, text in enumerate(texts)}) == 3


def test_a_missing_file_says_how_to_get_it(tmp_path: Path) -> None:
    source = DataSource(path="no/such.csv", how_to_get="python eval/fetch.py movies")
    text = refusal(lambda: load_rows(source, task=CLASSIFY, columns={}, labels=None))
    assert text == "no/such.csv: no such file\n  -> python eval/fetch.py movies"
    text = refusal(lambda: load_rows(DataSource(path=str(tmp_path)), task=CLASSIFY, columns={}, labels=None))
    assert text.startswith(f"{tmp_path}: a folder, not a file\n  -> check the path")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.xyz", "x", "a.xyz: cannot tell the format from the ending '.xyz'\n  -> add `format:` with one of csv, tsv"),
        ("a.csv", "", "a.csv: the file is empty"),
        ("a.csv", "text,label\n", "a.csv: no rows"),
        ("a.csv", "text,text\na,b\n", "a.csv: cannot be read as csv: the header names 'text' more than once"),
        ("a.csv", "text,label\na,0\na,b,c\n", "a.csv: cannot be read as csv: "),
        ("a.csv", "sentence,label\na,0\n", "a.csv:1: no column 'text'; the columns are: sentence, label\n"
                                           "  -> say which column it is: data.columns: {text: NAME}"),
        ("a.csv", "text,label\na,0\n ,1\n", "a.csv: row 2: text is empty\n  -> mend or remove the row"),
        ("a.csv", "text,label\na,0\nb,\n", "a.csv: row 2: the label is missing\n  -> mend or remove the row"),
        ("a.csv", "text,label\na,0\nb,good\n", "a.csv: row 2: label 'good' is not the id of a class\n"
                                               "  -> name the classes in the order of their ids: model.labels: [...]"),
        ("a.csv", b"text,label\n\xff\xfe,0\n", "a.csv: cannot be read as csv: 'utf-8' codec can't decode byte 0xff"),
        ("a.jsonl", '{"text": "a", "label": 0}\n{"text": "b", "label":}\n',
         "a.jsonl: cannot be read as jsonl: line 2: Expecting value at column 23\n  -> mend the file, or say its"),
        ("a.jsonl", '{"text": "a"}\n[1]\n', "a.jsonl: cannot be read as jsonl: line 2 is not a JSON object"),
        ("a.jsonl", '{"text": "a", "label": 0}\n{"text": null, "label": 0}\n', "a.jsonl: row 2: text is missing"),
        ("a.jsonl", '{"text": 3, "label": 0}\n', "a.jsonl: row 1: text is 3, not text"),
        ("a.jsonl", '{"text": "a", "label": 0.5}\n', "a.jsonl: row 1: label 0.5 is not the id of a class"),
        ("a.jsonl", '{"text": "a", "label": -1}\n', "a.jsonl: row 1: label -1 is not the id of a class"),
        ("a.parquet", "no parquet", "a.parquet: cannot be read as parquet: Parquet magic bytes not found"),
    ],
)  # fmt: skip
def test_bad_files(read: Read, name: str, text: str | bytes, expected: str) -> None:
    assert refusal(lambda: read(name, text)).startswith(expected)


def test_only_blank_lines_are_no_documents(read: Read) -> None:
    assert refusal(lambda: read("a.txt", "\n\n", task=LANGUAGE)) == "a.txt: no rows: every line is blank"


def test_labels_by_name_and_by_id(read: Read) -> None:
    labels = ("neg", "pos")
    assert read("a.csv", "text,label\na,pos\nb,neg\n", labels=labels)["label"] == [1, 0]
    assert read("b.csv", "text,label\na,1\nb,0\n", labels=labels)["label"] == [1, 0]
    assert dataset_from_memory([{"text": "a", "label": True}], CLASSIFY, {}, labels)["label"] == [1]
    assert dataset_from_memory([{"text": "a", "label": 1.0}], CLASSIFY, {}, labels)["label"] == [1]


@pytest.mark.parametrize("label", ["2", "Pos", "-1"])
def test_a_label_that_the_head_does_not_have(read: Read, label: str) -> None:
    assert refusal(lambda: read("a.csv", f"text,label\na,pos\nb,{label}\n", labels=("neg", "pos"))) == (
        f"a.csv: row 2: label '{label}' is none of the head's 2 classes: 0 neg, 1 pos\n"
        "  -> mend the row, or name the classes in the order of their ids: model.labels: [...]"
    )


def named(names: list[str], ids: list[int]) -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"text": ["x"] * len(ids), "label": ids}, features=features)


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (["neg", "pos"], ("neg", "pos"), [0, 1]),
        (["Neg", "Pos"], ("pos", "neg"), [1, 0]),  # another order: paired by name, whatever the case
        (["neg", "pos"], ("LABEL_0", "LABEL_1"), [0, 1]),  # a head without names takes the ids
        (["0", "1"], ("neg", "pos"), [0, 1]),
        (["neg", "pos"], ("neutral", "pos", "neg"), [2, 1]),
    ],
)
def test_a_data_sets_own_class_names(names: list[str], labels: tuple[str, ...], expected: list[int]) -> None:
    assert dataset_from_memory(named(names, [0, 1]), CLASSIFY, {}, labels)["label"] == expected


def test_class_names_that_do_not_agree_are_refused() -> None:
    assert refusal(lambda: dataset_from_memory(named(["bad", "good"], [0]), CLASSIFY, {}, ("neg", "pos"))) == (
        "data in memory: the data set's classes are 0 bad, 1 good, the head's are 0 neg, 1 pos\n"
        "  -> name the head's classes in the data set's words and order: model.labels: [...]"
    )


def test_objects_that_are_no_rows() -> None:
    assert refusal(lambda: dataset_from_memory(3, CLASSIFY, {}, None)) == (
        "data in memory: rows of type int cannot be read\n"
        "  -> give a datasets.Dataset, a pandas.DataFrame or a list of dicts"
    )
    text = refusal(lambda: dataset_from_memory([{"text": "a", "label": 0}, "b"], CLASSIFY, {}, None, name="train"))
    assert text.startswith("train: row 2 is a str, not a mapping from column to value\n  -> give rows such as")
    assert refusal(lambda: dataset_from_memory([], CLASSIFY, {}, None)).startswith("data in memory: no column 'text'")


def test_a_hub_data_set_without_a_network() -> None:
    source = DataSource(hub="organisation/none-such", subset="a", split="train")
    assert refusal(lambda: load_rows(source, task=CLASSIFY, columns={}, labels=None)) == (
        "organisation/none-such a train: not in the local cache, and the hub cannot be reached\n"
        "  -> connect once (and unset HF_HUB_OFFLINE), or give a local file with `path`"
    )


def test_a_hub_data_set_through_its_own_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is read by the very call that reads the hub; so are its splits."""
    for split in ("train", "test"):
        named(["neg", "pos"], [0, 1]).to_parquet(str(tmp_path / f"{split}.parquet"))
    read = lambda split: load_rows(  # noqa: E731
        DataSource(hub=str(tmp_path), split=split), task=CLASSIFY, columns={}, labels=("neg", "pos")
    )
    assert read("test[:1]").to_list() == [{"text": "x", "label": 0}]
    assert refusal(lambda: read(None)).endswith("has the splits train, test\n  -> choose one with `split:`")
    assert "Unknown split" in refusal(lambda: read("dev"))
    assert refusal(lambda: read("dev")).endswith("check `subset` and `split`")
