"""The benchmarks: our graphs beside torch, ONNX Runtime and OpenVINO on the same weights. After prepare.py:

    python eval/runtime/bench.py quality --model encoder
    python eval/runtime/bench.py quality --model decoder
    for shape in 1x32 1x128 8x32 8x128; do
        python eval/runtime/bench.py block --model encoder --shape $shape
        python eval/runtime/bench.py block --model decoder --shape $shape
    done
    python eval/runtime/bench.py report

A block needs the machine for itself. Each candidate is a process of its own, stopped except in its turn; a round takes
every candidate once in a drawn order, and ratios are taken within a round. Costs are CPU-seconds of the process, all
its threads together, and wall time beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from compressor.energy import identify_cpu
from compressor.measurement.guard import Load, load_between, read_cpu_times
from compressor.measurement.statistics import paired_ratio

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
INPUTS = ROOT / ".cache" / "benchmarks"
RESULTS = ROOT / "eval" / "results"
PYTHONS = {"openvino": str(ROOT / ".cache" / "envs" / "openvino" / "bin" / "python")}
THREADS = 2
BASELINE = "torch-eager"
SEED = 0


class Worker:
    """A candidate's process; stopped but for its turn."""

    def __init__(self, entry: dict[str, Any], *, decoder: bool, batch: int, log: Path, threads: int) -> None:
        self.id = entry["id"]
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self.process = subprocess.Popen(
            [PYTHONS.get(entry["worker"], sys.executable), str(HERE / f"worker_{entry['worker']}.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("wb"),
            text=True,
            env={**os.environ, **dict.fromkeys(names, str(threads)), "TOKENIZERS_PARALLELISM": "false"},
        )
        self.log = log
        self.about = self.ask({**entry, "decoder": decoder, "batch": batch, "threads": threads})

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.id} died: {self.log.read_text(errors='replace')[-1500:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def candidates(model: str, only: Sequence[str]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((INPUTS / f"{model}-candidates.json").read_text())
    return [entry for entry in entries if not only or entry["id"] in only]


@dataclass(frozen=True)
class Taken:
    """What paired turns gave: the turns of each candidate, what it is, and what others used of the machine."""

    turns: dict[str, list[dict[str, Any]]]
    about: dict[str, dict[str, Any]]
    other_share: float | None


def paired_turns(
    model: str, shape: str, entries: Sequence[dict[str, Any]], *, rounds: int, window_s: float, n_out: int
) -> Taken:
    """Every candidate once a round, in a drawn order, each in a process of its own."""
    batch = int(shape.split("x")[0])
    decoder = model == "decoder"
    order = {"do": "run", "n_out": n_out if decoder else None, "window_s": window_s}
    with ExitStack() as stack:
        crew = {}
        for entry in entries:
            log = INPUTS / f"{model}-{entry['id']}.log"
            worker = Worker(entry, decoder=decoder, batch=batch, log=log, threads=THREADS)
            stack.callback(worker.close)
            worker.ask({"do": "load", "path": str(INPUTS / f"{model}-{shape}.npz")})
            worker.ask({**order, "window_s": 0.3, "n_out": 2 if decoder else None})  # shapes seen, caches warm
            worker.pause()
            crew[worker.id] = worker
        rng = np.random.default_rng(SEED)
        turns: dict[str, list[dict[str, Any]]] = {id_: [] for id_ in crew}
        loads: list[Load] = []
        for _ in range(rounds):
            for id_ in rng.permutation(sorted(crew)):
                worker = crew[str(id_)]
                worker.resume()
                worker.ask({**order, "window_s": 0.05, "n_out": 1 if decoder else None})  # clocks and caches back
                before = read_cpu_times()
                turn = worker.ask(order)
                if before is not None and (after := read_cpu_times()) is not None:
                    used = sum(phase["cpu_s"] for phase in turn.values())
                    loads.append(load_between(before, after, measured_cpu_s=used))
                turns[worker.id].append(turn)
                worker.pause()
        for worker in crew.values():
            worker.resume()
            worker.about |= worker.ask({"do": "about"})
            worker.pause()
    about = {id_: worker.about for id_, worker in crew.items()}
    return Taken(turns, about, median(load.other_share for load in loads) if loads else None)


def block(model: str, shape: str, *, rounds: int, window_s: float, n_out: int, only: Sequence[str]) -> None:
    """One model at one shape; writes its record."""
    decoder = model == "decoder"
    began = time.time()
    taken = paired_turns(model, shape, candidates(model, only), rounds=rounds, window_s=window_s, n_out=n_out)
    phases = ("prefill", "decode") if decoder else ("forward",)
    record = {
        "schema": "benchmark/1",
        "model": model,
        "shape": shape,
        "threads": THREADS,
        "rounds": rounds,
        "window_s": window_s,
        "output_tokens": n_out if decoder else None,
        "cpu": identify_cpu().name,
        "other_share": taken.other_share,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "seconds": time.time() - began,
        "candidates": taken.about,
        "rows": [row for phase in phases for row in rows_of(phase, taken.turns)],
    }
    path = RESULTS / f"benchmarks-{model}-{shape}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{path.name}: {record['seconds']:.0f} s")


def rows_of(phase: str, turns: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Medians over the rounds, and paired ratios to torch."""
    cpu = {id_: [turn[phase]["cpu_s"] / turn[phase]["tokens"] for turn in taken] for id_, taken in turns.items()}
    wall = {id_: [turn[phase]["wall_s"] / turn[phase]["tokens"] for turn in taken] for id_, taken in turns.items()}
    for id_, taken in turns.items():
        row = {
            "candidate": id_,
            "phase": phase,
            "cpu_s_per_token": median(cpu[id_]),
            "cpu_s_per_token_rounds": cpu[id_],
            "wall_s_per_token": median(wall[id_]),
            "latency_s": median(turn[phase]["latency_s"] for turn in taken),
        }
        for name, costs in (("cpu", cpu), ("wall", wall)):
            if BASELINE in costs:
                ratio = paired_ratio(costs[id_], costs[BASELINE])
                row[f"{name}_ratio_to_torch"] = {"value": ratio.value, "ci95": ratio.ci95}
        yield row


def quality(model: str, only: Sequence[str], threads: int) -> None:
    """Accuracy on all test rows, or perplexity one token at a time through the cache; adds to its record."""
    path = RESULTS / f"benchmarks-quality-{model}.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    decoder = model == "decoder"
    for entry in candidates(model, only):
        out = INPUTS / f"{model}-{entry['id']}-answers.npz"
        worker = Worker(entry, decoder=decoder, batch=1, log=INPUTS / f"{model}-{entry['id']}.log", threads=threads)
        worker.ask({"do": "load", "path": str(INPUTS / f"{model}-quality.npz")})
        worker.ask({"do": "score" if decoder else "answer", "out": str(out)})
        worker.close()
        with np.load(out) as file:
            record[entry["id"]] = perplexity(file["nll"]) if decoder else accuracy(file["logits"])
        print(f"{entry['id']}: {json.dumps(record[entry['id']])[:120]}", flush=True)
        path.write_text(json.dumps(record, indent=1) + "\n")


def accuracy(logits: np.ndarray) -> dict[str, Any]:
    labels = np.load(INPUTS / "encoder-labels.npy")
    right = logits.argmax(axis=1) == labels
    return {"accuracy": float(right.mean()), "rows": len(labels), "right": "".join("01"[int(one)] for one in right)}


def perplexity(nll: np.ndarray) -> dict[str, Any]:
    return {"token_perplexity": float(np.exp(nll.mean())), "tokens": len(nll), "nll": [round(float(x), 5) for x in nll]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    timed = commands.add_parser("block")
    timed.add_argument("--shape", required=True, help="batch x tokens, such as 8x128")
    timed.add_argument("--rounds", type=int, default=7)
    timed.add_argument("--window-s", type=float, default=0.6)
    timed.add_argument("--output-tokens", type=int, default=16)
    judged = commands.add_parser("quality")
    judged.add_argument("--threads", type=int, default=THREADS)
    for command in (timed, judged):
        command.add_argument("--model", choices=("encoder", "decoder"), required=True)
        command.add_argument("--only", action="append", default=[], metavar="CANDIDATE")
    commands.add_parser("report")
    options = parser.parse_args()
    if options.command == "quality":
        quality(options.model, options.only, options.threads)
    elif options.command == "report":
        from report import write_report

        write_report(RESULTS)
    else:
        block(
            options.model,
            options.shape,
            rounds=options.rounds,
            window_s=options.window_s,
            n_out=options.output_tokens,
            only=options.only,
        )


if __name__ == "__main__":
    main()
