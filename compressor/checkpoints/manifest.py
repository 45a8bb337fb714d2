"""`compressor.json`, the manifest that makes a Hugging Face folder a checkpoint of ours.

Two parts. `content` says what the checkpoint *is* (files with their sha256, variants, kept structure). Its canonical
JSON is what the digest covers, so equal content has an equal digest wherever and whenever it was made.
`record` says how it *came to be* (stage, settings, inputs, versions, realised numbers, cost); it is hashed for
integrity only. The manifest is written last: a folder that has one is complete.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MANIFEST_NAME = "compressor.json"
CERTIFICATE_NAME = "certificate.json"
"""Beside the manifest, which is sealed before anything is judged: whether its files are certified, by their sha256."""
SCHEMA = "compressor-manifest/1"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FileEntry(_Record):
    """One file of the folder."""

    sha256: str
    size_bytes: int


class Variant(_Record):
    """One way to run the checkpoint: a candidate of a report is a (checkpoint, variant) pair."""

    id: str
    """`torch-fp32`, `onnx-fp32`, `onnx-fp16`, `onnx-w8a8-dynamic`, ..."""
    path: str
    """Weights or graph, relative to the folder: `model.safetensors`, `onnx/model_int8.onnx`."""
    runtime: Literal["torch", "onnxruntime"]
    scheme: str
    stage: str
    """The stage that made it; later stages carry it forward."""
    parameters: int
    """Counted in the file, ties once."""
    size_bytes: int
    """The file, with its external data."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """Read back from the file: dtypes, operators, fusions."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Runtime settings tuned for it (threads, spinning, ...)."""


class Content(_Record):
    """What the checkpoint is."""

    task: str
    model_type: str
    architecture: str
    """Class name in `transformers`."""
    labels: tuple[str, ...] | None
    files: dict[str, FileEntry]
    """Every file of the folder but the manifest, by relative path."""
    variants: tuple[Variant, ...]
    structure: dict[str, Any] | None
    """What pruning kept, layer by layer (`methods.structure`); None for a stock shape."""


class Record(_Record):
    """How the checkpoint came to be."""

    stage: str
    kind: str
    """`source`, `finetune`, `distill`, `prune`, `export`, `quantize`, `tune`."""
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]
    """Role -> digest of the checkpoint that went in."""
    data: dict[str, str]
    """Split -> digest of the rows that were used."""
    seed: int
    versions: dict[str, str]
    realised: dict[str, Any]
    """Numbers measured afterwards: parameters, parity, validation metrics, losses."""
    wall_s: float
    cpu_s: float
    energy: dict[str, Any] | None
    """`energy-result/1`; None with the reason in `energy_reason`."""
    energy_reason: str | None
    host: dict[str, Any]
    created: str


class Manifest(_Record):
    """The file as it lies on disk."""

    schema_: Literal["compressor-manifest/1"] = Field(default="compressor-manifest/1", alias="schema")
    digest: str
    """sha256 of the canonical JSON of `content`."""
    content: Content
    record: Record
    record_sha256: str

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True)
