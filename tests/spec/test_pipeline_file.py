"""Files that are no pipeline at all, and YAML that is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.errors import CompressorError, UserError
from compressor.spec.document import parse_scalar
from compressor.spec.load import load_pipeline


def message_of(path: str) -> str:
    with pytest.raises(UserError) as caught:
        load_pipeline(path)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_valid_file_gives_the_typed_pipeline(tmp_path: Path, valid: str) -> None:
    (tmp_path / "job.yaml").write_text(valid)
    pipeline = load_pipeline(tmp_path / "job.yaml")
    assert [stage.id for stage in pipeline.stages] == ["teacher", "student", "onnx", "int8"]
    assert pipeline.stages[1].training.epochs == 2.0  # type: ignore[union-attr]


def test_a_missing_file_names_the_pipelines_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.yaml").touch()
    Path("also.yml").touch()
    assert message_of("her.yaml") == "her.yaml: no such file\n  -> there are: also.yml, here.yaml"


def test_a_missing_folder_says_where_paths_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = f"no/job.yaml: no such file\n  -> the folder no is not there either; paths start at {tmp_path}"
    assert message_of("no/job.yaml") == expected


def test_a_folder_names_the_pipelines_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("jobs").mkdir()
    Path("jobs/a.yaml").touch()
    assert message_of("jobs") == "jobs: this is a folder, not a pipeline file\n  -> there are: jobs/a.yaml"


def test_a_binary_file_is_no_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.safetensors").write_bytes(b"\xff\xfe\x00\x80")
    assert message_of("model.safetensors") == (
        "model.safetensors: not a text file in UTF-8\n  -> a pipeline is a YAML file"
    )


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_file(refusal: Callable[..., str], text: str) -> None:
    assert refusal(text) == "job.yaml: the file is empty\n  -> `compressor schema` prints what goes in it"


def test_a_list_is_no_pipeline(refusal: Callable[..., str]) -> None:
    assert refusal("- a\n- b\n") == (
        "job.yaml:1: a pipeline is a mapping of keys to values, and this is not\n"
        "  -> start with `version: 1`; `compressor schema` prints all keys"
    )


def test_a_bracket_left_open(refusal: Callable[..., str]) -> None:
    assert refusal("version: 1\nlabels: [a, b\nname: x\n") == (
        "job.yaml:3: not valid YAML: expected ',' or ']', but got ':' (column 5)\n"
        "  -> check the indentation, colons, quotes and brackets in this line and the one before"
    )


def test_a_tab(refusal: Callable[..., str]) -> None:
    assert refusal("model:\n\ttask: causal-lm\n") == (
        "job.yaml:2: not valid YAML: found character '\\t' that cannot start any token (column 1)\n"
        "  -> YAML is indented with spaces, never with tabs"
    )


def test_a_control_character(refusal: Callable[..., str]) -> None:
    assert refusal("version: 1\nname: a\x07b\n") == (
        "job.yaml:2: not valid YAML: a character that YAML does not allow\n  -> remove that character"
    )


def test_two_documents_in_one_file(refusal: Callable[..., str]) -> None:
    message = refusal("version: 1\n---\nversion: 1\n")
    assert message.startswith("job.yaml:2: not valid YAML: but found another document")


def test_an_alias_inside_itself(refusal: Callable[..., str]) -> None:
    assert refusal("metadata: &m [*m]\n").startswith("job.yaml:1: not valid YAML: an alias contains itself")


def test_a_tag_of_another_program(refusal: Callable[..., str]) -> None:
    message = refusal("name: !!python/object:os.system x\n")
    assert message.startswith("job.yaml:1: not valid YAML: could not determine a constructor")


def test_a_key_given_twice(changed: Callable[[str, str], str]) -> None:
    assert changed("      epochs: 2\n", "      epochs: 2\n      epochs: 3\n") == (
        "job.yaml:19: stages.1.training.epochs: given twice; the first is in line 18\n  -> keep one of the two"
    )


def test_a_key_that_is_no_word(changed: Callable[[str, str], str]) -> None:
    assert changed("name: job\n", "name: job\nmetadata: {7: x}\n") == (
        'job.yaml:3: metadata: the key 7 is not a word\n  -> put it in quotes if it is meant: "7":'
    )


def test_a_merged_mapping_may_be_overruled(tmp_path: Path, valid: str) -> None:
    anchored = valid.replace("    training:\n", "    training: &long\n")
    merged = anchored.replace("stage: finetune\n", "stage: finetune\n    training: {epochs: 1}\n").replace(
        "  - id: onnx\n",
        "  - id: again\n    stage: finetune\n    training:\n      <<: *long\n      batch_size: 4\n  - id: onnx\n",
    )
    (tmp_path / "job.yaml").write_text(merged)
    again = load_pipeline(tmp_path / "job.yaml").stages[2]
    assert (again.training.epochs, again.training.batch_size) == (2.0, 4)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1.", 1.0), (".5", 0.5), ("-2.5E+3", -2500.0), ("12", 12), ("-3", -3), ("0", 0),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("007", "007"), ("1:30", "1:30"), ("2026-01-01", "2026-01-01"),
        ("e4", "e4"), ("1_000", "1_000"), ("[1, a]", [1, "a"]), ("{a: 1.5}", {"a": 1.5}), ("'3'", "3"),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_scalar(text)
    assert parsed == value and type(parsed) is type(value)


def test_a_mapping_from_python_has_no_lines(valid: str) -> None:
    with pytest.raises(CompressorError) as caught:
        load_pipeline({"version": 1, "nmae": "x"})
    assert str(caught.value).splitlines()[0] == "the pipeline: model: missing"
    assert "the pipeline: nmae: unknown key\n  -> did you mean `name`?" in str(caught.value)
    assert "name: missing" not in str(caught.value)


def test_a_mapping_with_a_value_that_yaml_has_not() -> None:
    with pytest.raises(CompressorError) as caught:
        load_pipeline({"version": 1, "name": Path("x")})
    assert str(caught.value).startswith("the pipeline: cannot be written as JSON: Object of type PosixPath")
