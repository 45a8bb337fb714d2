"""A stage in a child process: both ends of the conversation.

The parent writes a job file and the data beside it, starts `python -m compressor.stages.child JOB.json`, and reads
events as JSON lines until the child has sealed the folder or failed. The child's standard input is a pipe that the
parent never writes to: when the parent dies, however it dies, the pipe closes and the child ends itself.

Where a stage asks for several processes, a launcher starts that many children with the same job. All of them see the
pipe; the first one tells events and writes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import psutil
import yaml
from pydantic import TypeAdapter

from compressor import energy, errors
from compressor.checkpoints.store import Checkpoint, open_checkpoint
from compressor.data.splits import StageData
from compressor.errors import CompressorError, StageError, UserError
from compressor.schema.events import Emit, from_json
from compressor.spec.evaluation import Target
from compressor.spec.stages import Distill, Finetune, Stage
from compressor.spec.tasks import TASKS
from compressor.stages.context import StageContext, StageInputs

FAILURE = "failure"
LOG = "child.log"
SPLITS = ("train", "validation", "calibration")
STOP_WAIT_S = 10.0

_REBUILT = {
    kind.__name__: kind
    for kind in (
        errors.UserError, errors.DataError, errors.CheckpointError, errors.UnsupportedError, errors.StageError,
        errors.EnergyError, errors.GateError, errors.ParityError, errors.CompressorError,
    )
}  # fmt: skip
"""Errors that a message, a place and a hint make whole."""


@dataclass(frozen=True)
class Job:
    """What the child is to do."""

    config: Stage
    inputs: StageInputs
    out_dir: Path
    ctx: StageContext


def run_in_child(config: Stage, inputs: StageInputs, out_dir: Path, ctx: StageContext) -> Checkpoint:
    """Do a stage in a process of its own.

    Raises:
        CompressorError: the one that the child raised, with its own type and text.
        StageError: the child was killed.
        RuntimeError: the child met a bug; holds its traceback.
        KeyboardInterrupt: passed on, once the child is gone.
    """
    command = command_of(config, write_job(Job(config, inputs, out_dir, ctx)), ctx.target.device)
    log_path = ctx.workdir / LOG
    with log_path.open("w") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # the terminal's Ctrl-C comes to us alone, and we end the child
        )
        try:
            failure = _listen(child, ctx.emit)
            child.wait()
        finally:
            _end(child)  # and all its own, so that nothing of it runs when something is measured
    if failure is not None:
        raise rebuild_error(failure)
    if child.returncode != 0:
        raise _unexplained(child.returncode, config.id, log_path)
    return open_checkpoint(out_dir, verify=False)


def command_of(config: Stage, job_path: Path, device: Literal["cpu", "cuda"]) -> list[str]:
    """How to start the child, or as many as the stage's `training` asks for."""
    child = ["compressor.stages.child", str(job_path)]
    training = config.training if isinstance(config, Finetune | Distill) else None
    if training is not None and training.config is not None:
        _check_accelerate(Path(training.config), device)
        launcher = ["accelerate.commands.launch", "--config_file", training.config, "--module"]
        return [sys.executable, "-m", *launcher, *child]
    if training is not None and training.processes > 1:
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(training.processes), "--module"]
        return [sys.executable, "-m", *launcher, *child]
    return [sys.executable, "-m", *child]


def _check_accelerate(path: Path, device: Literal["cpu", "cuda"]) -> None:
    """Refuse a config that Accelerate would not follow, and say nothing."""
    if not path.is_file():
        raise UserError(f"no such file: {path}", where="training.config", hint="make one: accelerate config")
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if values.get("distributed_type") == "FSDP" and device == "cpu":
        raise UserError(
            "Accelerate shares weights out among GPUs only; on CPUs each process would have all of them",
            where=f"training.config: {path}",
            hint=f"write `training: {{processes: {values.get('num_processes', 2)}}}` in its place",
        )
    is_cpu = values.get("distributed_type") in ("MULTI_CPU", "NO") and not values.get("mpirun_config")
    if is_cpu and values.get("num_processes", 1) > 1:
        raise UserError(
            f"Accelerate starts {values['num_processes']} processes on CPUs only through mpirun, and one without it",
            where=f"training.config: {path}",
            hint=f"write `training: {{processes: {values['num_processes']}}}` in its place",
        )


def write_job(job: Job) -> Path:
    """Write the job and its rows into the working folder; gives the job file's path."""
    ctx = job.ctx
    ctx.workdir.mkdir(parents=True, exist_ok=True)
    rows: dict[str, str] = {}
    for split in SPLITS:
        dataset = getattr(ctx.data, split)
        if dataset is not None:
            path = ctx.workdir / f"{split}.parquet"
            dataset.to_parquet(path)
            rows[split] = str(path)
    values = {
        "config": job.config.model_dump(mode="json", by_alias=True),
        "source": str(job.inputs.source.path),
        "teacher": str(job.inputs.teacher.path) if job.inputs.teacher is not None else None,
        "out_dir": str(job.out_dir),
        "rows": rows,
        "digests": dict(ctx.data.digests),
        "task": ctx.task.name,
        "labels": ctx.labels,
        "max_tokens": ctx.max_tokens,
        "calibration_rows": ctx.calibration_rows,
        "seed": ctx.seed,
        "target": ctx.target.model_dump(mode="json"),
        "fingerprint": ctx.fingerprint,
        "versions": dict(ctx.versions),
        "workdir": str(ctx.workdir),
        "cache_dir": str(ctx.cache_dir) if ctx.cache_dir is not None else None,
        "calibration": asdict(ctx.calibration) if ctx.calibration is not None else None,
    }
    path = ctx.workdir / "job.json"
    path.write_text(json.dumps(values, indent=1))
    return path


def read_job(path: Path, emit: Emit) -> Job:
    """The job that `write_job` wrote; its events go to `emit`."""
    values = json.loads(path.read_text())
    rows = {split: _read_rows(name) for split, name in values["rows"].items()}
    teacher = values["teacher"]
    cache_dir, calibration = values["cache_dir"], values["calibration"]
    return Job(
        config=TypeAdapter(Stage).validate_python(values["config"]),
        inputs=StageInputs(
            source=open_checkpoint(values["source"], verify=False),
            teacher=open_checkpoint(teacher, verify=False) if teacher is not None else None,
        ),
        out_dir=Path(values["out_dir"]),
        ctx=StageContext(
            data=StageData(
                train=rows.get("train"),
                validation=rows.get("validation"),
                calibration=rows.get("calibration"),
                digests=values["digests"],
            ),
            task=TASKS[values["task"]],
            labels=tuple(values["labels"]) if values["labels"] is not None else None,
            max_tokens=values["max_tokens"],
            calibration_rows=values["calibration_rows"],
            seed=values["seed"],
            target=Target.model_validate(values["target"]),
            fingerprint=values["fingerprint"],
            versions=values["versions"],
            emit=emit,
            workdir=Path(values["workdir"]),
            cache_dir=Path(cache_dir) if cache_dir is not None else None,
            calibration=energy.Calibration(**calibration) if calibration is not None else None,
        ),
    )


def failure_line(error: CompressorError) -> str:
    """An error as the child says it."""
    kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _REBUILT)
    return json.dumps({FAILURE: kind, "message": error.message, "where": error.where, "hint": error.hint})


def rebuild_error(values: dict[str, Any]) -> CompressorError:
    """The error that `failure_line` wrote."""
    return _REBUILT[values[FAILURE]](values["message"], where=values["where"], hint=values["hint"])


def _read_rows(name: str) -> datasets.Dataset:
    dataset = datasets.Dataset.from_parquet(name, keep_in_memory=True, cache_dir=str(Path(name).parent / "arrow"))
    assert isinstance(dataset, datasets.Dataset)
    return dataset


def _listen(child: subprocess.Popen[str], emit: Emit) -> dict[str, Any] | None:
    """Pass the child's events on until it closes its output; its failure, if it told one."""
    failure: dict[str, Any] | None = None
    assert child.stdout is not None
    for line in child.stdout:
        values = json.loads(line)
        if FAILURE in values:
            failure = values
        else:
            emit(from_json(line))
    return failure


def _end(child: subprocess.Popen[str]) -> None:
    """Make sure that the child is gone, and those that it started."""
    family = _descendants(child)
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family)
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def _descendants(child: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(child.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _unexplained(returncode: int, stage: str, log_path: Path) -> Exception:
    if returncode < 0:
        name = signal.Signals(-returncode).name
        return StageError(
            f"the training process was ended by {name}",
            where=f"stage {stage}",
            hint="if memory ran out, lower training.batch_size or data.max_tokens; run again to go on from the last "
            f"checkpoint (its log: {log_path})",
        )
    return RuntimeError(f"the training process of stage {stage} met a bug:{os.linesep}{log_path.read_text()}")
