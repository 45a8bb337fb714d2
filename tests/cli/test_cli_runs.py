"""Commands on what lies on disk: reports, runs, checkpoints."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.checkpoints.manifest import Record, Variant
from compressor.checkpoints.store import seal
from compressor.pipeline.layout import RunState, StepState
from compressor.schema.report import Report, write_report

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with one finished stage, an old one beside it, and a scratch export."""
    run = tmp_path / "run"
    for folder, size in (
        ("stages/teacher-01234567", 1000),
        ("stages/teacher-old", 300),
        ("scratch/teacher@onnx-1", 20),
    ):
        (run / folder).mkdir(parents=True)
        (run / folder / "file").write_bytes(b"x" * size)
    steps = [
        StepState("teacher", "finetune", False, status="finished", folder="stages/teacher-01234567"),
        StepState("student", "distill", False, status="failed", error="student: diverged at step 3"),
    ]
    RunState(name="job", steps=steps, pipeline={}, created="2026-01-01", status="failed").write(run)
    report = Report(
        name="job", created="2026-01-01T00:00:00+00:00", metadata={}, pipeline={}, environment={}, data={}, model="[m]",
        baseline="teacher", selected=None, selected_reason="nothing was measured", candidates=(), goals=(),
        verdicts=(), stage_costs=(), failures=(),
    )  # fmt: skip
    write_report(report, run / "report.json")
    return run


def test_status_tells_each_step_and_what_failed(command: Command, run_dir: Path) -> None:
    done = command("status", "run")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[0].strip() == "job: failed"
    assert lines[2].split() == ["teacher", "finetune", "finished", "0.0", "MB", "stages/teacher-01234567"]
    assert lines[3].split() == ["student", "distill", "failed", "-", "-"]
    assert lines[4].strip() == "student: student: diverged at step 3"
    told = json.loads(command("status", "run", "--json").stdout)
    assert [(step["id"], step["size_bytes"]) for step in told["steps"]] == [("teacher", 1000), ("student", None)]


def test_clean_keeps_what_the_run_needs(command: Command, run_dir: Path) -> None:
    assert json.loads(command("clean", "run", "--json").stdout) == {"freed_bytes": 320}
    assert sorted(path.name for path in run_dir.rglob("*") if path.is_dir()) == ["stages", "teacher-01234567"]
    assert command("clean", "run").stdout == "run: 0.0 MB freed\n"


def test_a_report_as_tables_json_and_markdown(command: Command, run_dir: Path) -> None:
    assert "nothing was measured" in command("report", "run").stdout
    assert json.loads(command("report", "run", "--json").stdout)["schema"] == "compressor-report/1"
    done = command("report", "run/report.json", "--markdown", "report.md")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "written: report.md\n")
    assert (run_dir.parent / "report.md").read_text().startswith("# job\n")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    record = Record(
        stage="teacher", kind="finetune", fingerprint="f" * 64, config={}, inputs={"source": "a" * 64}, data={}, seed=0,
        versions={}, realised={}, wall_s=12.0, cpu_s=20.0, energy=None, energy_reason="not metered", host={},
        created="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    variant = Variant(
        id="torch-fp32", path="model.safetensors", runtime="torch", scheme="fp32", stage="teacher", parameters=1234567,
        size_bytes=7,
    )  # fmt: skip
    seal(
        folder, task="sequence-classification", model_type="bert", architecture="BertForSequenceClassification",
        labels=("[no]", "yes"), variants=[variant], structure=None, record=record,
    )  # fmt: skip
    return folder


def test_inspect_shows_what_a_checkpoint_is(command: Command, checkpoint: Path) -> None:
    done = command("inspect", "checkpoint")
    assert done.returncode == 0
    for words in (
        "BertForSequenceClassification",
        "[no], yes",
        "1,234,567",
        "source aaaaaaaaaaaa",
        "12 s, 20 CPU-seconds",
    ):
        assert words in done.stdout
    assert "all as the manifest says" in done.stdout
    assert "not verified" in command("inspect", "checkpoint", "--no-verify").stdout
    assert json.loads(command("inspect", "checkpoint", "--json").stdout)["content"]["model_type"] == "bert"


def test_inspect_refuses_a_changed_file(command: Command, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"wEights")
    done = command("inspect", "checkpoint")
    assert done.returncode == 2 and "model.safetensors" in done.stderr and "Traceback" not in done.stderr


def test_predict_labels_texts_in_their_order(command: Command, tiny_bert_dir: Path) -> None:
    done = command("predict", str(tiny_bert_dir), "--json", stdin="A short text.\n\nAnother [MASK] text.\n")
    answers = json.loads(done.stdout)
    assert [answer["text"] for answer in answers] == ["A short text.", "Another [MASK] text."]
    assert all(answer["label"].startswith("LABEL_") and 1 / 3 <= answer["score"] <= 1 for answer in answers)


def test_measure_holds_a_model_against_itself(
    command: Command, tiny_bert_dir: Path, era_files: dict[str, Path]
) -> None:
    rows, options = str(era_files["test"]), ["--profile", "smoke", "--threads", "1", "--json", "--quiet"]
    done = command("measure", str(tiny_bert_dir), "--data", rows, "--batch", "4", *options)
    assert done.returncode == 0, done.stderr
    (candidate,) = json.loads(done.stdout)["candidates"]
    assert candidate["runtime"] == "torch" and candidate["quality"][0]["n"] == 300
    assert [row["batch"] for row in candidate["measurements"]] == [4]


def test_generate_continues_prompts(command: Command, tiny_gpt2_dir: Path) -> None:
    done = command("generate", str(tiny_gpt2_dir), "The state of", "--max-new-tokens", "3", "--json")
    (answer,) = json.loads(done.stdout)
    assert answer["prompt"] == "The state of" and isinstance(answer["text"], str)
