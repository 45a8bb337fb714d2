"""What `ablation.py` and `fast_path.py` left, as one record and one page.

python eval/pruning/record.py --work runs eval/results
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from compressor.measurement.environment import read_environment

ROOT = Path(__file__).resolve().parents[2]
NAMES = {
    "minilm": "all-MiniLM-L6-v2, batches of 8 x 32 tokens, 0.6x CPU-seconds a token",
    "minilm-long": "the same in batches of 8 x 128 tokens, judged on the same sentences",
    "minilm-int8": "all-MiniLM-L6-v2 in INT8, batches of 8 x 128 tokens, 0.3x of dense fp32, judged unquantised",
    "smollm2": "SmolLM2-135M-Instruct (dequantised Q4_1), one step of decoding after 144 tokens, 0.8x",
    "smollm2-trimmed": "the same step of the same model, its vocabulary trimmed to the training text, 0.8x of all",
    "gpt2": "GPT-2 of 4 layers trained on SOTU, one step of decoding after 80 tokens, 0.8x",
}
CLOSING = """\
Made by

```
python eval/fetch.py minilm smollm2 movies sotu
compressor run pipelines/gpt2-sotu.yaml --until teacher     # its folder goes to --model below
python eval/pruning/ablation.py minilm table score match refine rematch quality
python eval/pruning/ablation.py minilm-long table score match refine rematch quality
python eval/pruning/ablation.py minilm-int8 table score match refine rematch quality
python eval/pruning/ablation.py smollm2 table score match refine rematch quality recover
python eval/pruning/ablation.py smollm2-trimmed trim table score match refine rematch quality
python eval/pruning/ablation.py gpt2 table score match refine rematch quality --model runs/gpt2-sotu/stages/teacher-...
python eval/pruning/fast_path.py runs/fast-path.json        # and once more, with the table there
python eval/pruning/record.py --work runs eval/results
```

Every method has the same measured cost, as near as its steps allow: its own budget was moved until its exported shape
measured what was asked, beside the dense model in the same session. `measured` and `macs` are the same search over the
same scores with another cost; `uniform` keeps the same share everywhere, with the same ridge; `magnitude` is that shape
ranked by magnitude, with the ridge and without. A/A is the largest difference of the dense model to itself inside the
interval of that session: smaller differences of cost are not told apart.
"""
PARTS = ("remark", "trimmed", "table", "scores", "matched", "refined", "rematched", "quality", "recovered")
"""`remark` is a sentence about the run, where somebody left one."""


def read(folder: Path) -> dict[str, Any]:
    """The parts of one study that are there; scores without their kept units, which fill megabytes."""
    found = {}
    for part in PARTS:
        path = folder / f"{part}.json"
        if path.exists():
            found[part] = json.loads(path.read_text())
    if "scores" in found:
        for group in found["scores"]["groups"]:
            group["options"] = [[option["size"], option["loss"]] for option in group["options"]]
    return found


def table_line(study: dict[str, Any]) -> str:
    """Whether the table adds up."""
    table = study["table"]
    n_rows, threads = len(table["rows"]), table["threads"]
    begin = f"Cost table: {n_rows} rows at {threads} thread{'s' if threads > 1 else ''}"
    if not table["fits"]:
        return f"{begin}; its sums were not checked on whole models."
    fit = next(iter(table["fits"].values()))
    slopes = ", ".join(f"{name} {slope:.2f}" for name, slope in fit["slopes"].items())
    return (
        f"{begin}; sums over it predict {fit['n_models']} random whole models left out of the fit in turn with a mean "
        f"error of {fit['mape']:.1%} and Kendall's tau {fit['kendall_tau']:.2f} (slopes: {slopes})."
    )


def rows_of(study: dict[str, Any]) -> list[str]:
    quality = study["quality"]
    metric = "cosine" if "cosine" in quality["dense"] else "perplexity"
    lines = [
        f"| method | {metric} on unseen text | measured cost | A/A | predicted cost | parameters |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in quality.items():
        value = f"{row[metric]:.4f} ± {row['cosine_half_ci95']:.4f}" if metric == "cosine" else f"{row[metric]:.2f}"
        if name == "dense":
            lines.append(f"| dense | {value} | 1 | | 1 | {row['parameters'] / 1e6:.1f} M |")
            continue
        low, high = row["measured_ratio_ci95"] or (row["measured_ratio"],) * 2
        lines.append(
            f"| {name} | {value} | {row['measured_ratio']:.3f} ({low:.3f}-{high:.3f}) | {row['aa_bound']:.1%} | "
            f"{row['predicted_ratio']:.3f} | {row['parameters'] / 1e6:.1f} M |"
        )
    return lines


def same_choice(study: dict[str, Any]) -> list[str]:
    """Said where the two searches ended at one structure: then their cost made no difference."""
    rows = study["quality"]
    pairs = [(name, name.replace("measured", "macs")) for name in ("measured", "measured + swaps") if name in rows]
    pairs = [(one, other) for one, other in pairs if other in rows]
    if pairs and all(rows[one]["sizes"] == rows[other]["sizes"] for one, other in pairs):
        return ["The search on MACs chose the very same structures as the search on measured costs here.", ""]
    return []


def page(record: dict[str, Any]) -> str:
    env = record["environment"]
    lines = [
        "# Pruning to a measured budget",
        "",
        f"{env['cpu_family'] or env['cpu']}, {env['processors']} processors"
        + (", a virtual machine" if env["hypervisor"] else "")
        + f", onnxruntime {env['versions'].get('onnxruntime')}, torch {env['versions'].get('torch')}. CPU-seconds are "
        "measured; this machine has no meter, so joules are not claimed.",
        "",
    ]
    for name, study in record["studies"].items():
        lines += [f"## {NAMES[name]}", ""]
        if "remark" in study:
            lines += [study["remark"], ""]
        if "trimmed" in study:
            tokens = study["trimmed"]["tokens"]
            lines += [f"{tokens['kept']:,} of {tokens['whole']:,} tokens stay. Perplexity is per token of the whole "
                      "tokenizer, and costs are shares of the whole model's.", ""]  # fmt: skip
        if "table" in study:
            lines += [table_line(study), ""]
        if "quality" in study:
            lines += [*rows_of(study), "", *same_choice(study)]
        if "refined" in study:
            for method, refined in study["refined"].items():
                lines.append(
                    f"- swaps, {method}: loss on held-out calibration text {refined['loss_before']:.4g} -> "
                    f"{refined['loss']:.4g}, {refined['n_accepted']} of {refined['n_tried']} moves kept"
                )
            lines.append("")
        if "recovered" in study:
            found = study["recovered"]
            lines += [
                f"Recovery: {found['steps']} steps on {found['tokens']:,} tokens ({found['wall_s']:.0f} s) take "
                f"perplexity from {found['before']:.2f} to {found['after']:.2f}; dense {found['dense']:.2f}.",
                "",
            ]
    missing = [NAMES[name] for name in NAMES if "quality" not in record["studies"].get(name, {})]
    if missing:
        lines += ["Not measured yet: " + "; ".join(missing) + ".", ""]
    for kind, run in record["fast_path"].items():
        final, predicted = run["final"], run["choice"]["predicted_cost_ratio"]
        lines += [
            f"## The fast path on MiniLM-L6, {kind.replace('_', ' ')}",
            "",
            f"`{run['command']}`",
            "",
            f"- {run['wall_s']:.0f} s by the clock and {run['cpu_s']:.0f} CPU-seconds from start to finished folder, "
            "on 2 cores; no labels",
            f"- cosine to the dense sentence embedding {run['cosine']:.4f} ± {run['cosine_half_ci95']:.4f} on "
            f"{run['n_texts']} unseen sentences",
            f"- asked 0.6x; predicted {predicted:.3f}; measured {final['ratio']:.3f} on the finished file; the dense "
            f"model against itself {final['aa_bound']:.1%} (A/A); {run['tolerance']:.1%} allowed",
            "",
        ]
    lines += [CLOSING]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, default=ROOT / "runs")
    parser.add_argument("--prefix", default="pruning-")
    asked = parser.parse_args()
    folders = {name: asked.work / f"{asked.prefix}{name}" for name in NAMES}
    fast = asked.work / "fast-path.json"
    environment = read_environment()
    for key in ("load_average", "gpu_processes", "meters"):
        environment.pop(key, None)
    record = {
        "environment": environment,
        "studies": {name: read(folder) for name, folder in folders.items() if (folder / "table.json").exists()},
        "fast_path": json.loads(fast.read_text()) if fast.exists() else {},
    }
    (asked.out / "pruning-budget.json").write_text(json.dumps(record, indent=1) + "\n")
    (asked.out / "pruning-budget.md").write_text(page(record))
    print(page(record))


if __name__ == "__main__":
    main()
