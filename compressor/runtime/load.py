"""`compressor.load`: a folder or hub repository -> something that answers. ONNX variants need no torch."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from compressor.checkpoints.hub import resolve
from compressor.checkpoints.manifest import MANIFEST_NAME, Variant
from compressor.checkpoints.store import Checkpoint, open_checkpoint
from compressor.data.tokenize import Encoded, batches, load_tokenizer, pad
from compressor.errors import CheckpointError, UnsupportedError, UserError
from compressor.runtime.generate import greedy
from compressor.runtime.runners import Array, DecoderRunner, Runner, open_runner, open_torch, require_torch
from compressor.spec.tasks import TASKS, Task

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerFast

PRECISIONS = {
    "int8": ("w8a8-dynamic", "w8a8-static", "w8"),
    "int4": ("w4",),
}
"""Everyday words for schemes; a scheme's own name and a variant's id are understood too."""
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
Text = str | tuple[str, str]
"""A text, or a pair of texts."""


def load(
    path: str | Path,
    *,
    precision: str | None = None,
    runtime: Literal["torch", "onnxruntime"] | None = None,
    threads: int | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    revision: str | None = None,
) -> CompressedModel:
    """Open a checkpoint for use; every file is verified against the manifest first.

    Args:
        path: a checkpoint folder, a hub repository `organisation/name`, or a plain Hugging Face folder (through torch).
        precision: `fp32`, `fp16`, `int8`, `int4`, a scheme such as `w8a8-dynamic`, or a variant's id. The checkpoint's
            last variant where absent: what its last stage made.
        runtime: where several variants fit.
        threads: threads of one inference; those tuned for the variant, or all cores, where absent.
        device: `cpu` or `cuda`.
        revision: branch, tag or commit of a hub repository.

    Raises:
        CheckpointError: no such folder, half-written, corrupt, tampered with, or without such a variant.
        UnsupportedError: a device or an architecture that cannot be served.
        MissingPackageError: a torch variant without torch.
    """
    folder, _ = resolve(path, revision)
    if device not in PROVIDERS:
        raise UserError(f"device {device!r} is none of: {', '.join(PROVIDERS)}", where="device")
    is_ours = (folder / MANIFEST_NAME).is_file()
    if not is_ours and (folder.name.endswith(".partial") or not (folder / "config.json").is_file()):
        open_checkpoint(folder)  # says why not
    if is_ours:
        checkpoint = open_checkpoint(folder)
        variant = choose_variant(checkpoint, precision=precision, runtime=runtime)
        runner = open_runner(checkpoint, variant.id, threads=threads, provider=PROVIDERS[device])
        task = TASKS[checkpoint.content.task]  # type: ignore[index]
        return CompressedModel(
            folder, task, runner, labels=checkpoint.content.labels, variant=variant, checkpoint=checkpoint
        )
    if precision not in (None, "fp32") or runtime not in (None, "torch"):
        raise CheckpointError(
            f"a plain Hugging Face folder without {MANIFEST_NAME} has no variant but torch in fp32",
            where=str(folder),
            hint="leave precision and runtime out, or make variants with a pipeline",
        )
    return _load_plain(folder, threads=threads, device=device)


def choose_variant(checkpoint: Checkpoint, *, precision: str | None = None, runtime: str | None = None) -> Variant:
    """The last variant that fits; one that can run here wins over a torch variant without torch.

    Raises:
        CheckpointError: none fits; the text names those that are there.
    """
    schemes = PRECISIONS.get(precision or "", ())
    fits = [
        variant
        for variant in checkpoint.content.variants
        if runtime in (None, variant.runtime)
        and (precision in (None, variant.id, variant.scheme) or variant.scheme in schemes)
    ]
    if not fits:
        wanted = " and ".join(
            f"{key} {value!r}" for key, value in (("precision", precision), ("runtime", runtime)) if value
        )
        there = ", ".join(f"{variant.id} ({variant.scheme})" for variant in checkpoint.content.variants)
        raise CheckpointError(
            f"no variant with {wanted} here; there are: {there or 'none'}", where=str(checkpoint.path)
        )
    if importlib.util.find_spec("torch") is None:
        fits = [variant for variant in fits if variant.runtime != "torch"] or fits
    return fits[-1]


def _load_plain(folder: Path, *, threads: int | None, device: str) -> CompressedModel:
    require_torch(f"a plain Hugging Face folder ({folder})")
    from compressor.runtime.torch_models import load_module, read_config, task_of

    config = read_config(folder)
    task = task_of(config, folder)
    names = sorted((config.id2label or {}).items())
    labels = tuple(str(name) for _, name in names) if task.has_classes else None
    runner = open_torch(load_module(folder, task=task), task, threads=threads, provider=PROVIDERS[device])
    return CompressedModel(folder, task, runner, labels=labels)


@dataclass(frozen=True)
class Output:
    """What a call gives: `output.logits` or `output["logits"]`, in the kind of array that went in."""

    logits: Any

    def __getitem__(self, name: str) -> Any:
        if name != "logits":
            raise KeyError(name)
        return self.logits


class CompressedModel:
    """A checkpoint that answers.

    Attributes:
        folder: where its files are.
        task: its row of the task table.
        runner: what runs it; numpy in, numpy out.
        labels: names of the classes, or None.
        variant: the variant in use; None for a plain Hugging Face folder.
        checkpoint: the checkpoint; None for a plain Hugging Face folder.
        tokenizer: its tokenizer.
    """

    def __init__(
        self,
        folder: Path,
        task: Task,
        runner: Runner,
        *,
        labels: tuple[str, ...] | None = None,
        variant: Variant | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.folder = folder
        self.task = task
        self.runner = runner
        self.labels = labels
        self.variant = variant
        self.checkpoint = checkpoint
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(folder)

    def __repr__(self) -> str:
        return f"CompressedModel({str(self.folder)!r}, variant={self.variant.id if self.variant else 'torch-fp32'!r})"

    def __call__(self, **inputs: Any) -> Output:
        """`model(**tokenizer(texts, padding=True))`: lists, numpy arrays or torch tensors, (B, T) each."""
        has_tensors = any(hasattr(value, "detach") for value in inputs.values())
        arrays = {
            name: (value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value, dtype=np.int64))
            for name, value in inputs.items()
        }
        arrays.setdefault("attention_mask", np.ones_like(arrays["input_ids"]))
        logits = self.runner.forward(arrays)[self.task.outputs[-1]]
        if has_tensors:
            import torch

            return Output(torch.from_numpy(logits))
        return Output(logits)

    @property
    def module(self) -> nn.Module:
        """The live torch module.

        Raises:
            UnsupportedError: this variant runs in ONNX Runtime.
        """
        if not hasattr(self.runner, "module"):
            raise UnsupportedError(
                f"the variant {self.variant.id if self.variant else ''!r} runs in ONNX Runtime and has no torch module",
                where=str(self.folder),
                hint='load(path, runtime="torch")',
            )
        module: nn.Module = self.runner.module
        return module

    def logits(self, texts: Sequence[Text] | Text, *, batch_size: int = 32) -> Array:
        """Class logits of each text, (N, C), in the order of the texts; longer texts are cut to the model's length.

        Raises:
            UnsupportedError: a model that does not classify.
        """
        if self.task.is_decoder:
            raise UnsupportedError(f"a {self.task.name} model does not classify", hint="use generate()")
        rows = self._encode([texts] if isinstance(texts, str | tuple) else texts, max_tokens=self._max_tokens())
        if not rows:
            return np.zeros((0, len(self.labels or ())), np.float32)
        name = self.task.outputs[-1]
        parts = [self.runner.forward(batch)[name] for batch in batches(rows, batch_size, _pad_id(self.tokenizer))]
        return np.concatenate(parts)

    def predict(self, texts: Sequence[Text] | Text, *, batch_size: int = 32) -> list[dict[str, Any]]:
        """The most likely class of each text: `{"label": name, "score": probability}`."""
        logits = self.logits(texts, batch_size=batch_size).astype(np.float64)  # (N, C)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = odds / odds.sum(axis=1, keepdims=True)
        best = scores.argmax(axis=1)
        return [
            {"label": self.labels[index] if self.labels else str(index), "score": float(row[index])}
            for row, index in zip(scores, best, strict=True)
        ]

    def generate(
        self,
        prompts: Sequence[str] | str,
        *,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        num_beams: int = 1,
        seed: int | None = None,
    ) -> list[str]:
        """What the model writes after each prompt, without the prompt. All prompts run as one batch.

        Greedy needs no torch; sampling (`do_sample`, with `temperature`, `top_k`, `top_p` and `seed`) and beam search
        (`num_beams`) are transformers' own and do.

        Raises:
            UnsupportedError: a model that does not generate.
            UserError: an empty prompt.
            MissingPackageError: sampling or beams without torch.
        """
        if not isinstance(self.runner, DecoderRunner):
            raise UnsupportedError(f"a {self.task.name} model does not generate", hint="use predict()")
        rows = self._encode([prompts] if isinstance(prompts, str) else prompts)
        if not rows:
            return []
        if not all(row["input_ids"] for row in rows):
            raise UserError("a prompt is empty", hint="give each at least one token")
        pad_id = _pad_id(self.tokenizer)
        batch = pad(rows, pad_id, side="left")
        ids, mask, eos_ids = batch["input_ids"], batch["attention_mask"], self._eos_ids()
        if do_sample or num_beams > 1:
            require_torch("sampling or beam search")
            from compressor.runtime.torch_generation import generate_with_transformers
            from compressor.runtime.torch_models import read_config

            settings: dict[str, Any] = {
                "max_new_tokens": max_new_tokens, "do_sample": do_sample, "num_beams": num_beams,
                "eos_token_id": sorted(eos_ids) or None, "pad_token_id": pad_id,
            }  # fmt: skip
            if do_sample:
                settings |= {"temperature": temperature, "top_k": top_k or 0, "top_p": top_p}
            tokens = generate_with_transformers(
                self.runner, ids, mask, config=read_config(self.folder), settings=settings, seed=seed
            )
        else:
            tokens = greedy(self.runner, ids, mask, max_new_tokens=max_new_tokens, eos_ids=eos_ids, pad_id=pad_id)
        return [self._text(row, eos_ids) for row in tokens.tolist()]

    def _encode(self, texts: Sequence[Text], *, max_tokens: int | None = None) -> list[Encoded]:
        rows = []
        for text in texts:
            first, second = text if isinstance(text, tuple) else (text, None)
            encoding = self.tokenizer(
                first, second, truncation=max_tokens is not None, max_length=max_tokens, verbose=False
            )
            rows.append({name: list(ids) for name, ids in encoding.items()})
        return rows

    def _text(self, tokens: list[int], eos_ids: frozenset[int]) -> str:
        end = next((number for number, token in enumerate(tokens) if token in eos_ids), len(tokens))
        return str(self.tokenizer.decode(tokens[:end], skip_special_tokens=True))

    def _max_tokens(self) -> int | None:
        """Longest input: what the tokenizer says, and what the position table has room for."""
        config = _read_json(self.folder / "config.json")
        limits = [self.tokenizer.model_max_length]
        positions = config.get("max_position_embeddings")
        if isinstance(positions, int) and positions > 0:
            counts_from_pad = config.get("model_type") in ("roberta", "xlm-roberta", "camembert")
            limits.append(positions - (config.get("pad_token_id", 1) + 1 if counts_from_pad else 0))
        limit = min(limits)
        return limit if limit < 10**9 else None

    def _eos_ids(self) -> frozenset[int]:
        """Tokens that end a text: the generation config's, else the config's, else the tokenizer's."""
        for values in (_read_json(self.folder / "generation_config.json"), _read_json(self.folder / "config.json")):
            found = values.get("eos_token_id")
            if found is not None:
                return frozenset(found if isinstance(found, list) else [found])
        found = self.tokenizer.eos_token_id
        return frozenset() if found is None else frozenset([found])


def _pad_id(tokenizer: PreTrainedTokenizerFast) -> int:
    assert isinstance(tokenizer.pad_token_id, int), "load_tokenizer leaves none without"
    return tokenizer.pad_token_id


def _read_json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    values: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
