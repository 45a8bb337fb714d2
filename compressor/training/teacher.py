"""What the teacher says about each training row: computed once and cached, or asked live where it would not fit.

The cache is a folder of plain arrays. Per-token outputs lie end to end without padding, so a row is found by its index
and its length, in whatever order and beside whatever other rows it is drawn. `meta.json`, written after the arrays,
names the digests they were computed from: outputs of another teacher or of other rows are never used.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.checkpoints.files import digest_json
from compressor.methods.losses import coarse_logits
from compressor.schema.events import Emit, Note, Progress
from compressor.spec.tasks import Kind
from compressor.training.answers import VOCABULARY, answer_of
from compressor.training.inside import Inside, Place
from compressor.training.rows import Batch, Row, batches_by_length, collate, model_inputs, on_device

META = "meta.json"
BATCH_ROWS = 32
AUTO_TOP_K = 64
"""Logits of a token that are kept where all of them would not fit."""


@dataclass(frozen=True)
class TeacherOutputs:
    """The teacher's side of one batch.

    Attributes:
        answer: as `answer_of` gives it; with `classes`, (B, T, k + 1) coarse logits at the temperature asked for.
        inside: place -> (B, T, width); zero on padding.
        classes: (B, T, k) the tokens whose logits were kept, where not all were.
    """

    answer: Tensor
    inside: Mapping[Place, Tensor]
    classes: Tensor | None = None


Teacher = Callable[[Batch], TeacherOutputs]


@dataclass(frozen=True)
class TopK:
    """Keep the k largest logits of a token and the mass of all others.

    Attributes:
        k: None keeps all of them where they fit, else `AUTO_TOP_K`.
        temperature: the mass of the others depends on it.
    """

    k: int | None
    temperature: float


@dataclass(frozen=True)
class _Needed:
    """One array of the cache."""

    name: str
    is_per_token: bool
    width: int
    dtype: str

    def n_bytes(self, n_rows: int, n_tokens: int) -> int:
        return (n_tokens if self.is_per_token else n_rows) * self.width * np.dtype(self.dtype).itemsize


class _Looking:
    """The teacher and what is wanted of it, as arrays by the name of their file."""

    def __init__(
        self, model: nn.Module, kind: Kind, places: Sequence[Place], k: int | None, temperature: float, precision: str
    ) -> None:
        self.model, self.kind, self.k, self.temperature, self.precision = model, kind, k, temperature, precision
        self.inside = Inside(model, places)
        kept = "" if k is None else f"_top{k}_t{temperature:g}"
        self.answer, self.classes = f"answer{kept}", f"classes{kept}"

    @property
    def may_keep_less(self) -> bool:
        """Whether there are logits of a vocabulary, nobody said how many to keep, and nothing else is wanted."""
        return self.kind in VOCABULARY and self.k is None and not self.inside.places

    @torch.no_grad()
    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """(B, width) or (B, T, width) each."""
        device = next(self.model.parameters()).device
        inputs = on_device(model_inputs(batch), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            outputs = self.model(**inputs, output_hidden_states=self.inside.wants_hidden, **_no_cache(self.model))
        found = {place.name: tensor.float() for place, tensor in self.inside.take(outputs).items()}
        answer = answer_of(outputs, self.kind).float()
        # A softmax does not see a shift, and 16 bits are finest near zero: so the likeliest token comes to lie there.
        if self.k is not None:
            classes = answer.topk(self.k, dim=-1).indices
            coarse = coarse_logits(answer, classes, self.temperature)
            return found | {self.answer: coarse - coarse[..., :1], self.classes: classes}
        if self.kind in VOCABULARY:
            answer = answer - answer.amax(dim=-1, keepdim=True)
        return found | {self.answer: answer}

    def outputs(self, found: Mapping[str, Tensor]) -> TeacherOutputs:
        """The arrays of one batch as a loss takes them."""
        return TeacherOutputs(
            answer=found[self.answer],
            inside={place: found[place.name] for place in self.inside.places},
            classes=found.get(self.classes),
        )

    def needed(self, row: Row, pad_id: int) -> list[_Needed]:
        """The arrays, read off the answer to one row."""
        return [
            _Needed(name, tensor.dim() == 3, tensor.shape[-1], self._dtype(name))
            for name, tensor in self(collate([row], pad_id=pad_id)).items()
        ]

    def _dtype(self, name: str) -> str:
        if name == self.classes:
            return "int32"
        return "float32" if name == self.answer and self.kind not in VOCABULARY else "float16"


def ask_teacher(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    kind: Kind,
    places: Sequence[Place],
    top_k: TopK,
    key: Mapping[str, Any],
    folder: Path,
    limit_bytes: int,
    n_drawn: int,
    pad_id: int,
    stage: str,
    emit: Emit,
    device: str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Teacher:
    """The teacher as a function of a batch, cached on disk where its outputs fit.

    Answers with one line per row (a class, a number, an embedding) are always cached, in fp32. What has a line per
    token, a language model's logits and what goes on inside, is cached in fp16 while all of it stays below
    `limit_bytes` and leaves a tenth of the free disk. Where a language model's logits alone are too much, the largest
    of each token are kept, with the mass of the others. Where what goes on inside is too much, the teacher runs live
    beside the student. It also does where the student will not see every row even once, since a cache would ask it
    more than it is going to be asked. Each of these is said in a `Note`.

    Args:
        model: the teacher; put into evaluation mode.
        rows: all training rows, in the order of their `index`.
        kind: what it answers.
        places: what is wanted of its inside.
        top_k: how much of a language model's logits to keep.
        key: what the outputs depend on (digest of the teacher, digest of the rows, ...).
        folder: the cache; one teacher and data set at a time.
        limit_bytes: see above.
        n_drawn: how many rows training will draw, those that it draws again included.
        pad_id: the padding token.
        stage: whose events these are.
        emit: takes them.
        device: where the teacher runs, `cpu` or `cuda`.
        precision: in which it multiplies; the student's own, since no student sees a finer answer than its loss.
    """
    model.eval().requires_grad_(False).to(device)
    lengths = np.array([len(row["input_ids"]) for row in rows])
    looking = _Looking(model, kind, places, top_k.k, top_k.temperature, precision)
    needed = looking.needed(rows[0], pad_id)
    if n_drawn < len(rows) and any(array.is_per_token for array in needed):
        text = f"{n_drawn:,} of {len(rows):,} rows will be seen, which is no reason to cache all that the teacher says"
        emit(Note(stage, f"{text}: the teacher runs in every step"))
        return _Live(looking)
    folder.mkdir(parents=True, exist_ok=True)
    present = _present(folder, key, stage, emit)
    room = min(limit_bytes, int(shutil.disk_usage(folder).free * 0.9))
    size = _n_bulky(needed, lengths)
    if size > room and not {array.name for array in needed} <= present:
        there_is = f"above the {room / 1e9:.1f} GB there is for them (cache_limit_gb, free disk)"
        part = (
            _Looking(model, kind, places, AUTO_TOP_K, top_k.temperature, precision) if looking.may_keep_less else None
        )
        if part is None or _n_bulky(part.needed(rows[0], pad_id), lengths) > room:
            text = f"the teacher's outputs would take {size / 1e9:.1f} GB, {there_is}: the teacher runs in every step"
            emit(Note(stage, text))
            return _Live(looking)
        looking, needed = part, part.needed(rows[0], pad_id)
        text = (
            f"all of the teacher's logits would take {size / 1e9:.1f} GB, {there_is}: the {AUTO_TOP_K} largest of each "
            "token are cached, and the mass of the others"
        )
        emit(Note(stage, text))
    missing = [array for array in needed if array.name not in present]
    if missing:
        _compute(looking, rows, missing, lengths, folder, pad_id=pad_id, stage=stage, emit=emit)
        _write_meta(folder, key, present | {array.name for array in missing})
    looking.inside.close()
    return _Cached(folder, looking, needed, lengths)


def _n_bulky(arrays: Sequence[_Needed], lengths: NDArray[np.integer]) -> int:
    """Bytes of what has a line per token."""
    return sum(array.n_bytes(len(lengths), int(lengths.sum())) for array in arrays if array.is_per_token)


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


def _compute(
    looking: _Looking,
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
    for array in arrays:
        _reserve(folder / f"{array.name}.npy")
    starts = _starts(lengths)
    n_done = 0
    for batch in batches_by_length(rows, BATCH_ROWS, pad_id=pad_id):
        found = looking(batch)
        for array in arrays:
            values = found[array.name].cpu().numpy().astype(array.dtype)  # (B, width) or (B, T, width)
            for position, index in enumerate(batch["index"].tolist()):
                if array.is_per_token:
                    files[array.name][starts[index] : starts[index + 1]] = values[position, : lengths[index]]
                else:
                    files[array.name][index] = values[position]
        n_done += len(batch["index"])
        emit(Progress(stage, "teacher outputs", n_done, len(rows)))
    for file in files.values():
        file.flush()


def _reserve(path: Path) -> None:
    """Take the whole file's room on the disk now: a mapped file that finds the disk full later ends the process."""
    if hasattr(os, "posix_fallocate"):  # not on every system
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


class _Cached:
    """The teacher, read from disk."""

    def __init__(
        self, folder: Path, looking: _Looking, arrays: Sequence[_Needed], lengths: NDArray[np.integer]
    ) -> None:
        self.looking, self.arrays, self.lengths = looking, arrays, lengths
        self.files = {array.name: np.load(folder / f"{array.name}.npy", mmap_mode="r") for array in arrays}
        self.starts = _starts(lengths)

    def __call__(self, batch: Batch) -> TeacherOutputs:
        indices = batch["index"].tolist()
        width, device = batch["input_ids"].shape[1], batch["input_ids"].device
        found = {array.name: self._gather(array, indices, width).to(device) for array in self.arrays}
        return self.looking.outputs(found)

    def _gather(self, array: _Needed, indices: list[int], width: int) -> Tensor:
        file = self.files[array.name]
        dtype = np.int64 if array.dtype == "int32" else np.float32
        if not array.is_per_token:
            return torch.from_numpy(file[indices].astype(dtype))  # (B, C)
        padded = np.zeros((len(indices), width, array.width), dtype=dtype)  # (B, T, width)
        for position, index in enumerate(indices):
            padded[position, : self.lengths[index]] = file[self.starts[index] : self.starts[index + 1]]
        return torch.from_numpy(padded)


class _Live:
    """The teacher, run beside the student."""

    def __init__(self, looking: _Looking) -> None:
        self.looking = looking

    def __call__(self, batch: Batch) -> TeacherOutputs:
        outputs = self.looking.outputs(self.looking(batch))
        real = batch["attention_mask"].unsqueeze(-1)  # (B, T, 1)
        return replace(outputs, inside={place: tensor * real for place, tensor in outputs.inside.items()})


def _starts(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Where each row begins in an array with a line per token, and the end of the last, (n_rows + 1,)."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _no_cache(model: nn.Module) -> dict[str, bool]:
    """Decoders would build a key/value cache that nobody reads."""
    return {"use_cache": False} if hasattr(model.config, "use_cache") and model.config.use_cache else {}
