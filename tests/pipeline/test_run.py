"""One whole run, really done on a tiny model, and what happens when it is repeated, changed, stopped or broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import compressor
from compressor.cli.app import build
from compressor.errors import CheckpointError, DataError, InterruptedRunError, UserError
from compressor.integrations.recertify import certify_run
from compressor.pipeline.layout import read_run
from compressor.pipeline.run import RunResult, run
from compressor.schema.certificate import Certificate
from compressor.schema.events import Event, StageFinished, StageSkipped, StageStarted
from compressor.schema.report import read_report

SMOKE = Path("pipelines/smoke.yaml")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(SMOKE, out=tmp_path_factory.mktemp("runs") / "smoke")


@pytest.fixture
def a_copy(smoke: RunResult, tmp_path: Path) -> Path:
    """The finished run, in a folder that a test may damage."""
    return Path(shutil.copytree(smoke.run_dir, tmp_path / "run"))


def made_and_found(events: list[Event]) -> tuple[list[str], list[str]]:
    made = [event.stage for event in events if isinstance(event, StageFinished)]
    return made, [event.stage for event in events if isinstance(event, StageSkipped)]


def test_every_stage_leaves_a_checkpoint_and_the_report_judges_each_candidate(smoke: RunResult) -> None:
    state = read_run(smoke.run_dir)
    assert {step.status for step in state.steps} == {"finished"}
    assert all((smoke.run_dir / str(step.folder) / "compressor.json").is_file() for step in state.steps)
    report = read_report(smoke.run_dir / "report.json")
    assert report == smoke.report
    assert report.failures == ()
    assert all(candidate.quality and candidate.measurements for candidate in report.candidates)
    assert not list(smoke.run_dir.glob("*/*.partial"))


def test_each_candidate_is_smaller_or_equal_after_each_step(smoke: RunResult) -> None:
    assert smoke.report is not None
    parameters = {candidate.stage: candidate.parameters for candidate in smoke.report.candidates}
    assert parameters["pruned@onnx"] < parameters["student@onnx"] < parameters["teacher"]
    sizes = {candidate.id: candidate.size_bytes for candidate in smoke.report.candidates}
    assert sizes["int8"] < sizes["onnx"] and sizes["fp16"] < sizes["onnx"]


def test_a_second_run_finds_everything_done(a_copy: Path) -> None:
    events: list[Event] = []
    before = {step.id: step.digest for step in read_run(a_copy).steps}
    result = run(SMOKE, out=a_copy, until="int8", on_event=events.append)
    made, found = made_and_found(events)
    assert made == []
    assert "teacher" in found and "int8" in found
    assert {stage: checkpoint.digest for stage, checkpoint in result.checkpoints.items()}.items() <= before.items()


def test_a_changed_setting_redoes_only_what_depends_on_it(a_copy: Path) -> None:
    events: list[Event] = []
    run(SMOKE, out=a_copy, overrides=["stages.int8.per_channel=false"], until="int8", on_event=events.append)
    made, found = made_and_found(events)
    assert made == ["int8"]
    assert {"teacher", "student", "pruned", "onnx"} <= set(found)


def test_a_forced_stage_is_done_again_and_gives_the_same_digest(a_copy: Path) -> None:
    events: list[Event] = []
    before = {step.id: step.digest for step in read_run(a_copy).steps}
    result = run(SMOKE, out=a_copy, force=["pruned"], until="pruned", on_event=events.append)
    assert made_and_found(events)[0] == ["pruned"]
    assert result.checkpoints["pruned"].digest == before["pruned"]
    assert list((a_copy / "stages").glob("pruned-*.old1"))


def test_a_run_that_is_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    def stop_at_student(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "student":
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError, match="finished stages are kept") as raised:
        run(SMOKE, out=tmp_path / "run", until="student", on_event=stop_at_student)
    assert raised.value.exit_code == 130
    assert read_run(tmp_path / "run").status == "interrupted"
    events: list[Event] = []
    run(SMOKE, out=tmp_path / "run", until="student", on_event=events.append)
    assert made_and_found(events) == (["student"], ["model", "teacher"])


def test_what_a_method_refuses_names_its_stage(a_copy: Path) -> None:
    overrides = ["data.calibration_rows=1"]
    with pytest.raises(
        DataError, match=r"(?s)^stage pruned: .* are too few to refit .*a larger data\.calibration_rows"
    ):
        run(SMOKE, out=a_copy, until="pruned", overrides=overrides)


def test_a_damaged_checkpoint_is_named_and_nothing_is_done_with_it(a_copy: Path) -> None:
    folder = a_copy / str(read_run(a_copy).step("teacher").folder)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.unlink()
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="corrupt or changed") as raised:
        run(SMOKE, out=a_copy, until="teacher")
    assert str(weights) in str(raised.value)


@pytest.mark.parametrize("how", [{"until": "nothing"}, {"force": ["nothing"]}])
def test_a_stage_that_is_not_there_is_refused_before_any_work(how: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this pipeline has no stage 'nothing'\n  -> its stages are: teacher, student"):
        run(SMOKE, out=tmp_path / "run", **how)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("where", "reason"), [("file", "File exists"), ("file/run", "Not a directory")])
def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path, where: str, reason: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as raised:
        run(SMOKE, out=tmp_path / where)
    assert str(raised.value) == (
        f"{tmp_path / where}: cannot make the folder of the run: {reason}\n"
        "  -> name another with --out: a folder, new or of an earlier run, on a disk that can be written"
    )


def test_objects_in_memory_give_what_files_give(
    smoke: RunResult, tmp_path: Path, era_rows: dict[str, list[dict[str, object]]]
) -> None:
    """The public function, a live model and rows in memory, through two stages."""
    model = compressor.load(smoke.checkpoints["teacher"].path)
    pipeline = {
        "version": 1,
        "name": "in-memory",
        "model": {"path": "replaced", "task": "sequence-classification"},
        "data": {"test": {"path": "replaced"}, "max_tokens": 64},
        "workloads": [{"id": "rows", "from_data": True, "batch": 8, "rows": 32}],
        "stages": [{"id": "onnx", "stage": "export"}],
        "energy": {"profile": "smoke"},
    }
    result = compressor.run(
        pipeline,
        out=tmp_path / "run",
        model=model.module,
        tokenizer=model.tokenizer,
        data=era_rows,
        metrics={"share_of_first_label": lambda predictions, references: float((predictions == 0).mean())},
    )
    assert result.report is not None
    metrics = {quality.metric for quality in result.report.candidate("onnx").quality}
    assert "share_of_first_label" in metrics


def test_a_model_in_memory_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    from torch import nn

    with pytest.raises(UserError, match="a model in memory needs its tokenizer"):
        run(SMOKE, out=tmp_path / "run", model=nn.Linear(1, 1))


def test_the_report_names_the_pipeline_that_ran(smoke: RunResult) -> None:
    report = json.loads((smoke.run_dir / "report.json").read_text())
    assert report["pipeline"]["name"] == "smoke" and report["schema"] == "compressor-report/1"


def test_a_finished_run_is_certified_again_by_what_it_knows_itself(smoke: RunResult) -> None:
    """`compressor certify RUN`: its own baseline, rows and precision; limits where the pipeline has none."""
    assert smoke.report is not None and smoke.report.selected is not None
    limits = ["--max-drop", "accuracy=90", "--rows", "60", "--threads", "1", "--quiet", "--json"]
    result = CliRunner().invoke(build(), ["certify", str(smoke.run_dir), *limits], catch_exceptions=False)
    found = Certificate.model_validate_json(result.stdout)
    assert found.certified, found.reasons
    report = smoke.report
    chosen, baseline = report.candidate(report.selected), report.candidate(report.baseline)
    assert (found.of.checkpoint, found.of.variant) == (chosen.digest, chosen.variant)
    assert found.baseline is not None
    assert (found.baseline.checkpoint, found.baseline.variant) == (baseline.digest, baseline.variant)
    figures = [(one.metric, one.n) for one in found.figures if one.label is None]
    assert figures[0] == ("accuracy", 60) and {n_rows for _, n_rows in figures} == {60}
    with pytest.raises(UserError, match="there is no limit on quality to hold it to"):
        certify_run(smoke.run_dir)
