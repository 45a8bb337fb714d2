"""The benchmarks' table, from the records alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from compressor.measurement.statistics import paired_accuracy, paired_ratio

SHAPES = ("1x32", "1x128", "8x32", "8x128")
OTHERS = ("torch-eager", "torch-dynamic", "ort-fp32", "ort-quantize-dynamic", "openvino-fp32")
RESAMPLES = 2_000
Record = dict[str, Any]


def write_report(results: Path) -> None:
    """`benchmarks.md` and `benchmarks.json` beside the records."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `eval/runtime/prepare.py` and `eval/runtime/bench.py`, which name the commands; this table by",
        "`bench.py report`. The same weights everywhere; nothing is pruned. Shapes are batch x tokens. One",
        "process for each candidate, paired rounds, medians; CPU-seconds of all threads of a process, per input token",
        "(`forward`, `prefill`) or per generated token (`decode`), and as a multiple of torch eager's, with the 95 %",
        "interval of the paired ratio.",
        "",
    ]
    summary: Record = {"schema": "benchmarks/1", "marks": []}
    for model in ("encoder", "decoder"):
        quality = read(results / f"benchmarks-quality-{model}.json")
        records = {shape: read(results / f"benchmarks-{model}-{shape}.json") for shape in SHAPES}
        records = {shape: record for shape, record in records.items() if record}
        if not records:
            continue
        lines += section(model, records, quality)
        summary["marks"] += marks(model, records, quality)
    lines += ["## Marks", ""]
    lines += [f"- {'kept' if mark['kept'] else 'MISSED'}: {mark['text']}" for mark in summary["marks"]]
    (results / "benchmarks.md").write_text("\n".join(lines) + "\n")
    (results / "benchmarks.json").write_text(json.dumps(summary, indent=1) + "\n")


def read(path: Path) -> Record:
    return json.loads(path.read_text()) if path.is_file() else {}


def section(model: str, records: dict[str, Record], quality: Record) -> list[str]:
    first = next(iter(records.values()))
    name = "MiniLM-L6 classifier (movie sentences)" if model == "encoder" else "SmolLM2-135M-Instruct, dequantised Q4_1"
    shares = ", ".join(f"{shape} {100 * record['other_share']:.0f} %" for shape, record in records.items())
    lines = [f"## {name}", "", f"{first['cpu']}, {first['threads']} threads. Others used of the machine: {shares}.", ""]
    measure = "accuracy" if model == "encoder" else "perplexity through the decode path"
    lines += [
        f"| candidate | runtime | {measure} | to torch eager | session load | peak memory |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    everybody = {id_: about for record in records.values() for id_, about in record["candidates"].items()}
    for id_, about in everybody.items():
        value, against = quality_cells(model, id_, quality)
        here = [record["candidates"][id_] for record in records.values() if id_ in record["candidates"]]
        memory = max(one["peak_memory_bytes"] for one in here)
        lines.append(
            f"| {id_} | {about['version']} | {value} | {against} | {about['load_s']:.2f} s | {memory / 1e6:.0f} MB |"
        )
    lines.append("")
    phases = ("forward",) if model == "encoder" else ("prefill", "decode")
    for phase in phases:
        lines += [f"### {phase}", "", "CPU-seconds per token, and as a multiple of torch eager's:", ""]
        lines += [
            f"| candidate | {' | '.join(shape.replace('x', ' x ') for shape in records)} |",
            f"| --- |{' ---: |' * len(records)}",
        ]
        for id_ in everybody:
            lines.append(f"| {id_} | {' | '.join(cost_cell(record, id_, phase) for record in records.values())} |")
        lines += ["", "Median milliseconds of one call (wall):", ""]
        lines += [
            f"| candidate | {' | '.join(shape.replace('x', ' x ') for shape in records)} |",
            f"| --- |{' ---: |' * len(records)}",
        ]
        for id_ in everybody:
            cells = [
                f"{1e3 * row['latency_s']:.1f}" if (row := row_of(record, id_, phase)) else "-"
                for record in records.values()
            ]
            lines.append(f"| {id_} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def row_of(record: Record, id_: str, phase: str) -> Record | None:
    return next((row for row in record["rows"] if row["candidate"] == id_ and row["phase"] == phase), None)


def cost_cell(record: Record, id_: str, phase: str) -> str:
    row = row_of(record, id_, phase)
    if row is None:
        return "-"
    ratio = row["cpu_ratio_to_torch"]
    bounds = (
        "" if ratio["ci95"] is None or id_ == "torch-eager" else f" ({ratio['ci95'][0]:.3f}-{ratio['ci95'][1]:.3f})"
    )
    return f"{1e6 * row['cpu_s_per_token']:,.0f} µs, {ratio['value']:.3f}x{bounds}"


def quality_cells(model: str, id_: str, quality: Record) -> tuple[str, str]:
    if id_ not in quality:
        return "-", "-"
    if model == "encoder":
        own, base = (bits(quality[one]["right"]) for one in (id_, "torch-eager"))
        difference = paired_accuracy(own, base)
        low, high = difference.ci95
        return (
            f"{100 * own.mean():.1f} %",
            f"{100 * difference.delta:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})",
        )
    ratio, low, high = perplexity_ratio(quality[id_]["nll"], quality["torch-eager"]["nll"])
    return f"{quality[id_]['token_perplexity']:.2f}", f"{ratio:.4f}x ({low:.4f}-{high:.4f})"


def bits(text: str) -> np.ndarray:
    return np.array([one == "1" for one in text])


def perplexity_ratio(nll: list[float], base: list[float]) -> tuple[float, float, float]:
    """Ratio of two perplexities on the same tokens, and its bootstrap interval."""
    gaps = np.array(nll) - np.array(base)
    draws = np.random.default_rng(0).choice(gaps, (RESAMPLES, len(gaps))).mean(axis=1)
    low, high = np.exp(np.quantile(draws, [0.025, 0.975]))
    return math.exp(float(gaps.mean())), float(low), float(high)


def marks(model: str, records: dict[str, Record], quality: Record) -> list[Record]:
    return encoder_marks(records, quality) if model == "encoder" else decoder_marks(records, quality)


def encoder_marks(records: dict[str, Record], quality: Record) -> list[Record]:
    """At most 0.95x the CPU-seconds of the best of the others at equal or better accuracy; load below a second."""
    found = []
    for shape, record in records.items():
        rows = {row["candidate"]: row for row in record["rows"]}
        rivals = [id_ for id_ in rows if not id_.startswith("ours")]
        for id_ in (id_ for id_ in rows if id_.startswith("ours") and id_ != "ours-fp32"):
            best = min(rivals, key=lambda one: rows[one]["cpu_s_per_token"])
            ratio = paired_ratio(rows[id_]["cpu_s_per_token_rounds"], rows[best]["cpu_s_per_token_rounds"])
            bounds = "" if ratio.ci95 is None else f" ({ratio.ci95[0]:.3f}-{ratio.ci95[1]:.3f})"
            level = _is_level(quality, id_, best)
            text = (
                f"encoder {shape}: {id_} at {ratio.value:.3f}x{bounds} of the cheapest other, {best}; "
                f"accuracy {'not ' if level else ''}shown to be worse ({points(quality, id_)} against "
                f"{points(quality, best)}); at most 0.95x was asked"
            )
            found.append(
                {
                    "mark": "encoder",
                    "shape": shape,
                    "candidate": id_,
                    "ratio": ratio.value,
                    "ci95": ratio.ci95,
                    "against": best,
                    "kept": ratio.value <= 0.95 and level,
                    "text": text,
                }
            )
    loads = {
        id_: about["load_s"]
        for record in records.values()
        for id_, about in record["candidates"].items()
        if id_.startswith("ours")
    }
    slowest = max(loads.values())
    found.append(
        {
            "mark": "load",
            "kept": slowest < 1,
            "text": f"session load of ours: at most {slowest:.2f} s; below 1 s was asked",
        }
    )
    return found


def points(quality: Record, id_: str) -> str:
    return f"{100 * bits(quality[id_]['right']).mean():.1f} %" if id_ in quality else "unknown"


def _is_level(quality: Record, id_: str, other: str) -> bool:
    """Whether accuracy is not shown to be worse than the other's: the interval of the paired difference reaches 0."""
    if id_ not in quality or other not in quality:
        return False
    return paired_accuracy(bits(quality[id_]["right"]), bits(quality[other]["right"])).ci95[1] >= 0


def decoder_marks(records: dict[str, Record], quality: Record) -> list[Record]:
    """Three times fewer CPU-seconds per generated token than torch at a perplexity ratio of at most 1.01."""
    found = []
    for shape, record in records.items():
        for id_ in (one for one in record["candidates"] if one.startswith("ours") and one != "ours-fp32"):
            row = row_of(record, id_, "decode")
            if row is None or id_ not in quality:
                continue
            times = 1 / row["cpu_ratio_to_torch"]["value"]
            ratio, low, high = perplexity_ratio(quality[id_]["nll"], quality["torch-eager"]["nll"])
            text = (
                f"decode {shape}: {id_} takes {times:.2f} times fewer CPU-seconds per generated token than torch "
                f"at a perplexity ratio of {ratio:.4f} ({low:.4f}-{high:.4f}); 3 times at 1.01 was asked"
            )
            found.append(
                {
                    "mark": "decoder",
                    "shape": shape,
                    "candidate": id_,
                    "times_fewer": times,
                    "perplexity_ratio": ratio,
                    "kept": times >= 3 and ratio <= 1.01,
                    "text": text,
                }
            )
    return found
