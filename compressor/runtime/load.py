"""`compressor.load`: a folder or hub repository -> something that answers. ONNX variants need no torch."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, assert_never

import numpy as np

from compressor.checkpoints.hub import resolve
from compressor.checkpoints.manifest import CERTIFICATE_NAME, MANIFEST_NAME, Variant
from compressor.checkpoints.store import Checkpoint, open_checkpoint
from compressor.data.tokenize import Encoded, load_tokenizer
from compressor.errors import UnsupportedError, UserError
from compressor.runtime import predict
from compressor.runtime.choose import choose_variant, files_of, plain_graph, task_of_architectures
from compressor.runtime.encode import encode
from compressor.runtime.onnx_runner import open_onnx
from compressor.runtime.predict import Running, run_rows
from compressor.runtime.runners import Array, DecoderRunner, Runner, n_cores, open_runner, open_torch, require_torch
from compressor.runtime.settings import runner_settings
from compressor.runtime.writing import Sampling, Streamer, line_up, write, write_pieces, write_with_transformers
from compressor.schema.certificate import Certificate, read_certificates
from compressor.spec.tasks import TASKS, Task

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerFast

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
LACKS = (
    "no compressor.json: its files are not verified against any sha256",
    "no certificate: nothing is known of what it lost or costs",
)
"""What a plain model lacks, in words."""
BATCH_SIZE = 32
"""Texts in one call where none was tuned or given."""
Text = str | tuple[str, str]
"""A text, or a pair of texts."""


def load(
    path: str | Path,
    *,
    precision: str | None = None,
    runtime: Literal["torch", "onnxruntime"] | None = None,
    threads: int | None = None,
    device: Literal["cpu", "cuda", "openvino"] = "cpu",
    settings: Mapping[str, Any] | None = None,
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
        device: `cpu`, `cuda`, or `openvino` (ONNX Runtime's OpenVINO provider).
        settings: runtime settings (`runtime.settings`) that win over those tuned for the variant.
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
            resolve(path, commit, only=[*files, CERTIFICATE_NAME])
        checkpoint = open_checkpoint(folder, only=files if commit is not None else None)
        runner = open_runner(checkpoint, variant.id, threads=threads, provider=PROVIDERS[device], settings=settings)
        task = TASKS[content.task]  # type: ignore[index]
        return CompressedModel(
            folder,
            task,
            runner,
            labels=content.labels,
            variant=variant,
            checkpoint=checkpoint,
            commit=commit,
            settings={**variant.settings, **(settings or {})},
        )
    if folder.name.endswith(".partial") or not (folder / "config.json").is_file():
        open_checkpoint(folder)  # says why not
    if commit is not None:
        resolve(path, commit)
    return _load_plain(
        folder, commit, precision=precision, runtime=runtime, threads=threads, device=device, settings=settings or {}
    )


def _load_plain(
    folder: Path,
    commit: str | None,
    *,
    precision: str | None,
    runtime: str | None,
    threads: int | None,
    device: str,
    settings: Mapping[str, Any],
) -> CompressedModel:
    """A model that is not ours: stock weights through torch, or an ONNX file under the name that others give it."""
    provider, lacks = PROVIDERS[device], list(LACKS)
    runner: Runner
    graph = plain_graph(folder, precision=precision, runtime=runtime)
    if graph is not None:
        task = task_of_architectures(_read_json(folder / "config.json").get("architectures") or (), folder)
        runner = open_onnx(
            folder / graph,
            is_decoder=task.is_decoder,
            threads=threads or n_cores(),
            provider=provider,
            settings=runner_settings(settings, "onnxruntime"),
        )
        labels = _read_json(folder / "config.json").get("id2label") or {}
        names = tuple(str(labels[key]) for key in sorted(labels, key=int)) or None
        lacks.append(f"the precision of {graph} goes by its name alone")
    else:
        require_torch(f"a plain Hugging Face folder ({folder})")
        from compressor.runtime.torch_models import load_module, read_config, task_of, with_head

        config = read_config(folder)
        task = task_of(config, folder)
        names = tuple(str(name) for _, name in sorted((config.id2label or {}).items())) if task.has_classes else None
        module = with_head(load_module(folder, task=task), folder, task)
        runner = open_torch(
            module, task, threads=threads, provider=provider, settings=runner_settings(settings, "torch")
        )
    logging.getLogger(__name__).info("%s: %s", folder, "; ".join(lacks))
    return CompressedModel(folder, task, runner, labels=names, commit=commit, missing=tuple(lacks), settings=settings)


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
        settings: runtime settings in use; `batch_size` and `sort_by_length` say how texts become batches.
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
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.task = task
        self.runner = runner
        self.labels = labels
        self.variant = variant
        self.checkpoint = checkpoint
        self.commit = commit
        self.missing = missing
        self.settings = dict(settings or {})
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
    def certificate(self) -> Certificate | None:
        """The certificate of the very file in use; None where there is none, and then it is not certified.

        Raises:
            UserError: a certificate file of another version, or damaged.
        """
        if self.checkpoint is None or self.variant is None:
            return None
        sha256 = self.checkpoint.content.files[self.variant.path].sha256
        found = read_certificates(self.folder / CERTIFICATE_NAME)
        return next((one for one in found if one.of.sha256 == sha256), None)

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
        return self._stock(self.runner.module)

    @property
    def device(self) -> str:
        """Where a call takes its tensors."""
        return "cpu"

    def to(self, device: Any) -> NoReturn:
        """Not possible; a pipeline of transformers tries it on what it is given.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            f"a model stays where it was loaded, and cannot go to {str(device)!r}",
            where=str(self.folder),
            hint="load(path, device=...); for a pipeline of transformers: pipeline(task, model.for_transformers())",
        )

    def _stock(self, module: Any) -> nn.Module:
        """Without what follows an encoder in an embedder, which transformers does not know."""
        stock: nn.Module = module.body if self.task.kind == "embedding" else module
        return stock

    def for_transformers(self) -> Any:
        """This model for `transformers.pipeline(task, model=..., tokenizer=model.tokenizer)`, ONNX variants included.

        Raises:
            MissingPackageError: torch is not installed, which the pipelines of transformers are made of.
        """
        if hasattr(self.runner, "module"):
            return self._stock(self.runner.module)
        require_torch("a pipeline of transformers")
        from compressor.runtime.torch_dress import dressed
        from compressor.runtime.torch_models import read_config

        return dressed(self.runner, read_config(self.folder), self.task, self.folder)

    def logits(self, texts: Sequence[Text] | Text, *, batch_size: int | None = None) -> Array:
        """Logits of each text, (N, C), in the order of the texts; longer texts are cut to the model's length.

        `batch_size` is the one tuned for the variant, or 32, where absent.

        Raises:
            UnsupportedError: a model that has no logits of a whole text.
        """
        if self.task.kind not in ("class", "classes", "number"):
            hint = {"next_token": "use generate()", "embedding": "use encode()"}.get(self.task.kind, "use predict()")
            raise UnsupportedError(f"a {self.task.name} model does not classify texts", hint=hint)
        rows = self._encode([texts] if isinstance(texts, str | tuple) else texts, max_tokens=self._max_tokens())
        if not rows:
            return np.zeros((0, len(self.labels or "1")), np.float32)
        return np.stack([logits for (logits,) in run_rows(self._running(batch_size), rows, self.task.outputs)])

    def predict(self, texts: Any, *, batch_size: int | None = None) -> list[Any]:
        """The answer to each text, in its task's own form.

        - classification: `{"label": name, "score": probability}`
        - multi-label classification: `{"labels": [those likelier than not], "scores": {name: probability}}`
        - regression, reranking: `{"score": number}`, of a text or a pair `(query, passage)`
        - token classification: for each word `{"word", "label", "score"}`; texts, or lists of words
        - question answering: `{"answer", "start", "end", "score"}` for a pair `(question, text)`
        - masked language models: for each mask token `{"token", "score"}`

        Raises:
            UnsupportedError: a model that generates or embeds.
            UserError: texts of another form.
        """
        running, tokenizer, limit = self._running(batch_size), self.tokenizer, self._max_tokens()
        several: list[Any] = [texts] if isinstance(texts, str | tuple) else list(texts)
        match self.task.kind:
            case "class":
                return predict.one_class(self.logits(several, batch_size=batch_size), self.labels)
            case "classes":
                return predict.class_sets(self.logits(several, batch_size=batch_size), self.labels)
            case "number":
                return predict.numbers(self.logits(several, batch_size=batch_size))
            case "token_class":
                return predict.tagged_words(running, tokenizer, several, self.labels, limit)
            case "span":
                return predict.answers_in_text(running, tokenizer, several, limit)
            case "masked_token":
                return predict.filled_masks(running, tokenizer, several, limit)
            case "next_token" | "embedding":
                hint = "use generate()" if self.task.is_decoder else "use encode()"
                raise UnsupportedError(f"a {self.task.name} model does not classify", hint=hint)
            case _:
                assert_never(self.task.kind)

    def encode(
        self,
        texts: Sequence[str] | str,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize_embeddings: bool = False,
        batch_size: int | None = None,
    ) -> Array:
        """One vector of each text, (N, d); (d,) of a single one. The arguments are those of sentence-transformers.

        Raises:
            UnsupportedError: a model that does not embed.
            UserError: both a prompt and its name.
            CheckpointError: no prompt of that name.
        """
        if self.task.kind != "embedding":
            raise UnsupportedError(
                f"a {self.task.name} model does not embed",
                hint="use generate()" if self.task.is_decoder else "use predict()",
            )
        vectors = encode(
            self._running(batch_size),
            self.tokenizer,
            self.folder,
            [texts] if isinstance(texts, str) else list(texts),
            prompt=prompt,
            prompt_name=prompt_name,
            normalise=normalize_embeddings,
            max_tokens=self._max_tokens(),
        )
        one: Array = vectors[0] if isinstance(texts, str) else vectors
        return one

    def _running(self, batch_size: int | None) -> Running:
        return Running(
            self.runner,
            batch_size or int(self.settings.get("batch_size", BATCH_SIZE)),
            _pad_id(self.tokenizer),
            "length" if self.settings.get("sort_by_length") else "file",
        )

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
        settings: Mapping[str, Any] | None = None,
        streamer: Streamer | None = None,
    ) -> list[str]:
        """What the model writes after each prompt, without the prompt. All prompts run as one batch, of any lengths.

        Greedy and sampling (`do_sample`, with `temperature`, `top_k`, `top_p` and `seed`) need no torch. Beam search
        (`num_beams`) and any other of transformers' generation settings (`settings`, such as `repetition_penalty`) are
        transformers' own and do. `streamer` is a `transformers.TextStreamer` or the like.

        Raises:
            UnsupportedError: a model that does not generate.
            UserError: an empty prompt, or a setting out of its range.
            MissingPackageError: beams or `settings` without torch.
        """
        runner = self._decoder()
        rows = self._encode([prompts] if isinstance(prompts, str) else prompts)
        if not rows:
            return []
        batch = line_up(rows, _pad_id(self.tokenizer), self._eos_ids())
        sampling = Sampling(do_sample, temperature, top_k, top_p, seed)
        if num_beams > 1 or settings:
            tokens = write_with_transformers(
                runner,
                batch,
                self.folder,
                max_new_tokens=max_new_tokens,
                num_beams=num_beams,
                sampling=sampling,
                settings=settings or {},
                streamer=streamer,
            )
        else:
            tokens = write(runner, batch, max_new_tokens=max_new_tokens, sampling=sampling, streamer=streamer)
        return [self._text(row, batch.eos_ids) for row in tokens.tolist()]

    def stream(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        """The same text piece by piece, as it is written; joined, the pieces are what `generate` gives. No torch.

        Raises:
            UnsupportedError: a model that does not generate.
            UserError: an empty prompt, or a setting out of its range.
        """
        batch = line_up(self._encode([prompt]), _pad_id(self.tokenizer), self._eos_ids())
        sampling = Sampling(do_sample, temperature, top_k, top_p, seed)
        return write_pieces(self._decoder(), batch, self.tokenizer, max_new_tokens=max_new_tokens, sampling=sampling)

    def _decoder(self) -> DecoderRunner:
        if not isinstance(self.runner, DecoderRunner):
            raise UnsupportedError(f"a {self.task.name} model does not generate", hint="use predict()")
        return self.runner

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
