"""A run's folder: nothing half-made passes for finished, and nothing finished is lost."""

from __future__ import annotations

import multiprocessing as mp
from pathlib import Path

import pytest

from compressor.errors import UserError
from compressor.pipeline.layout import RunState, StepState, partial_folder, read_run, set_aside, stage_folder
from compressor.pipeline.status import clean, status


def a_state() -> RunState:
    steps = [StepState(id="model", kind="source", scratch=False), StepState(id="cut", kind="prune", scratch=False)]
    return RunState(name="job", steps=steps, pipeline={}, created="2026-01-01T00:00:00+00:00")


def test_the_folder_name_carries_stage_and_fingerprint(tmp_path: Path) -> None:
    assert stage_folder(tmp_path, "cut", "0123456789abcdef", scratch=False) == tmp_path / "stages" / "cut-01234567"
    assert stage_folder(tmp_path, "cut@onnx", "0123456789", scratch=True).parent == tmp_path / "scratch"


def test_working_files_survive_a_crash_and_the_half_made_folder_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "stages" / "cut-01234567"
    with pytest.raises(RuntimeError), partial_folder(folder) as (out_dir, workdir):
        (out_dir / "half.bin").write_bytes(b"half")
        (workdir / "step-100").write_text("state")
        raise RuntimeError("the machine died")
    assert not folder.exists()
    with partial_folder(folder) as (out_dir, workdir):
        assert list(out_dir.iterdir()) == []
        assert (workdir / "step-100").read_text() == "state"


def _try_to_work(folder: Path, answer: mp.Queue[str]) -> None:
    try:
        with partial_folder(folder):
            answer.put("worked")
    except UserError as error:
        answer.put(error.message)


def test_two_processes_never_work_on_one_stage(tmp_path: Path) -> None:
    folder = tmp_path / "stages" / "cut-01234567"
    context = mp.get_context("spawn")
    answer: mp.Queue[str] = context.Queue()
    with partial_folder(folder):
        process = context.Process(target=_try_to_work, args=(folder, answer))
        process.start()
        assert answer.get(timeout=60) == "another process is working on this stage"
        process.join()


def test_a_forced_stage_keeps_what_it_made_before(tmp_path: Path) -> None:
    folder = tmp_path / "cut-01234567"
    for content in ("first", "second"):
        folder.mkdir()
        (folder / "file").write_text(content)
        set_aside(folder)
    assert (tmp_path / "cut-01234567.old1" / "file").read_text() == "first"
    assert (tmp_path / "cut-01234567.old2" / "file").read_text() == "second"


def test_the_state_of_a_run_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    state = a_state()
    state.step("cut").status = "failed"
    state.step("cut").error = "diverged"
    state.write(tmp_path)
    assert read_run(tmp_path) == state
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_a_folder_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        read_run(tmp_path)
    assert str(raised.value) == f"{tmp_path}/run.json: no run here\n  -> compressor run PIPELINE --out RUN"


def test_a_broken_run_file_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{\n "name": \n}')
    with pytest.raises(UserError, match=r"run\.json:3: not JSON"):
        read_run(tmp_path)


def test_a_run_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema": "compressor-run/9"}')
    with pytest.raises(UserError, match="written as 'compressor-run/9'; this version reads 'compressor-run/1'"):
        read_run(tmp_path)


def test_clean_keeps_the_checkpoints_of_the_run_and_counts_what_it_frees(tmp_path: Path) -> None:
    state = a_state()
    state.step("cut").folder = "stages/cut-01234567"
    state.write(tmp_path)
    for name, size in {
        "stages/cut-01234567": 10,
        "stages/cut-89abcdef": 20,
        "scratch/cut@onnx-1": 30,
        "cache": 40,
    }.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_bytes(b"x" * size)
    assert [line.size_bytes for line in status(tmp_path).steps] == [None, 10]
    assert clean(tmp_path) == 90
    assert sorted(path.name for path in (tmp_path / "stages").iterdir()) == ["cut-01234567"]


def test_nothing_runs_in_a_run_that_has_stopped() -> None:
    steps = [StepState("model", "source", False, "finished"), StepState("a", "finetune", False, "running")]
    state = RunState(name="r", steps=steps, pipeline={}, created="")
    state.stopped()
    assert (state.status, [step.status for step in steps]) == ("interrupted", ["finished", "interrupted"])
    state.status = "finished"
    state.stopped()
    assert state.status == "finished"
