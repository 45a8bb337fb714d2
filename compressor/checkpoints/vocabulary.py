"""What a trimmed checkpoint kept of its first vocabulary: one small file that goes with it from stage to stage."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.checkpoints.store import Checkpoint
from compressor.errors import CheckpointError

KEPT_TOKENS = "kept_token_ids.json"


@dataclass(frozen=True)
class KeptTokens:
    """Which tokens are left.

    Attributes:
        of_tokenizer: sha256 of the whole `tokenizer.json`.
        kept_token_ids: increasing; token i of the trimmed vocabulary is token kept_token_ids[i] of the whole one.
    """

    of_tokenizer: str
    kept_token_ids: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {"of_tokenizer": self.of_tokenizer, "kept_token_ids": list(self.kept_token_ids)}


def kept_tokens_of(checkpoint: Checkpoint) -> KeptTokens | None:
    """What a checkpoint's vocabulary kept; None where it was never trimmed.

    Raises:
        CheckpointError: a file that cannot be read.
    """
    path = checkpoint.path / KEPT_TOKENS
    return read_kept_tokens(path) if KEPT_TOKENS in checkpoint.content.files else None


def read_kept_tokens(path: Path) -> KeptTokens:
    """Read the file.

    Raises:
        CheckpointError: it is not what `KeptTokens.to_json` gives.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return KeptTokens(str(value["of_tokenizer"]), tuple(int(one) for one in value["kept_token_ids"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the kept tokens cannot be read: {error!r}", where=str(path)) from error
