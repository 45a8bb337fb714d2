"""What a distillation compares, and how large its teacher's cached outputs would be: for the dry run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.spec.stages import Distill
from compressor.spec.tasks import Task

VECTORS_OF = {"embeddings": 1, "hidden": 1, "pkd": 1, "attention": 2}
"""Vectors of the model's width that a loss keeps of each token, for each layer that it compares."""
HALF, INDEX = 2, 4  # bytes


def losses_text(config: Distill) -> str:
    """The losses as they will be, presets written out: `labels 0.1, logits 0.9 (forward_kl, T 2)`."""
    parts = [f"labels {config.losses.labels:g}"] if config.losses.labels else []
    for name, piece in config.losses.pieces().items():
        said = [str(getattr(piece, "kind", ""))] if hasattr(piece, "kind") else []
        said += [f"T {piece.temperature:g}"] if name == "logits" else []
        said += [f"{piece.at} layer"] if hasattr(piece, "at") else []
        parts.append(f"{name} {piece.weight:g}" + (f" ({', '.join(said)})" if said else ""))
    return ", ".join(parts)


def cache_bytes(
    config: Distill, model: Mapping[str, Any], task: Task, n_tokens: float, vocab_size: int
) -> float | None:
    """Bytes of the teacher's outputs that have a line for each token; None where the model's shape is not known.

    Args:
        config: the stage.
        model: the teacher's Hugging Face config (the pipeline's model; a teacher is that model, trained).
        task: what it answers.
        n_tokens: of all training rows.
        vocab_size: of a language model.
    """
    hidden = model.get("hidden_size") or model.get("n_embd") or model.get("dim")
    n_layers = next((model[key] for key in ("num_hidden_layers", "n_layer", "n_layers") if key in model), None)
    if hidden is None or n_layers is None:
        return None
    own = config.student.config if config.student is not None else None
    depth = len(config.layers) if config.layers is not None else (own or {}).get("num_hidden_layers", n_layers)
    vectors = 0
    for name, piece in config.losses.pieces().items():
        held = 1 if name == "embeddings" or getattr(piece, "at", "every") == "last" else depth
        vectors += held * (len(piece.of) if name == "relations" else VECTORS_OF.get(name, 0))
    per_token = vectors * hidden * HALF
    logits = config.losses.logits
    if logits is not None and task.kind in ("next_token", "masked_token"):
        per_token += logits.top_k * (HALF + INDEX) if logits.top_k else vocab_size * HALF
    n_variants = config.training.variants if task.kind == "masked_token" else 1
    n_variants += config.training.augment.variants if config.training.augment is not None else 0
    return float(per_token * n_tokens * n_variants)
