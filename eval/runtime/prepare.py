"""Make every candidate of the benchmarks, and their inputs, under .cache/benchmarks.

    python eval/fetch.py minilm smollm2 movies sotu
    python eval/peers/environments.py openvino
    python eval/runtime/prepare.py                       # fine-tunes the classifier by pipelines/minilm-sentiment.yaml
    python eval/runtime/prepare.py --teacher CHECKPOINT  # or takes one that this pipeline made

What is there is kept; delete .cache/benchmarks to make all of it anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from datasets import Dataset
from onnxruntime.quantization import quantize_dynamic

import compressor
from compressor.data.rows import load_rows
from compressor.data.tokenize import batches, encode_rows, load_tokenizer
from compressor.measurement.arrays import save_batches
from compressor.measurement.inputs import rows_of_length
from compressor.spec.sources import DataSource
from compressor.spec.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / ".cache" / "benchmarks"
OPENVINO = ROOT / ".cache" / "envs" / "openvino" / "bin" / "python"
SHAPES = ((1, 32), (1, 128), (8, 32), (8, 128))
QUALITY_BATCH = 8
SCORED_TOKENS = 1024
WINDOW = 256
CALIBRATION_ROWS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, help="the fine-tuned classifier's checkpoint")
    parser.add_argument("--only", choices=("encoder", "decoder"))
    parser.add_argument("--tune", action="store_true", help="find runtime settings too: needs the machine for itself")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    if options.only != "decoder":
        make_encoder(options.teacher or fine_tuned(), tune=options.tune)
    if options.only != "encoder":
        make_decoder(tune=options.tune)


def fine_tuned() -> Path:
    """The teacher of the main job."""
    made = compressor.run(ROOT / "pipelines" / "minilm-sentiment.yaml", out=OUT / "minilm", until="teacher")
    return made.checkpoints["teacher"].path


def make_encoder(teacher: Path, *, tune: bool) -> None:
    """All candidates over the weights of one classifier, and the movie sentences as arrays."""
    last = "tuned" if tune else "static"
    made = compressor.run(
        ROOT / "eval" / "runtime" / "encoder.yaml",
        out=OUT / "encoder",
        until=last,
        overrides=[f"model.path={teacher}"],
    ).checkpoints
    tokenizer = load_tokenizer(teacher)
    task = TASKS["sequence-classification"]
    rows = {
        split: load_rows(
            DataSource(path=str(ROOT / ".cache" / "data" / "movies" / f"{split}.jsonl")),
            task=task,
            columns={},
            labels=("negative", "positive"),
        )
        for split in ("train", "test")
    }
    for batch, tokens in SHAPES:
        made_rows = rows_of_length(tokenizer, rows["test"]["text"], tokens, batch, "benchmark", task)
        save_batches(OUT / f"encoder-{batch}x{tokens}.npz", list(batches(made_rows, batch, tokenizer.pad_token_id)))
    test = encode_rows(tokenizer, rows["test"], 128)
    save_batches(OUT / "encoder-quality.npz", list(batches(test, QUALITY_BATCH, tokenizer.pad_token_id)))
    np.save(OUT / "encoder-labels.npy", np.array(rows["test"]["label"]))
    few: Dataset = rows["train"].select(range(CALIBRATION_ROWS))
    save_batches(OUT / "encoder-calibration.npz", list(batches(encode_rows(tokenizer, few, 128), 1, 0)))
    plain = made["plain"].path / "onnx" / "model.onnx"
    entries = [
        *_torch(teacher),
        entry("ort-fp32", "ort", plain),
        entry("ort-quantize-dynamic", "ort", out_of_the_box(plain, OUT / "encoder-ort-int8.onnx")),
        *_openvino(plain),
        entry("openvino-nncf-int8", "openvino", nncf("encoder", plain, OUT / "encoder-nncf.xml")),
        entry("ours-fp32", "ort", made["onnx"].path / "onnx" / "model.onnx"),
        *_ours(made, ("int8", "static", "tuned")),
        *_in_openvino(made, ("static",)),
    ]
    write("encoder", entries)


def make_decoder(*, tune: bool) -> None:
    """All candidates over SmolLM2's weights, and addresses as arrays."""
    made = compressor.run(
        ROOT / "eval" / "runtime" / "decoder.yaml", out=OUT / "decoder", until="tuned" if tune else "w8"
    ).checkpoints
    source = made["model"].path
    tokenizer = load_tokenizer(source)
    task = TASKS["causal-lm"]
    texts = (ROOT / ".cache" / "data" / "sotu" / "test.txt").read_text(encoding="utf-8").splitlines()
    for batch, tokens in SHAPES:
        made_rows = rows_of_length(tokenizer, texts, tokens, batch, "benchmark", task)
        save_batches(OUT / f"decoder-{batch}x{tokens}.npz", list(batches(made_rows, batch, 0)))
    stream: list[int] = []
    for text in texts:
        stream += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(stream) >= SCORED_TOKENS:
            break
    windows = [np.array([stream[at : at + WINDOW]]) for at in range(0, SCORED_TOKENS, WINDOW)]
    save_batches(OUT / "decoder-quality.npz", [{"input_ids": window} for window in windows])
    plain = made["plain"].path / "onnx" / "model.onnx"
    entries = [
        *_torch(source),
        entry("ort-fp32", "ort", plain),
        entry("ort-quantize-dynamic", "ort", out_of_the_box(plain, OUT / "decoder-ort-int8.onnx")),
        *_openvino(plain),
        entry("openvino-nncf-int8-weights", "openvino", nncf("decoder", plain, OUT / "decoder-nncf.xml")),
        entry("ours-fp32", "ort", made["onnx"].path / "onnx" / "model.onnx"),
        *_ours(made, ("int8", "w8", "tuned")),
    ]
    write("decoder", entries)


def entry(id_: str, worker: str, path: Path, *, quantised: bool = False, **settings: Any) -> dict[str, Any]:
    """One candidate."""
    return {"id": id_, "worker": worker, "path": str(path), "quantised": quantised, "settings": settings}


def _torch(folder: Path) -> list[dict[str, Any]]:
    return [entry("torch-eager", "torch", folder), entry("torch-dynamic", "torch", folder, quantised=True)]


def _openvino(plain: Path) -> list[dict[str, Any]]:
    """The fp32 file in fp32, and as it comes: where the processor has it, OpenVINO computes in bfloat16 unasked."""
    return [
        entry("openvino-fp32", "openvino", plain, precision="f32"),
        entry("openvino-default", "openvino", plain),
    ]


def _ours(made: Any, stages: Sequence[str]) -> list[dict[str, Any]]:
    """The variant that each of these stages made, with the settings that travel with it."""
    entries = []
    for stage in stages:
        if stage in made:
            (variant,) = [one for one in made[stage].content.variants if one.stage == stage]
            settings = {name: value for name, value in variant.settings.items() if name not in CALLS}
            entries.append(entry(f"ours-{stage}", "ort", made[stage].path / variant.path, **settings))
    return entries


def _in_openvino(made: Any, stages: Sequence[str]) -> list[dict[str, Any]]:
    """The same files in the other runtime."""
    return [one | {"id": f"{one['id']}-in-openvino", "worker": "openvino"} for one in _ours(made, stages)]


CALLS = ("batch_size", "sort_by_length")
"""Settings of a call: a benchmark's shape is given."""


def out_of_the_box(plain: Path, out: Path) -> Path:
    """ONNX Runtime's `quantize_dynamic` with its own defaults.

    It refuses graphs of torch's new exporter over stale shapes of initializers; these are removed, as its users do.
    """
    if not out.exists():
        model = onnx.load(str(plain))
        initializers = {tensor.name for tensor in model.graph.initializer}
        kept = [value for value in model.graph.value_info if value.name not in initializers]
        del model.graph.value_info[:]
        model.graph.value_info.extend(kept)
        cleaned = out.with_suffix(".cleaned.onnx")
        onnx.save(model, str(cleaned))
        quantize_dynamic(cleaned, out)
        cleaned.unlink()
    return out


def nncf(kind: str, plain: Path, out: Path) -> Path:
    """NNCF's INT8, made in OpenVINO's own environment."""
    if not out.exists():
        script = ROOT / "eval" / "runtime" / "prepare_openvino.py"
        calibration = OUT / "encoder-calibration.npz"
        subprocess.run([OPENVINO, script, kind, plain, calibration, out], check=True)
    return out


def write(model: str, entries: list[dict[str, Any]]) -> None:
    (OUT / f"{model}-candidates.json").write_text(json.dumps(entries, indent=1) + "\n")
    print(f"{model}: {', '.join(one['id'] for one in entries)}")


if __name__ == "__main__":
    main()
