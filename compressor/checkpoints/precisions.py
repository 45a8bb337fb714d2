"""What a search chose to store each sublayer in: one small file that goes with a pruned checkpoint from stage to stage,
until a quantisation follows it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from compressor.checkpoints.files import write_whole
from compressor.checkpoints.store import Checkpoint
from compressor.errors import CheckpointError

PRECISIONS = "precisions.json"
SCHEMA = "compressor-precisions/1"


def write_precisions(folder: Path, layers: Sequence[Mapping[str, str]]) -> None:
    """Leave the file in a folder that is not sealed yet.

    Args:
        layers: for each layer, kind of sublayer -> `fp32` or `int8`; removed ones are not named.
    """
    value = {"schema": SCHEMA, "layers": [dict(layer) for layer in layers]}
    write_whole(folder / PRECISIONS, json.dumps(value, indent=1) + "\n")


def precisions_of(checkpoint: Checkpoint) -> tuple[dict[str, str], ...] | None:
    """For each layer, kind of sublayer -> precision; None where nothing was chosen.

    Raises:
        CheckpointError: the file is not what `write_precisions` writes.
    """
    if PRECISIONS not in checkpoint.content.files:
        return None
    path = checkpoint.path / PRECISIONS
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']}")
        layers = tuple({str(kind): str(chosen) for kind, chosen in layer.items()} for layer in value["layers"])
        if any(chosen not in ("fp32", "int8") for layer in layers for chosen in layer.values()):
            raise ValueError("a precision that is neither fp32 nor int8")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the chosen precisions cannot be read: {error!r}", where=str(path)) from error
    return layers
