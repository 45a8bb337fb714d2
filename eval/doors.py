"""Open our checkpoints through the doors of other runtimes, each in an environment of its own, and compare answers.

    python eval/peers/environments.py
    python eval/doors.py --encoder RUN/stages/int8-... --decoder RUN/stages/int8-... --out eval/results/doors

An encoder is a classifier's checkpoint, a decoder a language model's; `--embedder` is optional. For each door the
checkpoint is laid out (`compressor layout`), opened by the door's own code, and what it answers is held against
`compressor.load`. Doors whose server is not run here are laid out and listed as that.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import compressor
from compressor.data.tokenize import pad
from compressor.integrations.layout import lay_out
from compressor.runtime.onnx_runner import open_session
from compressor.runtime.runners import position_ids

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ("A joy from start to end.", "Two hours of my life that I will never get back, and a headache.", "Fine.")
PROMPTS = ("The state of the union is", "Fellow citizens, I congratulate you on the", "We must")
QUERY = "Is this film any good?"
NEW_TOKENS = 12
TOOLS = ("fastembed", "onnxruntime-openvino", "openvino", "optimum", "sentence-transformers", "transformersjs")
LAID_OUT_ONLY = ("tei", "triton")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
Arrays = dict[str, Any]


def _peers() -> ModuleType:
    """eval/ is no package, so its other file is loaded by its path."""
    spec = importlib.util.spec_from_file_location("environments", ROOT / "eval" / "peers" / "environments.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


peers = _peers()


@dataclass(frozen=True)
class Opened:
    """One line of the record.

    Attributes:
        door: whose code it was.
        version: as it tells itself; None where it was not run.
        model: which of our checkpoints.
        file: below the laid-out folder.
        variant: ours.
        opened: whether the door's own code opened it here.
        compared: what was compared.
        difference: largest |difference| over the largest |value|, for tokens the share that differs; None if not run.
        note: what a reader should know.
    """

    door: str
    version: str | None
    model: str
    file: str
    variant: str
    opened: bool
    compared: str
    difference: float | None
    note: str = ""


class Workshop:
    """One checkpoint, laid out for each door in a scratch folder."""

    def __init__(self, name: str, checkpoint: Path, scratch: Path) -> None:
        self.name, self.checkpoint, self.scratch = name, checkpoint, scratch

    def laid_out(self, door: str, precision: str) -> Path:
        folder = self.scratch / f"{self.name}-{door}-{precision}"
        if not folder.exists():
            lay_out(self.checkpoint, door, folder, precision=None if precision == "all" else precision)  # type: ignore[arg-type]
        return folder

    def open_in(self, tool: str, script: str, job: Mapping[str, Any]) -> tuple[Arrays, str]:
        """Run a tool's own script in its environment; what it answered, and its version."""
        out = self.scratch / f"{tool}-answers.{'json' if script.endswith('.mjs') else 'npz'}"
        command = [*peers.command(tool, script), json.dumps({**job, "out": str(out)})]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
        if done.returncode:
            raise RuntimeError(f"{tool} could not open it: {done.stderr[-1500:]}")
        if out.suffix == ".json":
            found = {name: np.asarray(values) for name, values in json.loads(out.read_text()).items()}
        else:
            with np.load(out) as file:
                found = dict(file)
        return found, json.loads(done.stdout.splitlines()[-1])["version"]


def apart(expected: np.ndarray, found: np.ndarray) -> float:
    """Largest |difference| as a multiple of the largest |value|."""
    return float(np.abs(expected - found).max() / np.abs(expected).max())


def encoder_doors(shop: Workshop, precisions: Sequence[str]) -> Iterator[Opened]:
    """OpenVINO, Optimum, Transformers.js and fastembed on a classifier."""
    for precision in precisions:
        model = compressor.load(shop.checkpoint, precision=precision, runtime="onnxruntime", threads=1)
        assert model.variant is not None
        logits = model.logits(list(TEXTS))
        yield _openvino(shop, model, precision)
        job = {"checkpoint": str(shop.checkpoint), "precision": precision, "texts": TEXTS}
        found, version = shop.open_in("onnxruntime-openvino", "open.py", job)
        yield _row(
            shop, "compressor.load(device='openvino')", version, model, model.variant.path, logits, found["logits"]
        )
        folder = shop.laid_out("sentence-transformers", precision)
        job = {"folder": str(folder), "class": "ORTModelForSequenceClassification", "file": model.variant.path}
        job |= {"side": "right", "texts": TEXTS, "new_tokens": 0}
        found, version = shop.open_in("optimum", "open.py", job)
        yield _row(
            shop, "Optimum ORTModelForSequenceClassification", version, model, job["file"], logits, found["logits"]
        )
        yield _javascript(shop, model, precision, logits)
        pairs = [(QUERY, text) for text in TEXTS]
        folder = shop.laid_out("fastembed", precision)
        job = {"folder": str(folder), "embeds": False, "query": QUERY, "texts": TEXTS}
        found, version = shop.open_in("fastembed", "open.py", job)
        expected = model.logits(pairs)[:, :1]
        note = "as a cross-encoder: the first logit of a pair of texts"
        yield _row(shop, "fastembed", version, model, "onnx/model.onnx", expected, found["logits"], note)


def decoder_doors(shop: Workshop, precisions: Sequence[str]) -> Iterator[Opened]:
    """OpenVINO, Optimum and Transformers.js on a language model; greedy tokens through the key/value cache."""
    for precision in precisions:
        model = compressor.load(shop.checkpoint, precision=precision, runtime="onnxruntime", threads=1)
        assert model.variant is not None
        yield _openvino(shop, model, precision)
        folder = shop.laid_out("transformersjs", "all")
        job = {"folder": str(folder), "class": "ORTModelForCausalLM", "file": model.variant.path}
        job |= {"side": "left", "texts": PROMPTS, "new_tokens": NEW_TOKENS}
        found, version = shop.open_in("optimum", "open.py", job)
        ours = model.generate(list(PROMPTS), max_new_tokens=NEW_TOKENS)
        yield _tokens(shop, "Optimum ORTModelForCausalLM", version, model, job["file"], ours, found["tokens"])
        dtype = {"fp32": "fp32", "fp16": "fp16", "w8a8-dynamic": "int8", "w4": "q4"}.get(model.variant.scheme)
        if dtype is None:
            continue
        job = {"folder": str(folder), "class": "AutoModelForCausalLM", "dtype": dtype, "texts": PROMPTS}
        found, version = shop.open_in("transformersjs", "open.mjs", job | {"new_tokens": NEW_TOKENS})
        alone = [model.generate(prompt, max_new_tokens=NEW_TOKENS)[0] for prompt in PROMPTS]
        yield _tokens(shop, "Transformers.js", version, model, model.variant.path, alone, found["tokens"])


def embedder_doors(shop: Workshop, precisions: Sequence[str]) -> Iterator[Opened]:
    """OpenVINO, Transformers.js, fastembed and sentence-transformers on an embedder."""
    for precision in precisions:
        model = compressor.load(shop.checkpoint, precision=precision, runtime="onnxruntime", threads=1)
        assert model.variant is not None
        yield _openvino(shop, model, precision)
        batch = _batch(model, TEXTS)
        expected = model.runner.forward(batch)["sentence_embedding"]
        folder = shop.laid_out("fastembed", precision)
        norms = np.linalg.norm(expected, axis=1)
        job = {"folder": str(folder), "embeds": True, "texts": TEXTS, "dim": expected.shape[1]}
        job["normalise"] = bool(np.allclose(norms, 1, atol=1e-3))
        found, version = shop.open_in("fastembed", "open.py", job)
        note = "its own mean pooling over our token embeddings"
        yield _row(shop, "fastembed", version, model, "onnx/model.onnx", expected, found["sentence_embedding"], note)
        yield _javascript(shop, model, precision, expected, output="sentence_embedding", class_="AutoModel")
        torch = [("torch", "model.safetensors")] if precision == "fp32" else []
        for backend, file in [*torch, ("onnx", model.variant.path)]:
            job = {"folder": str(shop.checkpoint), "backend": backend, "file": file, "texts": TEXTS}
            found, version = shop.open_in("sentence-transformers", "open.py", job)
            door, note = f"sentence-transformers, backend={backend!r}", "the checkpoint as it is; its own pooling"
            yield _row(shop, door, version, model, file, expected, found["sentence_embedding"], note)


def _openvino(shop: Workshop, model: Any, precision: str) -> Opened:
    """The same inputs, as arrays: it brings no tokenizer. A decoder gets one prompt: its attention takes no more."""
    folder = shop.laid_out("openvino", precision)
    session = open_session(folder / "model.onnx", threads=1, provider="CPUExecutionProvider", settings={})
    batch = _batch(model, PROMPTS[:1] if model.task.is_decoder else TEXTS)
    n_rows = len(batch["input_ids"])
    feeds = {}
    for value in session.get_inputs():
        empty = np.zeros((n_rows, *(0 if not isinstance(size, int) else size for size in value.shape[1:])), np.float32)
        feeds[value.name] = batch.get(value.name, empty)
    name = model.task.outputs[-1]
    inputs = shop.scratch / "inputs.npz"
    np.savez(inputs, **feeds)
    job = {"file": str(folder / "model.onnx"), "inputs": str(inputs), "outputs": [name]}
    found, version = shop.open_in("openvino", "open.py", job)
    (expected,) = session.run([name], feeds)
    note = "one prompt: it takes no batch of a fused decoder (`fuse: false`)" if model.task.is_decoder else ""
    return _row(shop, "OpenVINO", version, model, "model.onnx", expected, found[name], note)


def _javascript(
    shop: Workshop, model: Any, precision: str, expected: np.ndarray, *, output: str = "logits", class_: str = ""
) -> Opened:
    folder = shop.laid_out("transformersjs", precision)
    class_ = class_ or "AutoModelForSequenceClassification"
    job = {"folder": str(folder), "class": class_, "texts": TEXTS, "outputs": [output]}
    found, version = shop.open_in("transformersjs", "open.mjs", job)
    return _row(shop, "Transformers.js", version, model, model.variant.path, expected, found[output])


def _batch(model: Any, texts: Sequence[str]) -> Arrays:
    side = "left" if model.task.is_decoder else "right"
    rows = [dict(model.tokenizer(text)) for text in texts]
    batch: Arrays = pad(rows, model.tokenizer.pad_token_id or 0, side=side)  # type: ignore[arg-type]
    return {**batch, "position_ids": position_ids(batch["attention_mask"])}


def _row(
    shop: Workshop,
    door: str,
    version: str,
    model: Any,
    file: Any,
    expected: np.ndarray,
    found: np.ndarray,
    note: str = "",
) -> Opened:
    compared = f"{model.task.outputs[-1]}, {len(found)} rows"
    return Opened(door, version, shop.name, file, model.variant.id, True, compared, apart(expected, found), note)


def _tokens(
    shop: Workshop, door: str, version: str, model: Any, file: str, ours: Sequence[str], found: np.ndarray
) -> Opened:
    """Greedy tokens against our text of the same prompts: as text, since ours ends at the end token."""
    theirs = [model.tokenizer.decode(row, skip_special_tokens=True) for row in found.tolist()]
    differing = sum(one != two for one, two in zip(ours, theirs, strict=True)) / len(ours)
    compared = f"{NEW_TOKENS} greedy tokens of {len(ours)} prompts"
    return Opened(door, version, shop.name, file, model.variant.id, True, compared, differing)


def laid_out_only(shop: Workshop) -> Iterator[Opened]:
    """Doors whose server is not run here: the layout is made, and its graph compared in ONNX Runtime."""
    for door in LAID_OUT_ONLY:
        folder = shop.laid_out(door, "all")
        for row in json.loads((folder / "doors.json").read_text()):
            compared = f"the graph in {row['compared_in']}"
            yield Opened(
                row["door"],
                None,
                shop.name,
                row["file"],
                row["variant"],
                False,
                compared,
                row["difference"],
                row["note"],
            )


def markdown(rows: Sequence[Opened]) -> str:
    """The record as a table."""
    lines = [
        "# Doors: our folders opened by other runtimes",
        "",
        "Made by `eval/doors.py`. A difference is the largest one of any output over the largest output, against",
        "`compressor.load`; for generated tokens it is the share of prompts whose text differs. A dynamic INT8 graph",
        "rounds its activations by what the runtime's own sums give, so two runtimes agree on it only roughly.",
        "",
        "| door | version | model | file | variant | opened here | compared | difference | note |",
        "| --- | --- | --- | --- | --- | --- | --- | ---: | --- |",
    ]
    for row in rows:
        difference = "-" if row.difference is None else f"{row.difference:.1e}"
        cells = (
            row.door,
            row.version or "-",
            row.model,
            row.file,
            row.variant,
            "yes" if row.opened else "laid out only",
        )
        lines.append(f"| {' | '.join(cells)} | {row.compared} | {difference} | {row.note} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--decoder", type=Path)
    parser.add_argument("--embedder", type=Path)
    parser.add_argument("--precision", action="append", help="fp32 and int8 where absent")
    parser.add_argument("--out", type=Path, default=ROOT / "eval" / "results" / "doors")
    options = parser.parse_args()
    missing = [tool for tool in TOOLS if not peers.is_built(tool)]
    if missing:
        sys.exit(f"no environment for {', '.join(missing)}: python eval/peers/environments.py {' '.join(missing)}")
    rows: list[Opened] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, open_all in (("encoder", encoder_doors), ("decoder", decoder_doors), ("embedder", embedder_doors)):
            checkpoint = getattr(options, name)
            if checkpoint is None:
                continue
            shop = Workshop(name, checkpoint, Path(scratch))
            for row in open_all(shop, options.precision or ("fp32", "int8")):
                print(f"{row.door}, {row.model} {row.variant}: {row.difference:.1e}", file=sys.stderr, flush=True)
                rows.append(row)
            rows += [] if name == "decoder" else laid_out_only(shop)
    record = {"schema": "doors/1", "rows": [asdict(row) for row in rows]}
    options.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(rows))


if __name__ == "__main__":
    main()
