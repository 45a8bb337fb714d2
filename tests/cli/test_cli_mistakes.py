"""A user's mistake gives its message on stderr, exit code 2, nothing on stdout and no traceback."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., "subprocess.CompletedProcess[str]"]

VALID = """\
version: 1
name: job
model: {task: causal-lm, path: models/gpt2}
data: {train: {path: train.txt}, test: {path: test.txt}}
stages:
  - {id: onnx, stage: export}
  - {id: int8, stage: quantize, scheme: w8a8-dynamic}
workloads:
  - {id: prompt, input_tokens: 16}
"""

MISTAKES = {
    "not YAML": (
        "version: [1\nname: x\n",
        "job.yaml:2: not valid YAML: expected ',' or ']', but got ':' (column 5)\n"
        "  -> check the indentation, colons, quotes and brackets in this line and the one before\n",
    ),
    "unknown key": (
        VALID.replace("scheme: w8a8-dynamic", "shceme: w8a8-dynamic"),
        "job.yaml:7: stages.1.shceme: unknown key\n  -> did you mean `scheme`?\n",
    ),
    "wrong type": (
        VALID.replace("input_tokens: 16", "input_tokens: many"),
        "job.yaml:9: workloads.0.input_tokens: must be a whole number, not the text 'many'\n",
    ),
    "chain out of order": (
        VALID.replace(", stage: quantize, scheme: w8a8-dynamic", ", stage: prune, keep: {ffn: 0.5}"),
        "job.yaml:7: stages.1: `int8` (prune) needs a torch checkpoint, but `onnx` (export) leaves onnx\n"
        "  -> write `from: model`, the last torch checkpoint before it\n",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_pipeline(command: Command, tmp_path: Path, mistake: str) -> None:
    text, message = MISTAKES[mistake]
    (tmp_path / "job.yaml").write_text(text)
    done = command("validate", "job.yaml")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_a_missing_pipeline(command: Command) -> None:
    done = command("validate", "job.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("job.yaml: no such file\n  -> give the path of a YAML file, such as pipelines/smoke.yaml\n")


def test_a_wrong_override(command: Command, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(VALID)
    done = command("validate", "job.yaml", "--set", "stages.int8.shceme=w4")
    assert done.returncode == 2
    assert done.stderr == "job.yaml: stages.1.shceme: unknown key\n  -> did you mean `scheme`?\n"


def test_all_mistakes_as_json(command: Command, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(VALID.replace("name: job", "name: 7").replace("input_tokens: 16", "rows: 1"))
    done = command("validate", "job.yaml", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 2 and told["valid"] is False
    assert [(problem["path"], problem["line"]) for problem in told["problems"]] == [("name", 2), ("workloads.0", 9)]
    assert done.stderr.count("job.yaml:") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "."], "run.json: no run here\n  -> compressor run PIPELINE --out RUN\n"),
        (["clean", "."], "run.json: no run here\n  -> compressor run PIPELINE --out RUN\n"),
        (["report", "."], "report.json: no report here\n  -> compressor run PIPELINE --out RUN\n"),
        (["inspect", "nothing"], "nothing: no such checkpoint folder\n  -> check the path\n"),
        (
            ["predict", "nothing"],
            "no text was given: stdin is empty\n  -> give texts as arguments, or one a line on stdin\n",
        ),
        (
            ["measure", "nothing", "--data", "rows.jsonl", "--column", "text"],
            "--column 'text' is not of the form TASK=FILE\n  -> such as --column text=sentence\n",
        ),
        (["energy", "calibrate"], "no reading was given\n  -> compressor energy calibrate --idle-w 21.5 --full-w 64\n"),
    ],
)  # fmt: skip
def test_what_is_not_there(command: Command, arguments: list[str], message: str) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_an_energy_file_without_records_is_a_failure(command: Command, tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text("{}")
    done = command("energy", "verify", "empty.json")
    assert (done.returncode, done.stderr) == (1, "empty.json: holds no energy-result/1 record\n")


@pytest.mark.parametrize("arguments", [["frobnicate"], ["validate"], ["validate", "job.yaml", "--frob"], ["energy"]])
def test_words_that_are_no_command(command: Command, arguments: list[str]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert "Usage: compressor" in done.stdout + done.stderr and "Traceback" not in done.stderr
