"""The first checkpoint of a run: a folder or hub repository taken over, or random weights from a config.

A fine-tuned head is kept. A missing one is drawn from the seed and recorded. Class names must agree with the head they
belong to: a silent permutation would train and measure without a word and be wrong everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from compressor.checkpoints.files import content_files, digest_json, link_or_copy, sha256_file
from compressor.checkpoints.hub import resolve
from compressor.checkpoints.manifest import MANIFEST_NAME
from compressor.checkpoints.sentence import (
    MODULES,
    read_sentence_modules,
    sentence_files,
    set_pooling_width,
    write_sentence_modules,
)
from compressor.checkpoints.store import Checkpoint, open_checkpoint
from compressor.checkpoints.vocabulary import KEPT_TOKENS
from compressor.data.tokenize import load_tokenizer, train_tokenizer
from compressor.errors import CheckpointError, DataError, UserError
from compressor.methods.surgery import n_parameters
from compressor.runtime.torch_models import load_module
from compressor.schema.events import Note
from compressor.spec.sources import ModelSource
from compressor.spec.tasks import TASKS, Task
from compressor.stages.context import StageContext
from compressor.stages.cost import measure_cost
from compressor.stages.pretrained import classes_of, draw_module, load_pretrained
from compressor.stages.sealing import Made, seal_module

Column = Literal["text", "text_pair"]
SOURCE_VERSION = 1
SOURCE_ID = "model"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "chat_template.jinja",
    KEPT_TOKENS,
)  # fmt: skip


@dataclass(frozen=True)
class _Loaded:
    module: PreTrainedModel
    new_weights: tuple[str, ...]
    structure: dict[str, Any] | None
    origin: dict[str, Any]


def source_identity(model: ModelSource) -> str:
    """What the model's files are, in one sha256, for the fingerprint; of a config, the config itself.

    Raises:
        CheckpointError: no such folder or repository.
    """
    if model.config is not None:
        identity: dict[str, Any] = {"config": model.config}
        if model.tokenizer is not None and model.tokenizer.path is not None:
            identity["tokenizer"] = _file_digests(Path(model.tokenizer.path).expanduser())
        return digest_json(identity)
    folder, _ = _folder(model)
    found = _file_digests(folder) | {
        name: sha256_file(folder / name) for name in _sentence_files(folder, TASKS[model.task])
    }
    return digest_json(found)


def prompt_texts(model: ModelSource, asked: Mapping[Column, str] | None) -> dict[Column, str]:
    """What goes before each text of a column: names of the model's prompts as their texts, other text as it stands.

    Args:
        asked: the pipeline's `data.prompts`; where it says nothing, every text gets the model's default prompt, as
            `encode` gives it.

    Raises:
        CheckpointError: no such folder or repository, or a default prompt that it does not have.
        UnsupportedError: a sentence-transformers folder that cannot be served.
    """
    if model.config is not None or TASKS[model.task].kind != "embedding":
        return dict(asked or {})
    modules = read_sentence_modules(_folder(model)[0])
    if asked is not None:
        return {column: modules.prompts.get(text, text) if modules else text for column, text in asked.items()}
    default = modules.prompt(None) if modules else ""
    return {"text": default, "text_pair": default} if default else {}


def make_source(model: ModelSource, out_dir: Path, ctx: StageContext, *, pools_like: Path | None = None) -> Checkpoint:
    """The checkpoint with the id `model`.

    Args:
        pools_like: of an embedder's student, its teacher's folder: where the student does not say how it pools, it does
            so as its teacher, with the same prompts.

    Raises:
        CheckpointError: no such folder or repository, weights are missing from it, or class names that do not match
            its head.
        UnsupportedError: an architecture that transformers does not have, or not for this task.
        UserError: a new head without class names; a tokenizer or a length that does not fit the model.
        DataError: a tokenizer is to be trained, and there is no training split.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    with measure_cost(ctx.workdir, ctx.calibration) as meter:
        loaded = _from_config(model, out_dir, ctx) if model.config is not None else _from_folder(model, out_dir, ctx)
        _check_length(loaded.module.config, ctx.max_tokens)
        if ctx.task.kind == "embedding":
            _settle_pooling(model, out_dir, loaded.module.config.hidden_size, pools_like)
    if loaded.new_weights:
        names = ", ".join(loaded.new_weights[:4]) + (", ..." if len(loaded.new_weights) > 4 else "")
        ctx.emit(Note(SOURCE_ID, f"new weights drawn from seed {ctx.seed}: {names}"))
    return seal_module(
        loaded.module,
        out_dir,
        made=Made(
            stage=SOURCE_ID,
            kind="source",
            config=model.model_dump(mode="json", exclude_none=True),
            inputs={},
            splits=("train",) if model.tokenizer is not None and model.tokenizer.vocab_size is not None else (),
            realised={
                "parameters": n_parameters(loaded.module),
                "new_weights": list(loaded.new_weights),
                "origin": loaded.origin,
            },
        ),
        ctx=ctx,
        cost=meter.cost,
        labels=classes_of(loaded.module) if ctx.task.has_classes else None,
        structure=loaded.structure,
        carry_from=None,
    )


def _from_folder(model: ModelSource, out_dir: Path, ctx: StageContext) -> _Loaded:
    folder, commit = _folder(model)
    origin: dict[str, Any] = {"commit": commit} if commit is not None else {}
    structure, new_weights = None, tuple[str, ...]()
    if (folder / MANIFEST_NAME).is_file():
        checkpoint = open_checkpoint(folder)
        origin["digest"] = checkpoint.digest
        structure = checkpoint.content.structure
    if structure is not None:
        module = load_module(folder)
    else:
        module, new_weights = load_pretrained(folder, task=ctx.task, labels=model.labels, seed=ctx.seed)
    for name in (*TOKENIZER_FILES, *_sentence_files(folder, ctx.task)):
        if (folder / name).is_file():
            link_or_copy(folder / name, out_dir / name)
    if not (out_dir / "tokenizer.json").is_file():
        load_tokenizer(folder).save_pretrained(out_dir)  # a slow tokenizer, converted once
    return _Loaded(module, new_weights, structure, origin)


def _from_config(model: ModelSource, out_dir: Path, ctx: StageContext) -> _Loaded:
    assert model.config is not None
    tokenizer = _make_tokenizer(model, ctx)
    settings = dict(model.config)
    if settings.setdefault("vocab_size", len(tokenizer)) != len(tokenizer):
        raise UserError(
            f"vocab_size is {settings['vocab_size']}, but the tokenizer has {len(tokenizer)} tokens",
            where="model.config.vocab_size",
            hint="leave vocab_size out, and the tokenizer's is taken",
        )
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            settings.setdefault(name, getattr(tokenizer, name))
    module = draw_module(settings, task=ctx.task, labels=model.labels, seed=ctx.seed)
    tokenizer.save_pretrained(out_dir)
    return _Loaded(module, ("all",), None, {})


def _sentence_files(folder: Path, task: Task) -> list[str]:
    """What makes an embedder's folder one of sentence-transformers."""
    if task.kind != "embedding" or not (folder / MODULES).is_file():
        return []
    read_sentence_modules(folder)  # says what cannot be served before any work
    return sentence_files(folder)


def _settle_pooling(model: ModelSource, out_dir: Path, width: int, pools_like: Path | None) -> None:
    """The folder says how it pools, or the pipeline does, never both; or, of a student, its teacher."""
    if (out_dir / MODULES).is_file():
        if model.pooling is not None:
            raise UserError(
                "the folder says in modules.json how it pools, and the pipeline says it too",
                where="model.pooling",
                hint="remove model.pooling",
            )
        return
    modules = read_sentence_modules(pools_like) if pools_like is not None else None
    if pools_like is not None and modules is not None:
        for name in sentence_files(pools_like):
            link_or_copy(pools_like / name, out_dir / name)
        set_pooling_width(out_dir, modules, width)
        return
    if model.pooling is None:
        raise UserError(
            "nothing says how token vectors become one vector: the model has no modules.json",
            where="model.pooling",
            hint="say it, such as model.pooling: {mode: mean, normalise: true}",
        )
    write_sentence_modules(out_dir, mode=model.pooling.mode, normalise=model.pooling.normalise, width=width)


def _make_tokenizer(model: ModelSource, ctx: StageContext) -> PreTrainedTokenizerFast:
    assert model.tokenizer is not None
    if model.tokenizer.path is not None:
        return load_tokenizer(Path(model.tokenizer.path).expanduser())
    assert model.tokenizer.vocab_size is not None
    if ctx.data.train is None:
        raise DataError(
            "a tokenizer is trained on the training split, and there is none",
            where="data.train",
            hint="add `data.train`",
        )
    names = [name for name in ("text", "text_pair") if name in ctx.data.train.column_names]
    texts = [text for name in names for text in ctx.data.train[name]]
    return train_tokenizer(texts, model.tokenizer.vocab_size, decoder=ctx.task.is_decoder)


def _folder(model: ModelSource) -> tuple[Path, str | None]:
    if model.path is None:
        assert model.hub is not None
        return resolve(model.hub, model.revision)
    folder = Path(model.path).expanduser()
    if not folder.is_dir():
        raise CheckpointError(
            "no such model folder",
            where=model.path,
            hint=model.how_to_get or "check the path; a relative one starts at the working directory",
        )
    return folder, None


def _file_digests(folder: Path) -> dict[str, str]:
    """Of the files at the top of a folder: weights, config, tokenizer; not of exports below it."""
    return {name: sha256_file(folder / name) for name in content_files(folder) if "/" not in name}


def _check_length(config: Any, max_tokens: int) -> None:
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and limit < max_tokens:
        raise UserError(
            f"data.max_tokens is {max_tokens}, but the model reads {limit} tokens at most",
            where="data.max_tokens",
            hint=f"set data.max_tokens to {limit} or less",
        )
