"""`compressor prune` on MiniLM-L6, timed: 0.6x of the CPU-seconds a token, no labels; cosine on unseen sentences.

    python eval/pruning/fast_path.py OUT.json [--work DIR]

Run it twice: the first run measures this machine's cost table (unless it is there), the second finds it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from compressor.measurement.cost_table import tables_folder
from compressor.pipeline.quick_prune import prune_folder
from compressor.runtime.torch_models import load_module
from compressor.schema.events import Event, Progress, StageFinished
from compressor.spec.budgets import PruneBudget
from compressor.spec.evaluation import Workload

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / ".cache/models/all-MiniLM-L6-v2"
MOVIES = ROOT / ".cache/data/movies"
CALLS = Workload(id="rows", batch=8, input_tokens=32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "pruning-fast-path")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    had_tables = len(list(tables_folder().glob("bert-*.jsonl")))
    shutil.rmtree(asked.work, ignore_errors=True)
    events: list[tuple[float, Event]] = []
    started, cpu_started = time.monotonic(), cpu_s_so_far()
    made = prune_folder(
        MODEL,
        budget=PruneBudget(cpu_s_per_token="0.6x"),
        data=MOVIES / "train.jsonl",
        out=asked.work,
        workloads=[CALLS],
        threads=asked.threads,
        max_tokens=64,
        on_event=lambda event: events.append((time.monotonic() - started, event)),
    )
    wall_s, cpu_s = time.monotonic() - started, cpu_s_so_far() - cpu_started
    record = {
        "command": "compressor prune .cache/models/all-MiniLM-L6-v2 --budget 0.6x "
        "--data .cache/data/movies/train.jsonl --batch 8 --input-tokens 32 --max-tokens 64 "
        f"--threads {asked.threads}",
        "had_cost_table": had_tables > 0,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "ended_at_s": {
            (event.task if isinstance(event, Progress) else event.stage): at
            for at, event in events
            if isinstance(event, StageFinished) or (isinstance(event, Progress) and event.done == event.total)
        },
        **quality(made.checkpoint.path),
        "choice": made.choice,
        "final": None if made.final is None else made.final.to_json(),
        "tolerance": made.tolerance,
        "structure": made.structure,
    }
    known = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    known["with_table" if had_tables else "from_nothing"] = record
    asked.out.write_text(json.dumps(known, indent=1) + "\n")
    print(
        json.dumps(
            {key: record[key] for key in ("wall_s", "cpu_s", "had_cost_table", "cosine", "ended_at_s")}, indent=1
        )
    )


def cpu_s_so_far() -> float:
    """Of this process and its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def quality(folder: Path) -> dict[str, float]:
    """Cosine of mean-pooled vectors to the dense model's on 1,000 test sentences."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    texts = [json.loads(line)["text"] for line in (MOVIES / "test.jsonl").read_text().splitlines()[:1000]]
    models = [AutoModel.from_pretrained(MODEL).eval(), load_module(folder)]
    found = []
    for at in range(0, len(texts), 50):
        batch = tokenizer(texts[at : at + 50], padding=True, truncation=True, max_length=64, return_tensors="pt")
        weights = batch["attention_mask"][..., None].float()
        vectors = []
        for model in models:
            with torch.no_grad():
                hidden = model(**batch).last_hidden_state
            vectors.append((hidden * weights).sum(1) / weights.sum(1))
        found.append(torch.nn.functional.cosine_similarity(*vectors))
    cosine = torch.cat(found)
    half = 1.96 * float(cosine.std()) / len(cosine) ** 0.5
    return {"cosine": float(cosine.mean()), "cosine_half_ci95": half, "n_texts": len(cosine)}


if __name__ == "__main__":
    main()
