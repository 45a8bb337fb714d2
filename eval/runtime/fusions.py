"""Whether fusing rotary positions and grouped-query attention pays in decode here. After prepare.py --only decoder:

    python eval/runtime/fusions.py make
    python eval/runtime/fusions.py run --scheme fp32
    python eval/runtime/fusions.py run --scheme w8
    python eval/runtime/fusions.py report

`make` takes our fused SmolLM2 graphs and takes one fusion apart again, in standard operators, so that two files differ
in that and in nothing else; each must give the logits of the fused one, or in 8 bits stay as near to those of fp32. A
run needs the machine for itself, about a minute: a process for each file, paired rounds in drawn order, CPU-seconds for
each generated token.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
from bench import INPUTS, RESULTS, THREADS, paired_turns
from onnx import helper, numpy_helper

from compressor.energy import identify_cpu
from compressor.graphs.files import load_onnx, save_onnx
from compressor.graphs.fuse import probe_feeds
from compressor.measurement.statistics import paired_ratio

FUSED = "fused"
OUT = INPUTS / "fusions"
SHAPE = "1x32"
SCHEMES = ("fp32", "w8")
TOLERANCE, NO_FURTHER = 1e-4, 1.25
"""Of the largest logit, in fp32. The kernels of `w8` round their inputs to 8 bits, where a last bit decides: there a
file may be no further from fp32 than the fused one, times this."""


class Parts:
    """Nodes and constants that take the place of one fused node."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self.nodes, self.constants = prefix, list[onnx.NodeProto](), list[onnx.TensorProto]()

    def op(self, op_type: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        name = out or f"{self.prefix}/{len(self.nodes)}"
        node = helper.make_node(
            op_type, list(inputs), [name], f"{self.prefix}/{op_type}{len(self.nodes)}", **attributes
        )
        self.nodes.append(node)
        return name

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        name = f"{self.prefix}/constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def heads(self, value: str, n_heads: int, size: int) -> str:
        """(B, T, n_heads * size) -> (B, n_heads, T, size)."""
        apart = self.op("Reshape", value, self.constant([0, 0, n_heads, size]))
        return self.op("Transpose", apart, perm=[0, 2, 1, 3])


def without_rotary(node: onnx.NodeProto, size: int) -> Parts | None:
    """Rotary positions as x * cos + half-turned x * sin, for halves side by side."""
    if node.op_type != "RotaryEmbedding":
        return None
    parts, n_heads = Parts(f"{node.output[0]}/parts"), attribute(node, "num_heads")
    assert not attribute(node, "interleaved")
    rows = parts.op("Reshape", node.input[0], parts.constant([0, 0, n_heads, size]))  # (B, T, H, d)
    axis = parts.constant([2])
    cos, sin = (
        parts.op("Unsqueeze", parts.op("Gather", table, node.input[1], axis=0), axis) for table in node.input[2:4]
    )  # (B, T, 1, d / 2)
    cos, sin = (parts.op("Concat", half, half, axis=-1) for half in (cos, sin))
    ends, last = [parts.constant([each]) for each in (0, size // 2, size)], parts.constant([-1])
    first, second = (parts.op("Slice", rows, ends[at], ends[at + 1], last) for at in (0, 1))
    turned = parts.op("Concat", parts.op("Neg", second), first, axis=-1)
    mixed = parts.op("Add", parts.op("Mul", rows, cos), parts.op("Mul", turned, sin))
    parts.op("Reshape", mixed, parts.constant([0, 0, n_heads * size]), out=node.output[0])
    return parts


def without_grouped_queries(node: onnx.NodeProto, size: int) -> Parts | None:
    """Grouped-query attention as it is exported: the past joined, heads repeated, two products and a softmax."""
    if node.op_type != "GroupQueryAttention":
        return None
    parts = Parts(f"{node.output[0]}/parts")
    n_heads, n_kv = attribute(node, "num_heads"), attribute(node, "kv_num_heads")
    query = parts.heads(node.input[0], n_heads, size)
    wide = []
    for new, past, present in zip(node.input[1:3], node.input[3:5], node.output[1:3], strict=True):
        joined = parts.op("Concat", past, parts.heads(new, n_kv, size), axis=2, out=present)  # (B, H_kv, S, d)
        apart = parts.op("Unsqueeze", joined, parts.constant([2]))
        repeated = parts.op("Expand", apart, parts.constant([1, 1, n_heads // n_kv, 1, 1]))
        wide.append(parts.op("Reshape", repeated, parts.constant([0, n_heads, -1, size])))
    scores = parts.op("MatMul", query, parts.op("Transpose", wide[0], perm=[0, 1, 3, 2]))
    scaled = parts.op("Mul", scores, parts.constant(attribute(node, "scale"), np.float32))
    shares = parts.op("Softmax", parts.op("Add", scaled, node.input[10]), axis=-1)
    mixed = parts.op("Transpose", parts.op("MatMul", shares, wide[1]), perm=[0, 2, 1, 3])
    parts.op("Reshape", mixed, parts.constant([0, 0, n_heads * size]), out=node.output[0])
    return parts


def without_either(node: onnx.NodeProto, size: int) -> Parts | None:
    return without_rotary(node, size) or without_grouped_queries(node, size)


VARIANTS: dict[str, Callable[[onnx.NodeProto, int], Parts | None]] = {
    "without-rotary": without_rotary,
    "without-grouped-queries": without_grouped_queries,
    "without-either": without_either,
}


def attribute(node: onnx.NodeProto, name: str) -> Any:
    return next(helper.get_attribute_value(each) for each in node.attribute if each.name == name)


def take_apart(model: onnx.ModelProto, split: Callable[[onnx.NodeProto, int], Parts | None]) -> int:
    """Put the parts of every node that `split` knows in its place; how many there were."""
    past = next(value for value in model.graph.input if value.name.startswith("past_key_values."))
    size = past.type.tensor_type.shape.dim[3].dim_value
    nodes: list[onnx.NodeProto] = []
    n_split = 0
    for node in model.graph.node:
        parts = split(node, size)
        nodes += [node] if parts is None else parts.nodes
        if parts is not None:
            model.graph.initializer.extend(parts.constants)
            n_split += 1
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # they go with the old list
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return n_split


def make() -> None:
    """Every file, held against the fused one on a prefill, a step and a chunk after a past."""
    OUT.mkdir(parents=True, exist_ok=True)
    ours = {entry["id"]: entry for entry in json.loads((INPUTS / "decoder-candidates.json").read_text())}
    feeds = probe_feeds(load_onnx(ours["ours-fp32"]["path"]))
    exact = [logits(Path(ours["ours-fp32"]["path"]), feed) for feed in feeds]
    for scheme in SCHEMES:
        source = Path(ours[f"ours-{scheme}"]["path"])
        allowed = TOLERANCE if scheme == "fp32" else NO_FURTHER * away(source, feeds, exact)
        entries = [{"id": FUSED, "worker": "ort", "path": str(source), "settings": {}}]
        for name, split in VARIANTS.items():
            model, path = load_onnx(source), OUT / f"{scheme}-{name}.onnx"
            n_split = take_apart(model, split)
            save_onnx(model, path)
            off = away(path, feeds, exact)
            said = f"{path.name}: {n_split} taken apart, {off:.2g} of the largest logit off fp32, {allowed:.2g} allowed"
            if not n_split or off > allowed:
                raise SystemExit(said)
            print(said, flush=True)
            entries.append({"id": name, "worker": "ort", "path": str(path), "settings": {}, "taken_apart": n_split})
        (OUT / f"{scheme}.json").write_text(json.dumps(entries, indent=1) + "\n")


def away(path: Path, feeds: list[dict[str, Any]], exact: list[Any]) -> float:
    """The furthest from the fused fp32 file, relative to its largest logit."""
    pairs = [(logits(path, feed), answer) for feed, answer in zip(feeds, exact, strict=True)]
    return max(float(np.abs(found - answer).max() / np.abs(answer).max()) for found, answer in pairs)


def logits(path: Path, feed: dict[str, Any]) -> Any:
    """On real tokens."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {value.name: feed[value.name] for value in session.get_inputs()})[0]
    return found[feed["attention_mask"][:, -found.shape[1] :] != 0]


def run(scheme: str, *, rounds: int, window_s: float, n_out: int) -> None:
    """All files of a scheme in turn; writes its record."""
    began = time.time()
    entries = json.loads((OUT / f"{scheme}.json").read_text())
    taken = paired_turns("decoder", SHAPE, entries, rounds=rounds, window_s=window_s, n_out=n_out)
    rows = []
    for phase in ("prefill", "decode"):
        cpu = {id_: [turn[phase]["cpu_s"] / turn[phase]["tokens"] for turn in taken.turns[id_]] for id_ in taken.turns}
        for id_, costs in cpu.items():
            ratio = paired_ratio(costs, cpu[FUSED])
            rows.append({
                "candidate": id_, "phase": phase, "cpu_s_per_token": median(costs), "cpu_s_per_token_rounds": costs,
                "ratio_to_fused": {"value": ratio.value, "ci95": ratio.ci95},
            })  # fmt: skip
    record = {
        "schema": "fusions/1", "scheme": scheme, "shape": SHAPE, "threads": THREADS, "rounds": rounds,
        "window_s": window_s, "output_tokens": n_out, "cpu": identify_cpu().name, "other_share": taken.other_share,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)), "seconds": time.time() - began,
        "candidates": taken.about, "rows": rows,
    }  # fmt: skip
    path = RESULTS / f"fusions-{scheme}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{path.name}: {record['seconds']:.0f} s")


def report() -> None:
    """The records as a table."""
    lines = [
        "# Fusions in decode", "",
        "Made by `eval/runtime/fusions.py`, which names the commands. SmolLM2-135M-Instruct, a prompt of 32 tokens;",
        "one fusion taken apart at a time. CPU-seconds for each token, and as a multiple of the fused file's with the",
        "95 % interval of the paired ratio: above 1, the fusion pays.", "",
    ]  # fmt: skip
    for path in sorted(RESULTS.glob("fusions-*.json")):
        record = json.loads(path.read_text())
        others = "" if record["other_share"] is None else f"; others used {record['other_share']:.0%} of the machine"
        lines += [f"## {record['scheme']}", "", f"{record['cpu']}, {record['threads']} threads{others}.", ""]
        lines += ["| file | prefill | decode |", "| --- | ---: | ---: |"]
        for id_ in record["candidates"]:
            found = {row["phase"]: row for row in record["rows"] if row["candidate"] == id_}
            lines.append(f"| {id_} | {_cell(found['prefill'])} | {_cell(found['decode'])} |")
        lines.append("")
    (RESULTS / "fusions.md").write_text("\n".join(lines).rstrip() + "\n")


def _cell(row: dict[str, Any]) -> str:
    cost, ratio = f"{row['cpu_s_per_token'] * 1e6:,.0f} µs", row["ratio_to_fused"]
    if row["candidate"] == FUSED:
        return f"{cost}, 1.000x"
    return f"{cost}, {ratio['value']:.3f}x ({ratio['ci95'][0]:.3f}-{ratio['ci95'][1]:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make")
    timed = commands.add_parser("run")
    timed.add_argument("--scheme", choices=SCHEMES, required=True)
    timed.add_argument("--rounds", type=int, default=9)
    timed.add_argument("--window-s", type=float, default=0.6)
    timed.add_argument("--output-tokens", type=int, default=32)
    commands.add_parser("report")
    options = parser.parse_args()
    if options.command == "make":
        make()
    elif options.command == "report":
        report()
    else:
        run(options.scheme, rounds=options.rounds, window_s=options.window_s, n_out=options.output_tokens)


if __name__ == "__main__":
    main()
