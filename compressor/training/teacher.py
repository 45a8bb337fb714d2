"""What the teacher says about each training row: computed once and cached, or asked live where it would not fit.

The cache is a folder of plain arrays. Per-token outputs lie end to end without padding, so a row is found by its index
and its length, in whatever order and beside whatever other rows it is drawn. `meta.json`, written after the arrays,
names the digests they were computed from: outputs of another teacher or of other rows are never used.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.checkpoints.files import digest_json
from compressor.schema.events import Emit, Note, Progress
from compressor.training.rows import Batch, Row, batches_by_length, model_inputs, on_device

META = "meta.json"
BATCH_ROWS = 32


@dataclass(frozen=True)
class TeacherOutputs:
    """The teacher's side of one batch.

    Attributes:
        logits: (B, C), or (B, T, V) of a language model.
        hidden: teacher layer -> (B, T, H); zero on padding.
    """

    logits: Tensor
    hidden: Mapping[int, Tensor]


Teacher = Callable[[Batch], TeacherOutputs]


@dataclass(frozen=True)
class _Needed:
    """One array of the cache."""

    name: str
    layer: int | None  # None for the logits
    is_per_token: bool
    width: int
    dtype: str

    def n_bytes(self, n_rows: int, n_tokens: int) -> int:
        return (n_tokens if self.is_per_token else n_rows) * self.width * np.dtype(self.dtype).itemsize


def ask_teacher(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    key: Mapping[str, Any],
    folder: Path,
    hidden_layers: Sequence[int],
    is_per_token: bool,
    limit_bytes: int,
    n_drawn: int,
    pad_id: int,
    stage: str,
    emit: Emit,
    device: str = "cpu",
) -> Teacher:
    """The teacher as a function of a batch, cached on disk where its outputs fit.

    Logits of a classifier are always cached (fp32). Outputs with a row per token, hidden states and a language model's
    logits, are cached in fp16 while all of them together stay below `limit_bytes` and leave a tenth of the free disk;
    else the teacher runs live beside the student, and a `Note` says so. It also runs live where the student will not
    see every row even once, since a cache would ask it more than it is going to be asked.

    Args:
        model: the teacher; put into evaluation mode.
        rows: all training rows, in the order of their `index`.
        key: what the outputs depend on (digest of the teacher, digest of the rows, ...).
        folder: the cache; one teacher and data set at a time.
        hidden_layers: teacher layers whose outputs are wanted, counted from 0.
        is_per_token: whether the logits are (B, T, V).
        limit_bytes: see above.
        n_drawn: how many rows training will draw, those that it draws again included.
        pad_id: the padding token.
        stage: whose events these are.
        emit: takes them.
        device: where the teacher runs, `cpu` or `cuda`.
    """
    model.eval().requires_grad_(False).to(device)
    lengths = np.array([len(row["input_ids"]) for row in rows])
    needed = _needed(model, hidden_layers, is_per_token)
    bulky = sum(array.n_bytes(len(rows), int(lengths.sum())) for array in needed if array.is_per_token)
    if bulky and n_drawn < len(rows):
        return _Live(model, tuple(hidden_layers))
    folder.mkdir(parents=True, exist_ok=True)
    room = min(limit_bytes, int(shutil.disk_usage(folder).free * 0.9))
    if bulky > room:
        emit(
            Note(
                stage,
                f"the teacher's outputs would take {bulky / 1e9:.1f} GB, above the {room / 1e9:.1f} GB there is for "
                "them (cache_limit_gb, free disk): the teacher runs live in every step",
            )
        )
        return _Live(model, tuple(hidden_layers))
    present = _present(folder, key, stage, emit)
    missing = [array for array in needed if array.name not in present]
    if missing:
        _compute(model, rows, missing, lengths, folder, pad_id=pad_id, stage=stage, emit=emit)
        _write_meta(folder, key, present | {array.name for array in missing})
    return _Cached(folder, needed, lengths)


def _needed(model: nn.Module, hidden_layers: Sequence[int], is_per_token: bool) -> list[_Needed]:
    config: Any = model.config
    logits = (
        _Needed("logits", None, True, config.vocab_size, "float16")
        if is_per_token
        else _Needed("logits", None, False, config.num_labels, "float32")
    )
    hidden = [
        _Needed(f"hidden_{layer:02d}", layer, True, config.hidden_size, "float16")
        for layer in sorted(set(hidden_layers))
    ]
    return [logits, *hidden]


def _present(folder: Path, key: Mapping[str, Any], stage: str, emit: Emit) -> set[str]:
    """Names of the arrays that are there and were computed from the same things."""
    try:
        meta = json.loads((folder / META).read_text())
    except FileNotFoundError:
        return set()
    if meta["key"] == digest_json(key):
        return set(meta["arrays"])
    changed = sorted(name for name in key if meta["of"].get(name) != key[name])
    emit(
        Note(
            stage,
            f"the cached teacher outputs belong to another {', '.join(changed)}; they are computed anew",
        )
    )
    (folder / META).unlink()
    return set()


def _write_meta(folder: Path, key: Mapping[str, Any], arrays: set[str]) -> None:
    partial = folder / f"{META}.partial"
    partial.write_text(json.dumps({"key": digest_json(key), "of": dict(key), "arrays": sorted(arrays)}, indent=1))
    partial.replace(folder / META)


@torch.no_grad()
def _compute(
    model: nn.Module,
    rows: Sequence[Row],
    arrays: Sequence[_Needed],
    lengths: NDArray[np.integer],
    folder: Path,
    *,
    pad_id: int,
    stage: str,
    emit: Emit,
) -> None:
    files = {
        array.name: np.lib.format.open_memmap(
            folder / f"{array.name}.npy",
            mode="w+",
            dtype=array.dtype,
            shape=(int(lengths.sum()) if array.is_per_token else len(rows), array.width),
        )
        for array in arrays
    }
    starts = _starts(lengths)
    device = next(model.parameters()).device
    wants_hidden = any(array.layer is not None for array in arrays)
    n_done = 0
    for batch in batches_by_length(rows, BATCH_ROWS, pad_id=pad_id):
        inputs = on_device(model_inputs(batch), device)
        outputs = model(**inputs, output_hidden_states=wants_hidden, **_no_cache(model))
        for array in arrays:
            value = outputs.logits if array.layer is None else outputs.hidden_states[array.layer + 1]
            values = value.float().cpu().numpy().astype(array.dtype)  # (B, C) or (B, T, width)
            for position, index in enumerate(batch["index"].tolist()):
                if array.is_per_token:
                    files[array.name][starts[index] : starts[index + 1]] = values[position, : lengths[index]]
                else:
                    files[array.name][index] = values[position]
        n_done += len(batch["index"])
        emit(Progress(stage, "teacher outputs", n_done, len(rows)))
    for file in files.values():
        file.flush()


class _Cached:
    """The teacher, read from disk."""

    def __init__(self, folder: Path, arrays: Sequence[_Needed], lengths: NDArray[np.integer]) -> None:
        self.arrays = arrays
        self.files = {array.name: np.load(folder / f"{array.name}.npy", mmap_mode="r") for array in arrays}
        self.lengths = lengths
        self.starts = _starts(lengths)

    def __call__(self, batch: Batch) -> TeacherOutputs:
        indices = batch["index"].tolist()
        width = batch["input_ids"].shape[1]
        device = batch["input_ids"].device
        found = {array.layer: self._gather(array, indices, width).to(device) for array in self.arrays}
        return TeacherOutputs(
            logits=found[None], hidden={layer: tensor for layer, tensor in found.items() if layer is not None}
        )

    def _gather(self, array: _Needed, indices: list[int], width: int) -> Tensor:
        file = self.files[array.name]
        if not array.is_per_token:
            return torch.from_numpy(file[indices]).float()  # (B, C)
        padded = np.zeros((len(indices), width, array.width), dtype=np.float32)  # (B, T, width)
        for position, index in enumerate(indices):
            padded[position, : self.lengths[index]] = file[self.starts[index] : self.starts[index + 1]]
        return torch.from_numpy(padded)


class _Live:
    """The teacher, run beside the student."""

    def __init__(self, model: nn.Module, hidden_layers: tuple[int, ...]) -> None:
        self.model = model
        self.hidden_layers = hidden_layers

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherOutputs:
        outputs = self.model(
            **model_inputs(batch), output_hidden_states=bool(self.hidden_layers), **_no_cache(self.model)
        )
        real = batch["attention_mask"].unsqueeze(-1)  # (B, T, 1)
        hidden = {layer: outputs.hidden_states[layer + 1] * real for layer in self.hidden_layers}
        return TeacherOutputs(logits=outputs.logits, hidden=hidden)


def _starts(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Where each row begins in an array with a line per token, and the end of the last, (n_rows + 1,)."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _no_cache(model: nn.Module) -> dict[str, bool]:
    """Decoders would build a key/value cache that nobody reads."""
    return {"use_cache": False} if hasattr(model.config, "use_cache") and model.config.use_cache else {}
