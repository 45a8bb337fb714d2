"""Does a teacher help at equal cost? Students of MiniLM-L6 under every preset, and the same students alone.

    python eval/fetch.py minilm movies && python eval/distillation/periods.py
    python eval/distillation/arms.py run [--only movies/3-layers] [--seeds 0 1 2]
    python eval/distillation/arms.py report

Every arm of one student gets the same CPU-seconds for training, and what it needs besides (asking the teacher about
every row, pruning) comes out of them: the number of steps follows from a pilot that times a step of each arm on the
same batches (`pilots` does nothing else, for a quiet machine). `run` writes `eval/results/distillation-arms.json` after
each arm and skips what is there; `report` writes the table beside it. Presets are chosen on validation; the test split
is opened only through `compressor.load`.

One declared test: on movie sentences, the preset with the best validation accuracy (mean of the seeds, 3 layers)
against the same student without a teacher, difference of test accuracy over all seeds with a bootstrap over rows.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import arms_report
import numpy as np
from periods import LABELS as PERIODS
from pydantic import TypeAdapter

import compressor
from compressor.checkpoints.fingerprint import library_versions
from compressor.checkpoints.store import Checkpoint, open_checkpoint
from compressor.data.splits import open_stage_data, open_test_data
from compressor.methods.surgery import drop_layers
from compressor.runtime.torch_models import load_module
from compressor.schema.events import Event, Progress
from compressor.spec.evaluation import Target
from compressor.spec.sources import Data, DataSource, ModelSource, TokenizerSource
from compressor.spec.stages import Stage
from compressor.spec.tasks import TASKS
from compressor.stages.context import StageContext, StageInputs
from compressor.stages.dispatch import run_here
from compressor.stages.source import make_source

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "eval" / "results" / "distillation-arms.json"
WORK = ROOT / "runs" / "distillation-arms"
TASK = TASKS["sequence-classification"]
LABELS = {"movies": ("negative", "positive"), "periods": PERIODS}
TEACHER = {"movies": {"epochs": 2, "learning_rate": 1e-4}, "periods": {"epochs": 3, "learning_rate": 1e-4}}
LEARNING_RATE = {"movies": 2e-4, "periods": 3e-4}
PILOT_STEPS, PILOT_FROM = 32, 8

Stages = tuple[tuple[dict[str, Any], float], ...]
"""Settings of stages that train one after the other, each with its share of the steps."""
ARMS: dict[str, Stages] = {
    "none": (({"stage": "finetune"}, 1.0),),
    "logits": (({"stage": "distill", "preset": "logits"}, 1.0),),
    "distilbert": (({"stage": "distill", "preset": "distilbert"}, 1.0),),
    "tinybert": (
        ({"stage": "distill", "preset": "tinybert"}, 0.5),
        ({"stage": "distill", "preset": "tinybert_prediction"}, 0.5),
    ),
    "minilmv2": (({"stage": "distill", "preset": "minilmv2"}, 1.0),),
    "pruned": (({"stage": "distill", "preset": "logits", "losses": {"hidden": {"weight": 1.0}}}, 1.0),),
}
ALL = tuple(ARMS)


@dataclass(frozen=True)
class Student:
    """One student and what its arms may spend."""

    task: str
    name: str
    budget_cpu_s: float
    arms: tuple[str, ...]
    layers: tuple[int, ...] | None = None  # of the teacher
    keep: float | None = None  # of heads and neurons, for the arm `pruned`
    config: Mapping[str, Any] | None = None  # random weights


HALF_WIDTH = {
    "model_type": "bert", "hidden_size": 192, "num_hidden_layers": 3, "num_attention_heads": 12,
    "intermediate_size": 768, "max_position_embeddings": 512,
}  # fmt: skip
STUDENTS = (
    Student("movies", "3-layers", 54.0, ALL, layers=(1, 3, 5), keep=0.5),
    Student("movies", "2-layers", 40.0, ALL, layers=(2, 5), keep=1 / 3),
    Student("movies", "half-width", 45.0, ("none", "logits", "tinybert", "minilmv2"), config=HALF_WIDTH),
    Student("periods", "3-layers", 54.0, ("none", "logits", "tinybert", "minilmv2"), layers=(1, 3, 5)),
)


class Clock:
    """CPU time of this process at each training step and at both ends of asking the teacher."""

    def __init__(self) -> None:
        self.train: list[float] = []
        self.asked: list[float] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress) and event.task == "train":
            self.train.append(time.process_time())
        elif isinstance(event, Progress) and event.task == "teacher outputs":
            self.asked.append(time.process_time())

    @property
    def asking_cpu_s(self) -> float:
        n = len(self.asked)  # the first event comes after the first batch
        return (self.asked[-1] - self.asked[0]) * n / (n - 1) if n > 1 else 0.0

    @property
    def training_cpu_s(self) -> float:
        n = len(self.train)
        return (self.train[-1] - self.train[0]) * n / (n - 1)

    @property
    def step_cpu_s(self) -> float:
        return (self.train[-1] - self.train[PILOT_FROM]) / (len(self.train) - 1 - PILOT_FROM)


@dataclass
class Bench:
    """One task: its data, its teacher, and where everything lies."""

    task: str
    seed: int
    work: Path

    @property
    def data(self) -> Data:
        folder = ROOT / ".cache" / "data" / self.task
        splits = {split: DataSource(path=str(folder / f"{split}.jsonl")) for split in ("train", "validation", "test")}
        return Data(**splits, calibration_rows=512, max_tokens=64)

    def context(self, folder: Path, clock: Callable[[Event], None], cache: Path | None = None) -> StageContext:
        data = open_stage_data(self.data, TASK, LABELS[self.task], seed=self.seed)
        return StageContext(
            data=replace(data, validation=None),  # each arm keeps its last state and is validated once, at its end
            task=TASK,
            labels=LABELS[self.task],
            max_tokens=64,
            calibration_rows=512,
            seed=self.seed,
            target=Target(threads=1),
            fingerprint="0" * 64,
            versions=library_versions(),
            emit=clock,
            workdir=folder / "work",
            cache_dir=cache,
        )

    def stage(
        self, settings: Mapping[str, Any], inputs: StageInputs, folder: Path, cache: Path | None = None
    ) -> tuple[Checkpoint, Clock]:
        """Do one stage anew."""
        shutil.rmtree(folder, ignore_errors=True)
        clock = Clock()
        config: Stage = TypeAdapter(Stage).validate_python({"id": "arm", **settings})
        return run_here(config, inputs, folder / "out", self.context(folder, clock, cache)), clock

    def source(self, name: str, source: ModelSource) -> Checkpoint:
        folder = self.work / name
        if not (folder / "out").exists():
            make_source(source, folder / "out", self.context(folder, lambda event: None))
        return open_checkpoint(folder / "out")

    def teacher(self) -> Checkpoint:
        folder = self.work / "teacher"
        if not (folder / "out").exists():
            path = str(ROOT / ".cache" / "models" / "all-MiniLM-L6-v2")
            base = self.source("base", ModelSource(task=TASK.name, path=path, labels=LABELS[self.task]))
            settings = {"stage": "finetune", "training": {**TEACHER[self.task], "precision": "auto"}}
            self.stage(settings, StageInputs(base), folder)
        return open_checkpoint(folder / "out")

    def student(self, student: Student) -> Checkpoint:
        """What every arm but `pruned` starts from."""
        labels, teacher = LABELS[self.task], self.teacher()
        if student.config is not None:
            config = {**student.config, "vocab_size": load_module(teacher).config.vocab_size}
            tokenizer = TokenizerSource(path=str(teacher.path))
            source = ModelSource(task=TASK.name, config=config, tokenizer=tokenizer, labels=labels)
            return self.source(student.name, source)
        plain = self.work / f"{student.name}-plain"
        if not plain.exists():
            module = load_module(teacher)
            drop_layers(module, student.layers or ())
            module.save_pretrained(plain)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(teacher.path / name, plain / name)
        return self.source(student.name, ModelSource(task=TASK.name, path=str(plain), labels=labels))

    def pruned(self, student: Student) -> Checkpoint:
        folder = self.work / f"{student.name}-pruned"
        if not (folder / "out").exists():
            settings = {"stage": "prune", "keep": {"heads": student.keep, "ffn": student.keep}}
            self.stage(settings, StageInputs(self.teacher()), folder)
        return open_checkpoint(folder / "out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pilots", "run", "report"))
    parser.add_argument("--only", default="", help="part of task/student/arm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--at-most", type=int, default=1000, help="arms in this call")
    arguments = parser.parse_args()
    if arguments.what == "pilots":
        for student in STUDENTS:
            for arm in student.arms:
                if arguments.only in f"{student.task}/{student.name}/{arm}":
                    print(student.name, arm, prepare(student, arm)[-1], flush=True)
    if arguments.what == "run":
        done = set(read()["arms"])
        left = [
            (student, arm, seed)
            for student in STUDENTS
            for seed in arguments.seeds
            for arm in student.arms
            if arguments.only in f"{student.task}/{student.name}/{arm}"
            and f"{student.task}/{student.name}/{arm}/{seed}" not in done
        ]
        for student, arm, seed in left[: arguments.at_most]:
            run_arm(student, arm, seed)
        print(f"{max(0, len(left) - arguments.at_most)} arms left", flush=True)
    every = [f"{one.task}/{one.name}/{arm}/{seed}" for one in STUDENTS for arm in one.arms for seed in (0, 1, 2)]
    arms_report.write(read(), every)


def read() -> dict[str, Any]:
    if RESULTS.exists():
        found: dict[str, Any] = json.loads(RESULTS.read_text())
        return found
    return {"versions": library_versions(), "teachers": {}, "pilots": {}, "arms": {}}


def write(changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Add entries to what is on disk now: another process may work on other arms."""
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        results = read()
        for part, entries in changes.items():
            results[part] |= entries
        partial = RESULTS.with_suffix(".partial")
        partial.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        partial.replace(RESULTS)


def run_arm(student: Student, arm: str, seed: int) -> None:
    """Train, judge and record one arm with one seed."""
    name = f"{student.task}/{student.name}/{arm}/{seed}"
    bench, teacher, start, cache, pilot = prepare(student, arm)
    bench = replace(bench, seed=seed)
    made, current, clocks = [], start, []
    for number, (settings, share) in enumerate(ARMS[arm]):
        n_steps = max(1, round(pilot["steps"] * share))
        inputs = StageInputs(current, teacher if settings["stage"] == "distill" else None)
        folder = bench.work / "arms" / student.name / f"{arm}-{seed}-{number}"
        current, clock = bench.stage(_settings(settings, n_steps, student.task), inputs, folder, cache)
        made.append(current)
        clocks.append(clock)
    spent = pilot["besides_cpu_s"] + sum(clock.training_cpu_s for clock in clocks)
    entry = {
        "task": student.task, "student": student.name, "arm": arm, "seed": seed, "steps": pilot["steps"],
        "budget_cpu_s": student.budget_cpu_s, "spent_cpu_s": spent, "besides_cpu_s": pilot["besides_cpu_s"],
        **_cost(made), **_judge(current, bench),
    }  # fmt: skip
    write({"arms": {name: entry}})
    accuracies = f"validation {entry['validation_accuracy']:.4f}, test {entry['test_accuracy']:.4f}"
    print(f"{name}: {accuracies}, {spent:.0f} CPU-s of {student.budget_cpu_s:.0f}, {entry['steps']} steps", flush=True)
    if seed == 2:
        shutil.rmtree(cache, ignore_errors=True)
    for checkpoint in made:
        shutil.rmtree(checkpoint.path.parent / "work", ignore_errors=True)


def prepare(student: Student, arm: str) -> tuple[Bench, Checkpoint, Checkpoint, Path, dict[str, Any]]:
    """What all seeds of an arm share: the bench, the teacher, the start, the teacher's answers and the pilot."""
    bench = Bench(student.task, 0, WORK / student.task)
    teacher = bench.teacher()
    if student.task not in read()["teachers"]:
        write({"teachers": {student.task: {**_judge(teacher, bench), **_cost([teacher])}}})
    start = bench.pruned(student) if arm == "pruned" else bench.student(student)
    cache = bench.work / "cache" / student.name / arm
    return bench, teacher, start, cache, _pilot(student, arm, bench, start, teacher, cache)


def _settings(settings: Mapping[str, Any], n_steps: int, task: str) -> dict[str, Any]:
    training = {
        "epochs": 1000, "max_steps": n_steps, "learning_rate": LEARNING_RATE[task], "batch_size": 32,
        "precision": "auto",
    }  # fmt: skip
    return {**settings, "training": training, **({"teacher": "teacher"} if settings["stage"] == "distill" else {})}


def _pilot(
    student: Student, arm: str, bench: Bench, start: Checkpoint, teacher: Checkpoint, cache: Path
) -> dict[str, Any]:
    """What a step of this arm costs, what it needs besides, and so how many steps it gets."""
    name = f"{student.task}/{student.name}/{arm}"
    found = read()["pilots"].get(name)
    if found is not None:
        return _with_steps(name, student, dict(found))
    if arm == "none":  # a first training of the process is slower than the next
        _stopped_after(
            bench, _settings(ARMS[arm][0][0], 10_000, student.task), StageInputs(start), cache / "warm", cache
        )
    shutil.rmtree(cache, ignore_errors=True)
    step_cpu_s, besides_cpu_s = _look(student, arm, bench, start, teacher, cache, 10_000)
    # What goes on inside a teacher is asked in every step where the student will not see all rows: then a step costs
    # more and nothing comes before it.
    steps = round((student.budget_cpu_s - besides_cpu_s) / step_cpu_s)
    if arm not in ("none", "logits"):
        step_cpu_s, besides_cpu_s = _look(student, arm, bench, start, teacher, cache, steps)
    if arm == "pruned":
        besides_cpu_s += start.record.cpu_s
    pilot = {"step_cpu_s": step_cpu_s, "besides_cpu_s": besides_cpu_s}
    write({"pilots": {name: pilot}})
    return _with_steps(name, student, pilot)


def _look(
    student: Student, arm: str, bench: Bench, start: Checkpoint, teacher: Checkpoint, cache: Path, n_steps: int
) -> tuple[float, float]:
    """CPU-seconds of a step, and of asking the teacher before the first, for stages that are to take so many steps."""
    shutil.rmtree(cache, ignore_errors=True)
    step_cpu_s, besides_cpu_s = 0.0, 0.0
    for number, (settings, share) in enumerate(ARMS[arm]):
        inputs = StageInputs(start, teacher if settings["stage"] == "distill" else None)
        folder = bench.work / "pilots" / student.name / f"{arm}-{number}"
        of_stage = _settings(settings, round(n_steps * share), student.task)
        clock = _stopped_after(bench, of_stage, inputs, folder, cache)
        step_cpu_s += share * clock.step_cpu_s
        besides_cpu_s += clock.asking_cpu_s
    return step_cpu_s, besides_cpu_s


def _with_steps(name: str, student: Student, pilot: dict[str, Any]) -> dict[str, Any]:
    steps = round((student.budget_cpu_s - pilot["besides_cpu_s"]) / pilot["step_cpu_s"])
    if steps < 1:
        raise SystemExit(f"{name}: what it needs besides ({pilot['besides_cpu_s']:.0f} CPU-s) leaves nothing to train")
    return {**pilot, "steps": steps}


class _Enough(Exception):
    """The pilot has seen its steps."""


def _stopped_after(bench: Bench, settings: Mapping[str, Any], inputs: StageInputs, folder: Path, cache: Path) -> Clock:
    shutil.rmtree(folder, ignore_errors=True)
    clock = Clock()

    def watch(event: Event) -> None:
        clock(event)
        if len(clock.train) == PILOT_STEPS:
            raise _Enough

    config: Stage = TypeAdapter(Stage).validate_python({"id": "arm", **settings})
    try:
        run_here(config, inputs, folder / "out", bench.context(folder, watch, cache))
    except _Enough:
        shutil.rmtree(folder, ignore_errors=True)
    return clock


def _judge(checkpoint: Checkpoint, bench: Bench) -> dict[str, Any]:
    """Validation and test accuracy, and which test rows were right, as the hex digits of a bit string."""
    model = compressor.load(checkpoint.path, threads=1)
    test = open_test_data(bench.data, TASK, LABELS[bench.task]).rows
    validation = open_stage_data(bench.data, TASK, LABELS[bench.task], seed=0).validation
    assert validation is not None
    right = {}
    for split, rows in (("validation", validation), ("test", test)):
        texts = list(rows["text"])
        by_length = np.argsort([len(text) for text in texts], kind="stable")  # little padding
        told = np.empty(len(texts), np.int64)
        told[by_length] = model.logits([texts[number] for number in by_length]).argmax(-1)
        right[split] = told == np.asarray(rows["label"])
    return {
        "validation_accuracy": float(right["validation"].mean()),
        "test_accuracy": float(right["test"].mean()),
        "test_rows": len(right["test"]),
        "test_right": np.packbits(right["test"]).tobytes().hex(),
        "parameters": checkpoint.record.realised["parameters"],
    }


def _cost(made: list[Checkpoint]) -> dict[str, Any]:
    """What the stages' own records say: CPU-seconds and joules, both with loading and validation."""
    joules = [(checkpoint.record.energy or {}).get("est_energy_gross_j") for checkpoint in made]
    return {
        "stages_cpu_s": sum(checkpoint.record.cpu_s for checkpoint in made),
        "est_energy_gross_j": sum(joules) if all(value is not None for value in joules) else None,  # type: ignore[arg-type]
    }


if __name__ == "__main__":
    main()
