"""Workers and sessions: real ONNX workers, a made-up meter, and deaths at bad moments."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from tiny_judgements import decoder_pipeline, encoder_pipeline

from compressor import energy
from compressor.checkpoints.store import Checkpoint
from compressor.data.splits import open_test_data
from compressor.data.tokenize import load_tokenizer
from compressor.energy import Domain, Probe, Provenance, Quantity, Sample, Scope, Source
from compressor.errors import ProvenanceError, UserError
from compressor.measurement.costs import measurement_of
from compressor.measurement.inputs import PreparedWorkload, output_lengths, prepare_workload
from compressor.measurement.profiles import Profile
from compressor.measurement.session import TWIN, Session, check_energy_is_measurable, find_meters, run_sessions
from compressor.measurement.worker import is_steady
from compressor.measurement.workers import Job, WorkerDied, WorkerProcess
from compressor.schema.events import Progress
from compressor.schema.report import Failure
from compressor.spec.evaluation import Workload
from compressor.spec.pipeline import Pipeline
from compressor.spec.tasks import TASKS

TINY = Profile("tiny", 3, 3, 0.05, 0.0, 0.01, 3)


class SteadyPower:
    """A counter of a machine that always draws 20 W, in microjoules, updated every 10 µs."""

    name = "steady"
    label = "steady"
    watts = 20

    def __init__(self, provenance: Provenance = Provenance.DEVICE_COUNTER) -> None:
        from fractions import Fraction

        self.domain = Domain(
            id="steady:0",
            scope=Scope.CPU_PACKAGE,
            provenance=provenance,
            quantity=Quantity.ENERGY,
            unit=Fraction(1, 1_000_000),
            period_s=0.00001,
            ceiling_w=1000.0,
        )

    def probe(self) -> Probe:
        return Probe("ok", "made up")

    def domains(self) -> tuple[Domain, ...]:
        return (self.domain,)

    def read(self) -> tuple[Sample, ...]:
        now = time.monotonic_ns()
        return (Sample(self.domain.id, now, now * self.watts // 1000),)


def job(checkpoint: Checkpoint, variant: str, candidate: str, threads: int) -> Job:
    return Job(candidate, checkpoint.path, variant, threads, "CPUExecutionProvider", {})


def prepared(pipeline: Pipeline, checkpoint: Checkpoint, folder: Path, workload: Workload) -> PreparedWorkload:
    task = TASKS[pipeline.model.task]
    test = open_test_data(pipeline.data, task, None)
    return prepare_workload(workload, test.rows, load_tokenizer(checkpoint.path), task, 32, folder)


def sessions_of(
    checkpoint: Checkpoint,
    work: PreparedWorkload,
    folder: Path,
    *,
    meters: Sequence[Source] = (),
    watch: Callable[[Progress], None] = lambda event: None,
) -> tuple[list[Session], list[Failure]]:
    """Measure `base` (fp32) and `int8` of an ONNX checkpoint on one workload."""
    names = {"base": "onnx-fp32", "int8": "onnx-w8a8-dynamic"}
    return run_sessions(
        {id_: partial(job, checkpoint, variant, id_) for id_, variant in names.items()},
        [(work, 1, list(names))],
        baseline="base",
        profile=TINY,
        seed=0,
        name="test",
        meters=meters,
        workdir=folder,
        emit=watch,  # type: ignore[arg-type]
    )


# Workers -------------------------------------------------------------------------------------------------------------


def test_an_onnx_worker_imports_no_torch_and_stops_between_its_turns(bert: Checkpoint, tmp_path: Path) -> None:
    with WorkerProcess(job(bert, "onnx-fp32", "base", 1), tmp_path / "log") as worker:
        worker.wait_until_ready()
        assert worker.ask("about")["has_torch"] is False
        process = psutil.Process(worker.pid)
        worker.pause()
        assert process.status() == psutil.STATUS_STOPPED
        worker.resume()
        assert worker.ask("about")["peak_memory_bytes"] > 10e6
    assert not process.is_running()


def test_a_torch_worker_does_import_torch(bert: Checkpoint, tmp_path: Path) -> None:
    """So that the test above can fail."""
    with WorkerProcess(job(bert, "torch-fp32", "teacher", 1), tmp_path / "log") as worker:
        worker.wait_until_ready()
        assert worker.ask("about")["has_torch"] is True


def test_a_worker_that_cannot_open_its_candidate_says_why(bert: Checkpoint, tmp_path: Path) -> None:
    text = r"q4: CheckpointError: .*no variant 'onnx-w4' here; there are: torch-fp32"
    absent = job(bert, "onnx-w4", "q4", 1)
    with WorkerProcess(absent, tmp_path / "log") as worker, pytest.raises(WorkerDied, match=text):
        worker.wait_until_ready()


def test_a_killed_worker_is_named_with_its_signal(bert: Checkpoint, tmp_path: Path) -> None:
    with WorkerProcess(job(bert, "onnx-fp32", "base", 1), tmp_path / "log") as worker:
        worker.wait_until_ready()
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerDied, match="base: the measuring worker was killed by SIGKILL"):
            worker.ask("about")


def test_a_bug_in_a_worker_leaves_its_last_words(bert: Checkpoint, tmp_path: Path) -> None:
    with WorkerProcess(job(bert, "onnx-fp32", "base", 1), tmp_path / "log") as worker:
        worker.wait_until_ready()
        with pytest.raises(WorkerDied, match=r"ended with exit status 1: Traceback(.|\n)*KeyError: 'dance'"):
            worker.ask("dance")


@pytest.mark.parametrize(
    ("periods", "steady"),
    [([1.0, 1.0], False), ([5.0, 1.0, 1.01, 1.015], True), ([1.0, 1.0, 1.03], False), ([1.0, 1.0, 1.0, 1.5], False)],
)
def test_steady_is_three_periods_within_two_per_cent(periods: list[float], steady: bool) -> None:
    assert is_steady(periods) is steady


# Sessions ------------------------------------------------------------------------------------------------------------


def test_measured_joules_follow_the_meter(bert: Checkpoint, era_files: dict[str, Path], tmp_path: Path) -> None:
    """At a constant 20 W, a window's joules are 20 x its seconds, and they are shared out over its tokens."""
    work = prepared(encoder_pipeline(era_files), bert, tmp_path, Workload(id="rows", batch=8, from_data=True, rows=16))
    meter = SteadyPower()
    (session,), failures = sessions_of(bert, work, tmp_path, meters=[Source(meter, meter.domains())])
    assert failures == []
    row = measurement_of("int8", session, "forward", baseline="base", source="base", profile=TINY, seed=0)
    assert row.energy.result is not None and row.energy.result["kind"] == "measured"
    assert isinstance(energy.verify(row.energy.result), energy.MeasuredEnergy)
    turns = [turn for taken in session.runs["int8"].turns["forward"] for turn in taken]
    joules = row.energy.result["energy_gross_j"]
    assert joules == pytest.approx(20 * row.energy.result["wall_s"], rel=1e-3)
    n_tokens = sum(turn.passes * work.tokens for turn in turns)
    assert row.energy.figures["j_per_input_token"] == pytest.approx(joules / n_tokens)
    assert not any(key.startswith("est_") for key in row.energy.figures)
    assert row.energy_ratio is not None and row.energy_ratio.against == "base"
    assert session.load is not None
    assert row.valid == session.load.is_quiet


def test_decode_joules_are_a_slope(llama: Checkpoint, sotu_text: dict[str, Path], tmp_path: Path) -> None:
    workload = Workload(id="chat", batch=1, input_tokens=8, output_tokens=24)
    work = prepared(decoder_pipeline(sotu_text), llama, tmp_path, workload)
    assert work.output_tokens == (6, 12, 24)
    meter = SteadyPower()
    (session,), _ = sessions_of(llama, work, tmp_path, meters=[Source(meter, meter.domains())])
    row = measurement_of("base", session, "decode", baseline="base", source=None, profile=TINY, seed=0)
    slopes = []
    for taken in session.runs["base"].turns["decode"]:
        joules = [turn.energy.energy_gross_j / turn.passes for turn in taken]  # type: ignore[union-attr]
        slopes.append(np.polyfit([turn.n_out for turn in taken], joules, 1)[0])
    assert row.energy.figures["j_per_generated_token"] == pytest.approx(np.mean(slopes))
    assert "j_per_input_token" not in row.energy.figures


def test_a_worker_that_dies_in_mid_session_costs_the_others_nothing(
    bert: Checkpoint, era_files: dict[str, Path], tmp_path: Path
) -> None:
    work = prepared(encoder_pipeline(era_files), bert, tmp_path, Workload(id="rows", batch=8, from_data=True, rows=16))

    def kill_int8(event: Progress) -> None:
        if event.done == 2:
            workers = [one for one in psutil.Process().children() if "compressor.measurement.worker" in one.cmdline()]
            workers[1].kill()  # the second one started

    (session,), failures = sessions_of(bert, work, tmp_path, watch=kill_int8)
    assert [failure.where for failure in failures] == ["int8"]
    assert "killed by SIGKILL" in failures[0].text
    assert set(session.runs) == {"base", TWIN}
    row = measurement_of("base", session, "forward", baseline="base", source=None, profile=TINY, seed=0)
    assert row.rounds == 3


def test_the_order_is_drawn_from_the_seed(bert: Checkpoint, era_files: dict[str, Path], tmp_path: Path) -> None:
    work = prepared(encoder_pipeline(era_files), bert, tmp_path, Workload(id="rows", batch=8, from_data=True, rows=8))
    (one,), _ = sessions_of(bert, work, tmp_path)
    (two,), _ = sessions_of(bert, work, tmp_path)
    assert one.order == two.order
    assert all(sorted(block) == sorted(["base", "int8", TWIN]) for block in one.order)


# Inputs --------------------------------------------------------------------------------------------------------------


def test_fixed_length_rows_have_exactly_that_length(
    bert: Checkpoint, era_files: dict[str, Path], tmp_path: Path
) -> None:
    from compressor.measurement.arrays import load_batches

    work = prepared(encoder_pipeline(era_files), bert, tmp_path, Workload(id="short", batch=3, input_tokens=16))
    batches = load_batches(work.path)
    tokenizer = load_tokenizer(bert.path)
    assert [batch["input_ids"].shape for batch in batches] == [(3, 16)] * 4
    assert work.tokens == 4 * 3 * 16 and work.requests == 12 and work.padding_ratio == 0
    for batch in batches:
        assert (batch["input_ids"][:, 0] == tokenizer.cls_token_id).all()
        assert (batch["input_ids"][:, -1] == tokenizer.sep_token_id).all()
        assert set(batch) == {"input_ids", "attention_mask", "token_type_ids"}


def test_a_decoders_prompts_are_padded_on_the_left(
    llama: Checkpoint, sotu_text: dict[str, Path], tmp_path: Path
) -> None:
    from compressor.measurement.arrays import load_batches

    pipeline = decoder_pipeline(sotu_text)
    work = prepared(pipeline, llama, tmp_path, Workload(id="rows", batch=2, from_data=True, rows=2))
    (batch,) = load_batches(work.path)
    assert (batch["attention_mask"][:, -1] == 1).all()


def test_too_little_text_for_a_workload(bert: Checkpoint, era_files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one batch of 5000 rows takes 70000") as caught:
        prepared(encoder_pipeline(era_files), bert, tmp_path, Workload(id="huge", batch=5000, input_tokens=16))
    assert caught.value.where == "workloads.huge"
    assert caught.value.hint == "ask for fewer input_tokens or a smaller batch"


def test_lengths_of_a_slope() -> None:
    assert output_lengths(64) == (16, 32, 64)
    assert output_lengths(4) == (2, 4)
    with pytest.raises(UserError, match="2 is too few to fit a cost per token"):
        output_lengths(2)


# Energy that can be had ----------------------------------------------------------------------------------------------


def test_a_joule_goal_on_estimates_is_refused_before_any_work(era_files: dict[str, Path]) -> None:
    if find_meters():
        pytest.skip("this machine has a meter")
    goals = [{"metric": "accuracy", "min_retained": 0.9}, {"metric": "j_per_token", "max_ratio": 0.5}]
    with pytest.raises(UserError, match="a goal in joules, but no meter here can measure them") as caught:
        check_energy_is_measurable(encoder_pipeline(era_files, goals=goals))
    assert caught.value.exit_code == 2
    assert caught.value.where == "goals.1.metric"
    assert "cpu_s_per_token" in str(caught.value)
    check_energy_is_measurable(
        encoder_pipeline(era_files, goals=goals, energy={"profile": "smoke", "accept": "estimated"})
    )


def test_measured_energy_can_be_required(era_files: dict[str, Path]) -> None:
    if find_meters():
        pytest.skip("this machine has a meter")
    with pytest.raises(ProvenanceError, match="measured energy is required") as caught:
        check_energy_is_measurable(encoder_pipeline(era_files), require="measured")
    assert caught.value.exit_code == 3
