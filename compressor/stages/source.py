"""The first checkpoint of a run: a folder or hub repository taken over, or random weights from a config.

A fine-tuned head is kept. A missing one is drawn from the seed and recorded. Class names must agree with the head they
belong to: a silent permutation would train and measure without a word and be wrong everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from compressor.checkpoints.files import content_files, digest_json, link_or_copy, sha256_file
from compressor.checkpoints.hub import resolve
from compressor.checkpoints.manifest import MANIFEST_NAME
from compressor.checkpoints.store import Checkpoint, open_checkpoint
from compressor.data.tokenize import load_tokenizer, train_tokenizer
from compressor.errors import CheckpointError, DataError, UnsupportedError, UserError
from compressor.runtime.torch_models import load_module
from compressor.schema.events import Note
from compressor.spec.sources import ModelSource
from compressor.spec.tasks import Task
from compressor.stages.context import StageContext
from compressor.stages.cost import measure_cost
from compressor.stages.sealing import Made, quiet_transformers, seal_module

SOURCE_VERSION = 1
SOURCE_ID = "model"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip
_GENERIC = re.compile(r"LABEL_\d+")  # what transformers calls classes without a name


def source_identity(model: ModelSource) -> str:
    """What the model's files are, in one sha256, for the fingerprint; of a config, the config itself.

    Raises:
        CheckpointError: no such folder or repository.
    """
    if model.config is not None:
        identity: dict[str, Any] = {"config": model.config}
        if model.tokenizer is not None and model.tokenizer.path is not None:
            identity["tokenizer"] = _file_digests(Path(model.tokenizer.path))
        return digest_json(identity)
    folder, _ = _folder(model)
    return digest_json(_file_digests(folder))


def make_source(model: ModelSource, out_dir: Path, ctx: StageContext) -> Checkpoint:
    """The checkpoint with the id `model`.

    Raises:
        CheckpointError: no such folder or repository, or weights are missing from it.
        UnsupportedError: an architecture that transformers does not have, or not for this task.
        UserError: class names that are missing or do not agree with the head; a tokenizer or a length that does not
            fit the model.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    with measure_cost(ctx.workdir) as meter, quiet_transformers():
        made = _from_config(model, out_dir, ctx) if model.config is not None else _from_folder(model, out_dir, ctx)
        module, labels, realised, structure = made
        _check_length(module.config, ctx.max_tokens)
    if realised["new_weights"]:
        names = ", ".join(realised["new_weights"][:4]) + (", ..." if len(realised["new_weights"]) > 4 else "")
        ctx.emit(Note(SOURCE_ID, f"new weights drawn from seed {ctx.seed}: {names}"))
    return seal_module(
        module,
        out_dir,
        made=Made(
            stage=SOURCE_ID,
            kind="source",
            config=model.model_dump(mode="json", exclude_none=True),
            inputs={},
            splits=("train",) if model.tokenizer is not None and model.tokenizer.vocab_size is not None else (),
            realised=realised,
        ),
        ctx=ctx,
        cost=meter.cost,
        labels=labels,
        structure=structure,
        carry_from=None,
    )


_Loaded = tuple[PreTrainedModel, tuple[str, ...] | None, dict[str, Any], dict[str, Any] | None]
"""module, labels, realised, structure."""


def _from_folder(model: ModelSource, out_dir: Path, ctx: StageContext) -> _Loaded:
    folder, commit = _folder(model)
    realised: dict[str, Any] = {"commit": commit, "new_weights": []}
    structure = None
    if (folder / MANIFEST_NAME).is_file():
        checkpoint = open_checkpoint(folder)
        structure = checkpoint.content.structure
        realised["source_digest"] = checkpoint.digest
    if structure is not None:
        module = load_module(folder)
        found = module.config
    else:
        found = _read_config(folder)
        module, missing = _load(folder, found, ctx.task)
        realised["new_weights"] = missing
    labels = None
    if ctx.task.output == "logits" and not ctx.task.is_decoder:
        head_is_new = any(not name.startswith(module.base_model_prefix + ".") for name in realised["new_weights"])
        labels = _labels(model.labels, found, head_is_new=head_is_new, where=str(folder))
        if head_is_new:
            torch.manual_seed(ctx.seed)
            module, realised["new_weights"] = _load(folder, _with_labels(found, labels), ctx.task)
        module.config.id2label = dict(enumerate(labels))
        module.config.label2id = {name: index for index, name in enumerate(labels)}
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            link_or_copy(folder / name, out_dir / name)
    if not (out_dir / "tokenizer.json").is_file():
        load_tokenizer(folder).save_pretrained(out_dir)  # a slow tokenizer is converted once
    return module, labels, realised, structure


def _from_config(model: ModelSource, out_dir: Path, ctx: StageContext) -> _Loaded:
    assert model.config is not None
    tokenizer = _make_tokenizer(model, ctx)
    settings = dict(model.config)
    model_type = settings.pop("model_type")
    if model_type not in CONFIG_MAPPING:
        raise UnsupportedError(
            f"transformers has no architecture {model_type!r}",
            where="model.config.model_type",
            hint="such as bert, distilbert, roberta, gpt2 or llama",
        )
    if settings.setdefault("vocab_size", len(tokenizer)) != len(tokenizer):
        raise UserError(
            f"vocab_size is {settings['vocab_size']}, but the tokenizer has {len(tokenizer)} tokens",
            where="model.config.vocab_size",
            hint="leave vocab_size out, and the tokenizer's is taken",
        )
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            settings.setdefault(name, getattr(tokenizer, name))
    config = AutoConfig.for_model(model_type, **settings)
    _check_task(config, ctx.task, where="model.config")
    labels = None
    if not ctx.task.is_decoder:
        labels = _labels(model.labels, config, head_is_new=True, where="model.config")
        config = _with_labels(config, labels)
    torch.manual_seed(ctx.seed)
    module = getattr(transformers, ctx.task.auto_class).from_config(config)
    tokenizer.save_pretrained(out_dir)
    return module, labels, {"new_weights": ["all"]}, None


def _make_tokenizer(model: ModelSource, ctx: StageContext) -> PreTrainedTokenizerFast:
    assert model.tokenizer is not None
    if model.tokenizer.path is not None:
        return load_tokenizer(Path(model.tokenizer.path))
    assert model.tokenizer.vocab_size is not None
    if ctx.data.train is None:
        raise DataError(
            "a tokenizer is trained on the training split, and there is none",
            where="data.train",
            hint="add `data.train`",
        )
    return train_tokenizer(ctx.data.train["text"], model.tokenizer.vocab_size, decoder=ctx.task.is_decoder)


def _folder(model: ModelSource) -> tuple[Path, str | None]:
    if model.path is not None and not Path(model.path).expanduser().is_dir():
        raise CheckpointError(
            "no such model folder",
            where=model.path,
            hint=model.how_to_get or "check the path; a relative one starts at the working directory",
        )
    return resolve(model.path or str(model.hub), model.revision)


def _file_digests(folder: Path) -> dict[str, str]:
    return {name: sha256_file(folder / name) for name in content_files(folder) if name.count("/") == 0}


def _read_config(folder: Path) -> PretrainedConfig:
    values, _ = PretrainedConfig.get_config_dict(folder)
    model_type = values.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise UnsupportedError(
            f"models of type {model_type!r} are not supported: transformers has no such architecture",
            where=str(folder / "config.json"),
            hint="use an architecture that comes with transformers; code from a repository is never run",
        )
    config: PretrainedConfig = AutoConfig.from_pretrained(folder)
    return config


def _check_task(config: PretrainedConfig, task: Task, *, where: str) -> None:
    auto = getattr(transformers, task.auto_class)
    if type(config) not in auto._model_mapping:
        raise UnsupportedError(
            f"models of type {config.model_type!r} cannot be used for {task.name}",
            where=where,
            hint="change model.task, or choose another model",
        )


def _load(folder: Path, config: PretrainedConfig, task: Task) -> tuple[PreTrainedModel, list[str]]:
    """The module in fp32, and the names of weights that the folder does not have (a new head, a pooler)."""
    _check_task(config, task, where=str(folder))
    auto = getattr(transformers, task.auto_class)
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            "no safetensors weights here", where=str(folder), hint="convert the weights to safetensors first"
        )
    module, report = auto.from_pretrained(
        folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    missing = sorted(report["missing_keys"])
    inside = [name for name in missing if name.startswith(f"{module.base_model_prefix}.") and "pooler" not in name]
    if inside:
        raise CheckpointError(
            f"{len(inside)} weights are missing from the checkpoint, such as {inside[0]}",
            where=str(folder),
            hint="the files are incomplete, or config.json describes another model",
        )
    return module, missing


def _with_labels(config: PretrainedConfig, labels: Sequence[str]) -> PretrainedConfig:
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: index for index, name in enumerate(labels)}
    return config


def _labels(
    wanted: tuple[str, ...] | None, config: PretrainedConfig, *, head_is_new: bool, where: str
) -> tuple[str, ...]:
    """The classes of the head, in the order of their ids."""
    if head_is_new:
        if wanted is None:
            raise UserError(
                "the model has no classification head yet, and the pipeline does not name its classes",
                where=where,
                hint="name them in the order of their ids, such as model.labels: [negative, positive]",
            )
        return wanted
    found = tuple(
        name for _, name in sorted((int(index), str(name)) for index, name in (config.id2label or {}).items())
    )
    if wanted is None:
        return found
    same = [name.casefold() for name in wanted] == [name.casefold() for name in found]
    if len(wanted) == len(found) and (same or all(map(_GENERIC.fullmatch, found))):
        return wanted
    raise UserError(
        f"model.labels names {_listed(wanted)}, but the head of this model has {_listed(found)}",
        where=where,
        hint="leave model.labels out to keep the head's own classes, or start from a model without a head",
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"{index} {name}" for index, name in enumerate(names[:12]))
    return f"{len(names)} classes ({shown}{', ...' if len(names) > 12 else ''})"


def _check_length(config: PretrainedConfig, max_tokens: int) -> None:
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and limit < max_tokens:
        raise UserError(
            f"data.max_tokens is {max_tokens}, but the model reads {limit} tokens at most",
            hint=f"set data.max_tokens to {limit} or less",
        )
