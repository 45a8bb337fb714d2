"""Tiny sealed checkpoints with a torch, an ONNX and an INT8 variant each, small pipelines, and judging them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.checkpoints.manifest import Record, Variant
from compressor.checkpoints.store import Checkpoint, seal
from compressor.measurement.judge import CandidateSpec, judge
from compressor.schema.events import Event
from compressor.schema.report import Report
from compressor.spec.pipeline import Pipeline


def record(stage: str, *, inputs: dict[str, str] | None = None) -> Record:
    """A record without news."""
    return Record(
        stage=stage,
        kind="source",
        fingerprint="0" * 64,
        config={},
        inputs=inputs or {},
        data={},
        seed=0,
        versions={},
        realised={},
        wall_s=0.0,
        cpu_s=0.0,
        energy=None,
        energy_reason="a test",
        host={},
        created="2026-01-01T00:00:00+00:00",
    )


def seal_with_graphs(source: Path, folder: Path, *, task: str, labels: tuple[str, ...] | None) -> Checkpoint:
    """A checkpoint of three variants: torch, ONNX fp32, dynamic INT8."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    from compressor.graphs.export import export_decoder, export_encoder
    from compressor.graphs.facts import inspect_onnx
    from compressor.graphs.quantise import quantise_dynamic

    shutil.copytree(source, folder)
    (folder / "onnx").mkdir()
    is_decoder = task == "causal-lm"
    kind = AutoModelForCausalLM if is_decoder else AutoModelForSequenceClassification
    model = kind.from_pretrained(folder).eval()
    (export_decoder if is_decoder else export_encoder)(model, folder / "onnx" / "model.onnx")
    quantise_dynamic(folder / "onnx" / "model.onnx", folder / "onnx" / "model_int8.onnx")
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    weights = folder / "model.safetensors"
    variants = [
        Variant(
            id="torch-fp32",
            path=weights.name,
            runtime="torch",
            scheme="fp32",
            stage="teacher",
            parameters=n_parameters,
            size_bytes=weights.stat().st_size,
        )
    ]
    for name, scheme in (("model", "fp32"), ("model_int8", "w8a8-dynamic")):
        facts = inspect_onnx(folder / "onnx" / f"{name}.onnx")
        variants.append(
            Variant(
                id=f"onnx-{scheme}",
                path=f"onnx/{name}.onnx",
                runtime="onnxruntime",
                scheme=scheme,
                stage="onnx",
                parameters=facts.n_parameters,
                size_bytes=facts.size_bytes,
                facts={"quantised_operators": facts.quantised_op_counts},
            )
        )
    return seal(
        folder,
        task=task,
        model_type=AutoConfig.from_pretrained(folder).model_type,
        architecture=type(model).__name__,
        labels=labels,
        variants=variants,
        structure=None,
        record=record("onnx"),
    )


def three_candidates(checkpoint: Checkpoint) -> list[CandidateSpec]:
    """The three variants as candidates: `teacher`, `onnx`, `int8`."""
    names = {"teacher": "torch-fp32", "onnx": "onnx-fp32", "int8": "onnx-w8a8-dynamic"}
    return [CandidateSpec(id_, id_, checkpoint, variant, False) for id_, variant in names.items()]


STAGES = [
    {"id": "teacher", "stage": "finetune"},
    {"id": "onnx", "stage": "export"},
    {"id": "int8", "stage": "quantize", "scheme": "w8a8-dynamic"},
]


def encoder_pipeline(era_files: dict[str, Path], **parts: Any) -> Pipeline:
    """A small pipeline over the era task; keyword arguments replace its parts."""
    values: dict[str, Any] = {
        "version": 1,
        "name": "era",
        "model": {"task": "sequence-classification", "path": "unused", "name": "tiny BERT, random weights"},
        "data": {**{split: {"path": str(path)} for split, path in era_files.items()}, "max_tokens": 32},
        "target": {"threads": 1},
        "workloads": [{"id": "rows", "batch": 8, "from_data": True, "rows": 32}],
        "stages": STAGES,
        "evaluate": {"rows": 60},
        "energy": {"profile": "smoke"},
    }
    return Pipeline.model_validate({**values, **parts})


def decoder_pipeline(sotu_text: dict[str, Path], **parts: Any) -> Pipeline:
    """The same over text."""
    values: dict[str, Any] = {
        "version": 1,
        "name": "sotu",
        "model": {"task": "causal-lm", "path": "unused", "name": "tiny Llama, random weights"},
        "data": {split: {"path": str(path)} for split, path in sotu_text.items()},
        "target": {"threads": 1},
        "workloads": [{"id": "chat", "batch": 2, "input_tokens": 16, "output_tokens": 16}],
        "stages": STAGES,
        "evaluate": {"rows": 1, "context": 64, "stride": 32},
        "energy": {"profile": "smoke"},
    }
    return Pipeline.model_validate({**values, **parts})


def always_first(predictions: Any, references: Any) -> float:
    """A user's metric: the share of class 0 among the predictions."""
    return float((predictions == 0).mean())


@dataclass(frozen=True)
class Judgement:
    """A report, the events on the way to it, and the folder it was made in."""

    report: Report
    events: list[Event]
    run_dir: Path


def judge_three(pipeline: Pipeline, specs: list[CandidateSpec], run_dir: Path, **parts: Any) -> Judgement:
    """Judge with the baseline `teacher`."""
    events: list[Event] = []
    values: dict[str, Any] = {"stage_costs": (), "failures": (), "metrics": None, **parts}
    report = judge(pipeline, specs, baseline="teacher", run_dir=run_dir, emit=events.append, **values)
    return Judgement(report, events, run_dir)
