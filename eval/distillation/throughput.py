"""What an epoch of distillation costs here, and in a plain transformers Trainer that runs the teacher in every step.

    python eval/fetch.py minilm movies
    python eval/distillation/throughput.py [--rows 1600] [--threads 1]

Same teacher (all-MiniLM-L6-v2 with a classification head), same student (its layers 1, 3 and 5), same rows, loss (KL of
the logits at T 2), batch, learning rate, precision and machine; each loop in a process of its own, one after the other,
twice, in turn. What differs: we ask the teacher once and keep its answers, and put rows of like length into a batch;
the plain loop draws rows at random, pads them to the longest of their batch (its default), and asks the teacher every
time. Both are written down epoch by epoch: our first epoch contains asking the teacher about every row.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "eval" / "results" / "distillation-throughput.json"
MODEL, MOVIES = ROOT / ".cache" / "models" / "all-MiniLM-L6-v2", ROOT / ".cache" / "data" / "movies"
EPOCHS, BATCH, LEARNING_RATE, MAX_TOKENS = 3, 32, 2e-4, 64
LAYERS = (1, 3, 5)


def ours(folder: Path, n_rows: int, precision: str) -> list[dict[str, float]]:
    """Our distill stage, its clocks read as its epochs end."""
    import torch
    from arms import Bench, Clock
    from pydantic import TypeAdapter

    from compressor.spec.sources import ModelSource
    from compressor.spec.stages import Stage
    from compressor.stages.context import StageInputs
    from compressor.stages.dispatch import run_here

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    bench = Bench("movies", 0, folder)
    source = ModelSource(task="sequence-classification", path=str(folder / "teacher"), labels=("negative", "positive"))
    teacher = bench.source("source", source)
    clock, wall = Clock(), []

    def watch(event: Any) -> None:
        n_before = len(clock.train)
        clock(event)
        if len(clock.train) > n_before:
            wall.append(time.monotonic())

    config: Any = TypeAdapter(Stage).validate_python(
        {
            "id": "student", "stage": "distill", "teacher": "teacher", "layers": LAYERS,
            "losses": {"logits": {"temperature": 2.0}},
            "training": {"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": LEARNING_RATE, "rows": n_rows,
                         "precision": precision},
        }
    )  # fmt: skip
    ctx = bench.context(folder / "stage", watch)
    begun = time.process_time(), time.monotonic()
    run_here(config, StageInputs(teacher, teacher), folder / "out", ctx)
    per_epoch = len(clock.train) // EPOCHS
    ends = [(clock.train[(e + 1) * per_epoch - 1], wall[(e + 1) * per_epoch - 1]) for e in range(EPOCHS)]
    return _epochs(begun, ends)


def plain(folder: Path, n_rows: int, precision: str) -> list[dict[str, float]]:
    """What one writes without us: transformers' Trainer, its own collator, a teacher in compute_loss."""
    import torch
    from datasets import load_dataset
    from torch.nn import functional
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher")
    teacher = AutoModelForSequenceClassification.from_pretrained(folder / "teacher").eval()
    student = AutoModelForSequenceClassification.from_pretrained(folder / "teacher")
    student.bert.encoder.layer = torch.nn.ModuleList(student.bert.encoder.layer[layer] for layer in LAYERS)
    rows = load_dataset("json", data_files=str(MOVIES / "train.jsonl"), split="train").select(range(n_rows))
    rows = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=MAX_TOKENS), remove_columns=["text"])
    ends: list[tuple[float, float]] = []

    class Taught(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            inputs.pop("labels", None)
            with torch.no_grad():
                wanted = teacher(**inputs).logits
            log_q = functional.log_softmax(model(**inputs).logits.float() / 2.0, dim=-1)
            p = functional.softmax(wanted.float() / 2.0, dim=-1)
            return functional.kl_div(log_q, p, reduction="batchmean") * 4.0

    class Ends(TrainerCallback):
        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            ends.append((time.process_time(), time.monotonic()))

    arguments = TrainingArguments(
        output_dir=str(folder / "plain"), num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE, warmup_steps=0, bf16=precision == "bf16", use_cpu=True, save_strategy="no",
        report_to="none", disable_tqdm=True, seed=0,
    )  # fmt: skip
    collator = DataCollatorWithPadding(tokenizer)
    trainer = Taught(model=student, args=arguments, train_dataset=rows, data_collator=collator, callbacks=[Ends()])
    begun = time.process_time(), time.monotonic()
    trainer.train()
    return _epochs(begun, ends)


def _epochs(begun: tuple[float, float], ends: list[tuple[float, float]]) -> list[dict[str, float]]:
    starts = [begun, *ends[:-1]]
    return [{"cpu_s": end[0] - start[0], "wall_s": end[1] - start[1]} for start, end in zip(starts, ends, strict=True)]


def make_teacher(folder: Path) -> None:
    """The teacher of both: the encoder with a new head. What it answers has no bearing on what asking it costs."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=2)
    model.config.id2label, model.config.label2id = {0: "negative", 1: "positive"}, {"negative": 0, "positive": 1}
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)


def n_tokens(folder: Path, n_rows: int) -> int:
    """Real tokens of an epoch."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher")
    texts = [json.loads(line)["text"] for line in (MOVIES / "train.jsonl").read_text().splitlines()[:n_rows]]
    return sum(len(ids) for ids in tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"])


def write(results: dict[str, Any], path: Path) -> None:
    """The record and its table."""
    path.write_text(json.dumps(results, indent=1) + "\n")
    lines = [
        "# An epoch of distillation, with the teacher asked once or in every step", "",
        (__doc__ or "").split("\n\n")[2].replace("\n", " "), "",
        f"{results['rows']:,} rows, {results['tokens']:,} tokens an epoch, {results['threads']} thread, "
        f"{results['precision']}, {results['cpu']}.", "",
        "| loop | run | epoch | CPU-seconds | seconds | tokens/s |", "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for run in results["runs"]:
        for number, epoch in enumerate(run["epochs"], 1):
            lines.append(
                f"| {run['loop']} | {run['run']} | {number} | {epoch['cpu_s']:.1f} | {epoch['wall_s']:.1f} "
                f"| {results['tokens'] / epoch['wall_s']:,.0f} |"
            )
    lines += [
        "",
        f"From the second epoch on the plain loop costs {results['cpu_ratio']:.2f} times the CPU-seconds of ours, and "
        f"ours handles {results['tokens_ratio']:.2f} times its tokens per second (medians). Over all {EPOCHS} epochs, "
        f"asking the teacher included, the plain loop costs {results['cpu_ratio_all']:.2f} times the CPU-seconds.",
        "",
    ]
    path.with_suffix(".md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS, help="elsewhere, for a trial")
    parser.add_argument("--loop", choices=("ours", "plain"), help="for the child processes")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--precision", default="")
    arguments = parser.parse_args()
    if arguments.loop:
        loop = ours if arguments.loop == "ours" else plain
        print("EPOCHS " + json.dumps(loop(arguments.folder, arguments.rows, arguments.precision)))
        return
    from statistics import median

    from compressor.energy import identify_cpu
    from compressor.energy.processor import read_cpu_flags
    from compressor.stages.fitting import choose_precision

    precision = choose_precision("auto", "cpu", read_cpu_flags())
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_teacher(folder / "teacher")
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "TOKENIZERS_PARALLELISM": "false"}
        for run in range(2):
            for loop in ("plain", "ours"):
                for left in ("stage", "out", "plain", "source"):
                    shutil.rmtree(folder / left, ignore_errors=True)
                command = [sys.executable, __file__, "--loop", loop, "--folder", str(folder), "--rows",
                           str(arguments.rows), "--precision", precision]  # fmt: skip
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                line = next(line for line in done.stdout.splitlines() if line.startswith("EPOCHS "))
                runs.append({"loop": loop, "run": run + 1, "epochs": json.loads(line.removeprefix("EPOCHS "))})
        tokens = n_tokens(folder, arguments.rows)

    def later(loop: str, key: str) -> float:
        return median(epoch[key] for run in runs if run["loop"] == loop for epoch in run["epochs"][1:])

    def whole(loop: str) -> float:
        return median(sum(epoch["cpu_s"] for epoch in run["epochs"]) for run in runs if run["loop"] == loop)

    results = {
        "rows": arguments.rows, "tokens": tokens, "threads": arguments.threads, "precision": precision,
        "cpu": identify_cpu().name, "epochs": EPOCHS, "runs": runs,
        "cpu_ratio": later("plain", "cpu_s") / later("ours", "cpu_s"),
        "tokens_ratio": later("plain", "wall_s") / later("ours", "wall_s"),
        "cpu_ratio_all": whole("plain") / whole("ours"),
    }  # fmt: skip
    write(results, arguments.results)
    print({key: round(value, 3) for key, value in results.items() if "ratio" in key})


if __name__ == "__main__":
    main()
