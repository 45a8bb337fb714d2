"""Running torch and ONNX side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

Arrays = dict[str, NDArray[np.generic]]


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path: Path, feed: Arrays) -> dict[str, NDArray[np.float32]]:
    opened = session(path)
    names = [value.name for value in opened.get_outputs()]
    wanted = {value.name: feed[value.name] for value in opened.get_inputs()}
    return dict(zip(names, opened.run(names, wanted), strict=True))


def texts(batch: int, length: int, *, vocab: int = 150, pad: int = 0, left: bool = False, seed: int = 0) -> Arrays:
    """Random ids; every text but the first has `pad` padding tokens."""
    ids = np.random.default_rng(seed).integers(3, vocab, (batch, length))
    mask = np.ones_like(ids)
    if pad:
        mask[1:, slice(None, pad) if left else slice(-pad, None)] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": (ids > vocab // 2).astype(np.int64) * 0}


def torch_logits(model: PreTrainedModel, feed: Arrays, *names: str) -> NDArray[np.float32]:
    with torch.no_grad():
        inputs = {name: torch.from_numpy(np.ascontiguousarray(feed[name])) for name in names}
        logits: NDArray[np.float32] = model(**inputs).logits.numpy()
    return logits


def empty_past(path: Path, batch: int) -> Arrays:
    return {
        value.name: np.zeros((batch, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session(path).get_inputs()
        if value.name.startswith("past_key_values.")
    }


def decode(path: Path, feed: Arrays, cuts: list[int]) -> NDArray[np.float32]:
    """Logits (B, T, V) of a whole batch, fed piece by piece through the cache."""
    ids, mask = feed["input_ids"], feed["attention_mask"]
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    past, pieces, start = empty_past(path, len(ids)), [], 0
    for end in [*cuts, ids.shape[1]]:
        piece = {
            "input_ids": ids[:, start:end],
            "attention_mask": mask[:, :end],
            "position_ids": positions[:, start:end],
        }
        outputs = run(path, {**piece, **past})
        pieces.append(outputs.pop("logits"))
        past = {name.replace("present", "past_key_values"): value for name, value in outputs.items()}
        start = end
    return np.concatenate(pieces, axis=1)
