"""When is a stage already done: one sha256 over everything that its output depends on."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from compressor.checkpoints.files import digest_json

LIBRARIES_THAT_MATTER = (
    "accelerate", "datasets", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "safetensors", "tokenizers",
    "torch", "transformers",
)  # fmt: skip
"""Libraries whose arithmetic, tokens or files end up in a checkpoint."""


def fingerprint(
    *,
    kind: str,
    version: int,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    data: Mapping[str, str],
    versions: Mapping[str, str],
    seed: int,
) -> str:
    """Hex sha256 of all that decides what a stage leaves; equal means that its checkpoint can be used again.

    Args:
        kind: kind of stage.
        version: the stage's own `VERSION`, raised when its code does something else.
        config: its settings as JSON, without its id: the same work under another name is the same work.
        inputs: role -> digest of the checkpoint that goes in.
        data: split -> digest of the rows that it reads.
        versions: `library_versions()`.
        seed: the pipeline's.
    """
    return digest_json(
        {
            "kind": kind,
            "version": version,
            "config": dict(config),
            "inputs": dict(inputs),
            "data": dict(data),
            "versions": dict(versions),
            "seed": seed,
        }
    )


def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that matter, read from their metadata; nothing is imported."""
    versions = {}
    for name in LIBRARIES_THAT_MATTER:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed takes no part
    return versions
