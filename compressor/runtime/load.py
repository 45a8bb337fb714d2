"""`compressor.load`: a folder or hub repository -> something that answers. ONNX variants need no torch."""

from __future__ import annotations

import json
import logging
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
from compressor.runtime.choose import choose_variant, files_of, plain_graph, task_of_architectures
from compressor.runtime.generate import greedy
from compressor.runtime.onnx_runner import open_onnx
from compressor.runtime.runners import Array, DecoderRunner, Runner, n_cores, open_runner, open_torch, require_torch
from compressor.spec.tasks import TASKS, Task

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerFast

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
LACKS = (
    "no compressor.json: its files are not verified against any sha256",
    "no certificate: nothing is known of what it lost or costs",
)
"""What a plain model lacks, in words."""
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
    """Open a checkpoint for use; the files that it needs are verified against the manifest first.

    From a hub repository only those are fetched: the manifest, then the tokenizer and the one variant that is used. The
    hub's own settings hold (`HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`).

    Args:
        path: a checkpoint folder, a hub repository `organisation/name`, or a plain Hugging Face model of either kind,
            which opens too and says in `missing` what it lacks.
        precision: `fp32`, `fp16`, `int8`, `int4`, a scheme such as `w8a8-dynamic`, or a variant's id. Where absent, the
            last variant that runs well on this machine: what the last stage made, but none that it cannot serve.
        runtime: where several variants fit.
        threads: threads of one inference; those tuned for the variant, or all cores, where absent.
        device: `cpu` or `cuda`.
        revision: branch, tag or commit of a hub repository; the commit that it means is kept in `commit`.

    Raises:
        CheckpointError: no such folder, half-written, corrupt, tampered with, or without such a variant.
        UnsupportedError: a device or an architecture that cannot be served.
        MissingPackageError: a torch variant without torch.
    """
    if device not in PROVIDERS:
        raise UserError(f"device {device!r} is none of: {', '.join(PROVIDERS)}", where="device")
    # A local folder is whole; of a repository this fetches no more than the two small files that say what is in it.
    folder, commit = resolve(path, revision, only=(MANIFEST_NAME, "config.json"))
    if (folder / MANIFEST_NAME).is_file():
        name = str(path) if commit is not None else str(folder)
        content = open_checkpoint(folder, verify=False).content
        variant = choose_variant(content, where=name, precision=precision, runtime=runtime, device=device)
        files = files_of(content, variant)
        if commit is not None:
            resolve(path, commit, only=files)
            _check_fetched(folder, files, name, commit)
        checkpoint = open_checkpoint(folder, only=files if commit is not None else None)
        runner = open_runner(checkpoint, variant.id, threads=threads, provider=PROVIDERS[device])
        task = TASKS[content.task]  # type: ignore[index]
        return CompressedModel(
            folder, task, runner, labels=content.labels, variant=variant, checkpoint=checkpoint, commit=commit
        )
    if folder.name.endswith(".partial") or not (folder / "config.json").is_file():
        open_checkpoint(folder)  # says why not
    if commit is not None:
        resolve(path, commit)
    return _load_plain(folder, commit, precision=precision, runtime=runtime, threads=threads, device=device)


def _check_fetched(folder: Path, files: Sequence[str], name: str, commit: str) -> None:
    """Offline, the client gives what it has of a snapshot without a word on what is not there."""
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:
        raise CheckpointError(
            f"{absent[0]} of commit {commit[:12]} is not in the local cache, and the hub did not give it",
            where=name,
            hint="connect once (and unset HF_HUB_OFFLINE), or give the path of a local folder",
        )


def _load_plain(
    folder: Path, commit: str | None, *, precision: str | None, runtime: str | None, threads: int | None, device: str
) -> CompressedModel:
    """A model that is not ours: stock weights through torch, or an ONNX file under the name that others give it."""
    provider, lacks = PROVIDERS[device], list(LACKS)
    runner: Runner
    graph = plain_graph(folder, precision=precision, runtime=runtime)
    if graph is not None:
        task = task_of_architectures(_read_json(folder / "config.json").get("architectures") or (), folder)
        runner = open_onnx(
            folder / graph, is_decoder=task.is_decoder, threads=threads or n_cores(), provider=provider, settings={}
        )
        labels = _read_json(folder / "config.json").get("id2label") or {}
        names = tuple(str(labels[key]) for key in sorted(labels, key=int)) or None
        lacks.append(f"the precision of {graph} goes by its name alone")
    else:
        require_torch(f"a plain Hugging Face folder ({folder})")
        from compressor.runtime.torch_models import load_module, read_config, task_of

        config = read_config(folder)
        task = task_of(config, folder)
        names = tuple(str(name) for _, name in sorted((config.id2label or {}).items())) if task.has_classes else None
        runner = open_torch(load_module(folder, task=task), task, threads=threads, provider=provider)
    logging.getLogger(__name__).info("%s: %s", folder, "; ".join(lacks))
    return CompressedModel(folder, task, runner, labels=names, commit=commit, missing=tuple(lacks))


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
        commit: of the hub repository; None for a local folder.
        missing: what a plain Hugging Face folder lacks that a checkpoint of ours has.
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
        commit: str | None = None,
        missing: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.task = task
        self.runner = runner
        self.labels = labels
        self.variant = variant
        self.checkpoint = checkpoint
        self.commit = commit
        self.missing = missing
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

    def for_transformers(self) -> Any:
        """This model for `transformers.pipeline(task, model=..., tokenizer=model.tokenizer)`, ONNX variants included.

        Raises:
            MissingPackageError: torch is not installed, which the pipelines of transformers are made of.
        """
        if hasattr(self.runner, "module"):
            return self.runner.module
        require_torch("a pipeline of transformers")
        from compressor.runtime.torch_dress import dressed
        from compressor.runtime.torch_models import read_config

        return dressed(self.runner, read_config(self.folder), self.task, self.folder)

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
