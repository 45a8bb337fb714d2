"""Forward or reverse KL, or no teacher, for a decoder of half its teacher's depth at equal cost.

    python eval/fetch.py sotu
    python eval/distillation/decoders.py run [--seeds 0 1 2] [--at-most N] [--teacher FOLDER]
    python eval/distillation/decoders.py report
    python eval/distillation/decoders.py run --smoke    # a few steps each, kept apart

A GPT-2 of four layers is trained on State of the Union addresses to 2004; its student starts with two of its layers and
goes on with the text alone, with forward KL, or with reverse KL, each for the same CPU-seconds (a pilot times their
steps; the teacher runs beside a taught student, in the same seconds). Perplexity of the addresses since 2013 comes from
`compressor.measure`, all students against the one that learned alone with the same seed. Resumable, arm by arm. A
teacher that `pipelines/gpt2-sotu.yaml` has trained (the same model, text, steps and seed) may be given by its folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

import compressor
from compressor.checkpoints.fingerprint import library_versions
from compressor.checkpoints.store import Checkpoint, open_checkpoint
from compressor.data.splits import open_stage_data
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
IS_SMOKE = "--smoke" in sys.argv
WORK = ROOT / "runs" / ("distillation-decoders-smoke" if IS_SMOKE else "distillation-decoders")
RESULTS = (WORK if IS_SMOKE else ROOT / "eval" / "results") / "distillation-decoders.json"
SOTU = ROOT / ".cache" / "data" / "sotu"
TASK = TASKS["causal-lm"]
CONFIG = {"model_type": "gpt2", "n_layer": 4, "n_head": 4, "n_embd": 256, "n_positions": 256}
LAYERS = (0, 3)
MAX_TOKENS, BATCH = 128, 16
TEACHER_STEPS = 300
TEACHER = {"max_steps": 4 if IS_SMOKE else TEACHER_STEPS, "learning_rate": 1e-3, "schedule": "cosine"}
BUDGET_CPU_S, LEARNING_RATE = 4.0 if IS_SMOKE else 50.0, 5e-4
PILOT_STEPS, PILOT_FROM = (4, 1) if IS_SMOKE else (16, 4)
ARMS: dict[str, dict[str, Any]] = {
    "alone": {"stage": "finetune"},
    "forward_kl": {"stage": "distill", "losses": {"labels": 0.5, "logits": {"weight": 0.5, "temperature": 1.0}}},
    "reverse_kl": {
        "stage": "distill",
        "losses": {"labels": 0.5, "logits": {"weight": 0.5, "kind": "reverse_kl", "temperature": 1.0}},
    },
}


class Clock:
    """CPU time of this process at each training step, and while it asks the teacher."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.train: list[float] = []
        self.asked: list[float] = []
        self.stop_after = stop_after

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress) and event.task == "train":
            self.train.append(time.process_time())
            if len(self.train) == self.stop_after:
                raise Enough
        elif isinstance(event, Progress) and event.task == "teacher outputs":
            self.asked.append(time.process_time())

    @property
    def asking_cpu_s(self) -> float:
        n = len(self.asked)
        return (self.asked[-1] - self.asked[0]) * n / (n - 1) if n > 1 else 0.0

    @property
    def training_cpu_s(self) -> float:
        n = len(self.train)
        return (self.train[-1] - self.train[0]) * n / (n - 1)


class Enough(Exception):
    """The pilot has seen its steps."""


def context(folder: Path, clock: Clock, seed: int, cache: Path) -> StageContext:
    splits = {split: DataSource(path=str(SOTU / f"{split}.txt")) for split in ("train", "validation", "test")}
    data = open_stage_data(Data(**splits, max_tokens=MAX_TOKENS), TASK, None, seed=seed)
    return StageContext(
        data=replace(data, validation=None), task=TASK, labels=None, max_tokens=MAX_TOKENS, calibration_rows=64,
        seed=seed, target=Target(threads=1), fingerprint="0" * 64, versions=library_versions(), emit=clock,
        workdir=folder / "work", cache_dir=cache,
    )  # fmt: skip


def stage(
    settings: Mapping[str, Any], inputs: StageInputs, folder: Path, *, seed: int = 0, clock: Clock | None = None,
    cache: Path | None = None,
) -> tuple[Checkpoint, Clock]:  # fmt: skip
    """Do one stage anew."""
    shutil.rmtree(folder, ignore_errors=True)
    clock = clock or Clock()
    config: Stage = TypeAdapter(Stage).validate_python({"id": folder.name, **settings})
    return run_here(config, inputs, folder / "out", context(folder, clock, seed, cache or WORK / "cache")), clock


def settings_of(arm: str, n_steps: int) -> dict[str, Any]:
    training = {
        "epochs": 1000, "max_steps": n_steps, "learning_rate": LEARNING_RATE, "schedule": "cosine",
        "batch_size": BATCH, "precision": "auto",
    }  # fmt: skip
    return {**ARMS[arm], "training": training, **({"teacher": "teacher"} if ARMS[arm]["stage"] == "distill" else {})}


def teacher_and_student(given: Path | None) -> tuple[Checkpoint, Checkpoint]:
    folders = {name: WORK / name for name in ("base", "teacher", "student")}
    if given is not None and not (folders["teacher"] / "out").exists():
        _check_is_ours(open_checkpoint(given))
        shutil.copytree(given, folders["teacher"] / "out")
    if not (folders["teacher"] / "out").exists():
        source = ModelSource(task=TASK.name, config=CONFIG, tokenizer=TokenizerSource(vocab_size=4096))
        base = make_source(source, folders["base"] / "out", context(folders["base"], Clock(), 0, WORK / "cache"))
        training = {"epochs": 1000, "batch_size": BATCH, "precision": "auto", **TEACHER}
        stage({"stage": "finetune", "training": training}, StageInputs(base), folders["teacher"])
    teacher = open_checkpoint(folders["teacher"] / "out")
    if not (folders["student"] / "out").exists():
        module, plain = load_module(teacher), WORK / "student-plain"
        drop_layers(module, LAYERS)
        module.save_pretrained(plain)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(teacher.path / name, plain / name)
        source = ModelSource(task=TASK.name, path=str(plain))
        make_source(source, folders["student"] / "out", context(folders["student"], Clock(), 0, WORK / "cache"))
    return teacher, open_checkpoint(folders["student"] / "out")


def _check_is_ours(teacher: Checkpoint) -> None:
    """The model, text and training that this comparison describes, and no others."""
    found = json.loads((teacher.path / "config.json").read_text())
    wanted = {**CONFIG, "vocab_size": 4096, "steps": TEACHER_STEPS}
    is_as = {name: found.get(name, teacher.record.realised.get(name)) for name in wanted}
    if is_as != wanted:
        raise SystemExit(f"this teacher is {is_as}, and {wanted} is wanted")


def pilot(arm: str, teacher: Checkpoint, student: Checkpoint) -> dict[str, Any]:
    """What a step costs and asking the teacher, and so how many steps the budget buys."""
    found = read()["pilots"].get(arm)
    if found is not None:
        return dict(found)
    clock, cache = Clock(PILOT_STEPS), WORK / "pilot-cache"
    shutil.rmtree(cache, ignore_errors=True)
    inputs = StageInputs(student, teacher if ARMS[arm]["stage"] == "distill" else None)
    try:
        stage(settings_of(arm, PILOT_STEPS + 1), inputs, WORK / "pilot", clock=clock, cache=cache)
    except Enough:
        shutil.rmtree(cache, ignore_errors=True)
    step = (clock.train[-1] - clock.train[PILOT_FROM]) / (PILOT_STEPS - 1 - PILOT_FROM)
    made = {"step_cpu_s": step, "asking_cpu_s": clock.asking_cpu_s,
            "steps": round((BUDGET_CPU_S - clock.asking_cpu_s) / step)}  # fmt: skip
    write("pilots", arm, made)
    return made


def run_arm(arm: str, seed: int, given: Path | None) -> None:
    teacher, student = teacher_and_student(given)
    timed = pilot(arm, teacher, student)
    inputs = StageInputs(student, teacher if ARMS[arm]["stage"] == "distill" else None)
    made, clock = stage(settings_of(arm, timed["steps"]), inputs, WORK / f"{arm}-{seed}", seed=seed)
    entry = {
        "arm": arm, "seed": seed, "steps": timed["steps"], "asking_cpu_s": timed["asking_cpu_s"],
        "spent_cpu_s": timed["asking_cpu_s"] + clock.training_cpu_s, "stage_cpu_s": made.record.cpu_s,
        "est_energy_gross_j": (made.record.energy or {}).get("est_energy_gross_j"),
    }  # fmt: skip
    write("arms", f"{arm}/{seed}", entry)
    print(f"{arm}/{seed}: {entry['spent_cpu_s']:.0f} CPU-s, {timed['steps']} steps", flush=True)


def named(name: str) -> Path:
    """A checkpoint under its own name: candidates are told apart by the last part of their folder."""
    link = WORK / "judged" / name
    link.parent.mkdir(exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(WORK / name / "out")
    return link


def judge(seeds: list[int]) -> None:
    """Perplexity of everything that is there, against the student that learned alone with the same seed."""
    for seed in seeds:
        names = [arm for arm in ARMS if f"{arm}/{seed}" in read()["arms"]]
        if len(names) < len(ARMS) or f"{seed}" in read()["perplexities"]:
            continue
        made = [f"{arm}-{seed}" for arm in names] + (["teacher"] if seed == 0 else [])
        folders = [named(name) for name in made]
        rows = {"rows": 1} if IS_SMOKE else {}
        report = compressor.measure(
            folders, data={"path": str(SOTU / "test.txt"), **rows}, profile="smoke", max_tokens=MAX_TOKENS,
            workloads=[{"id": "prompt", "input_tokens": 8, "output_tokens": 8, "batch": 1}],
            evaluate={"context": MAX_TOKENS, "stride": MAX_TOKENS // 2},
        )  # fmt: skip
        found = {}
        for name, candidate in zip([*names, "teacher"], report.candidates, strict=False):
            quality = next(row for row in candidate.quality if row.metric == "token_perplexity")
            paired = quality.paired
            found[name] = {
                "token_perplexity": quality.value,
                "delta_to_alone": paired.delta if paired else None,
                "delta_ci95": [paired.ci95.low, paired.ci95.high] if paired and paired.ci95 else None,
                "n": quality.n,
            }
        write("perplexities", f"{seed}", found)


def read() -> dict[str, Any]:
    if RESULTS.exists():
        found: dict[str, Any] = json.loads(RESULTS.read_text())
        return found
    return {"versions": library_versions(), "budget_cpu_s": BUDGET_CPU_S, "pilots": {}, "arms": {}, "perplexities": {}}


def write(part: str, name: str, entry: Any) -> None:
    results = read()
    results[part][name] = entry
    partial = RESULTS.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    partial.replace(RESULTS)


REPORT = """# Forward KL, reverse KL or no teacher, for a decoder of half the depth

A GPT-2 of four layers (256 wide, 4,096 tokens), trained on State of the Union addresses to 2004 in {teacher} steps, and
a student that starts with its layers 0 and 3 and trains for {budget:.0f} CPU-seconds in each arm. No row is seen twice,
so nothing is cached and the teacher runs beside the student: a taught arm takes fewer steps. Token perplexity of the
addresses since 2013 (windows of 128 tokens, stride 64). Perplexities are those of a tiny model on a small text: what
counts is how they differ. Joules are estimates. Reproduce: `python eval/distillation/decoders.py run`.
{alone}
| arm | seeds | steps | spent, CPU-s | asking | joules | perplexity (by seed) | mean ratio to alone |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{rows}
"""


def report() -> None:
    results = read()
    rows = []
    judged = results["perplexities"]
    for arm in ARMS:
        entries = [entry for entry in results["arms"].values() if entry["arm"] == arm]
        if not entries:
            continue
        values = [found[arm]["token_perplexity"] for _, found in sorted(judged.items())]
        ratios = [found[arm]["token_perplexity"] / found["alone"]["token_perplexity"] for found in judged.values()]
        mean = {key: np.mean([entry[key] for entry in entries]) for key in ("steps", "spent_cpu_s", "asking_cpu_s")}
        joules = np.mean([entry["est_energy_gross_j"] for entry in entries])
        each = " ".join(f"{value:.2f}" for value in values)
        rows.append(
            f"| {arm} | {len(entries)} | {mean['steps']:.0f} | {mean['spent_cpu_s']:.0f} | {mean['asking_cpu_s']:.0f} "
            f"| ~{joules:.0f} | {np.mean(values):.2f} ({each}) | {np.mean(ratios):.4f} |"
            if values
            else f"| {arm} | {len(entries)} | {mean['steps']:.0f} | {mean['spent_cpu_s']:.0f} "
            f"| {mean['asking_cpu_s']:.0f} | ~{joules:.0f} | not judged | - |"
        )
    teacher = judged.get("0", {}).get("teacher", {}).get("token_perplexity")
    said = f"\nThe teacher's own perplexity is {teacher:.2f}.\n" if teacher else ""
    text = REPORT.format(teacher=TEACHER["max_steps"], budget=BUDGET_CPU_S, rows="\n".join(rows), alone=said)
    RESULTS.with_suffix(".md").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--at-most", type=int, default=1000, help="arms in this call")
    parser.add_argument("--teacher", type=Path, help="a trained one, in place of training it here")
    parser.add_argument("--smoke", action="store_true", help="only to see that everything runs")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    if arguments.what == "run":
        left = [(arm, seed) for seed in arguments.seeds for arm in ARMS if f"{arm}/{seed}" not in read()["arms"]]
        for arm, seed in left[: arguments.at_most]:
            run_arm(arm, seed, arguments.teacher)
        judge(arguments.seeds)
        print(f"{max(0, len(left) - arguments.at_most)} arms left", flush=True)
    report()


if __name__ == "__main__":
    main()
