"""A small checkpoint with every variant, made by the rooms that make them in earnest.

Imports stand inside the functions: pytest may read this file before the network is cut, and the hub's client looks at
its settings once, when it is imported.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.checkpoints.manifest import Record
    from compressor.checkpoints.store import Checkpoint
    from compressor.methods.structure import Structure

ERAS = ("before 1865", "1865 to 1944", "since 1945")


def record() -> Record:
    from compressor.checkpoints.manifest import Record

    return Record(
        stage="test", kind="export", fingerprint="", config={}, inputs={}, data={}, seed=0, versions={}, realised={},
        wall_s=0.0, cpu_s=0.0, energy=None, energy_reason="a test", host={}, created="2026-01-01T00:00:00Z",
    )  # fmt: skip


def make_checkpoint(
    source: Path, folder: Path, *, structure: Structure | None = None, with_onnx: bool = True
) -> Checkpoint:
    """torch-fp32 of a model, pruned first where a structure is given; onnx-fp32 and onnx-w8a8-dynamic beside it."""
    from compressor.checkpoints.manifest import Variant
    from compressor.checkpoints.store import seal
    from compressor.graphs.export import export_decoder, export_encoder
    from compressor.graphs.quantise import quantise_dynamic
    from compressor.methods.surgery import apply_structure, n_parameters
    from compressor.runtime.torch_models import load_module, save_module, task_of

    module = load_module(source)
    task = task_of(module.config, source)
    labels = None if task.is_decoder else ERAS
    if labels is not None:
        module.config.id2label = dict(enumerate(labels))
    kept: dict[str, Any] | None = None
    if structure is not None:
        apply_structure(module, structure)
        kept = structure.to_json()
    save_module(module, folder, structure=kept)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    rows = [("torch-fp32", "model.safetensors", "torch", "fp32")]
    if with_onnx:
        graph = folder / "onnx" / "model.onnx"
        (export_decoder if task.is_decoder else export_encoder)(module, graph)
        quantise_dynamic(graph, folder / "onnx" / "model_int8.onnx")
        rows.append(("onnx-fp32", "onnx/model.onnx", "onnxruntime", "fp32"))
        rows.append(("onnx-w8a8-dynamic", "onnx/model_int8.onnx", "onnxruntime", "w8a8-dynamic"))
    variants = [
        Variant(
            id=name, path=path, runtime=runtime, scheme=scheme, stage="test", parameters=n_parameters(module),
            size_bytes=(folder / path).stat().st_size,
        )
        for name, path, runtime, scheme in rows
    ]  # fmt: skip
    return seal(
        folder, task=task.name, model_type=module.config.model_type, architecture=type(module).__name__, labels=labels,
        variants=variants, structure=kept, record=record(),
    )  # fmt: skip
