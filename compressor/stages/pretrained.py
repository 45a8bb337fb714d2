"""A pretrained model to start from: its weights, its head or a new one, and the names of its classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from compressor.errors import CheckpointError, UnsupportedError, UserError
from compressor.runtime.torch_models import quiet_transformers, read_config
from compressor.spec.tasks import Task

_GENERIC = re.compile(r"LABEL_\d+")  # what transformers calls classes without a name


def load_pretrained(
    folder: Path, *, task: Task, labels: tuple[str, ...] | None, seed: int
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """A plain Hugging Face folder as a module in fp32, and the names of weights that had to be drawn from the seed.

    Args:
        folder: config and safetensors.
        task: what the model is for; a classifier's head is added where there is none.
        labels: names of the classes: needed for a new head, held against one that is there.

    Raises:
        CheckpointError: no weights, or weights of the body are missing.
        UnsupportedError: an architecture that transformers does not have, or not for this task.
        UserError: class names that are missing, or do not agree with the head.
    """
    config = read_config(folder)
    module, missing = _load(folder, config, task, seed)
    if task.is_decoder and missing:
        raise _incomplete(folder, missing)
    has_head = not any(_is_head(name, module) for name in missing)
    if task.has_classes and has_head:
        _set_classes(module.config, _agreed(labels, module.config, where=str(folder)), task)
    elif task.has_classes:
        _set_classes(config, _needed(labels, where=str(folder)), task)
        return _load(folder, config, task, seed)
    elif task.kind == "number" and has_head:
        if module.config.num_labels != 1:
            raise UserError(
                f"the head of this model tells {module.config.num_labels} classes apart, and {task.name} wants one "
                "number",
                where=str(folder),
                hint="start from a model without a head, or change model.task",
            )
        _set_number(module.config)
    elif task.kind == "number":
        _set_number(config)
        return _load(folder, config, task, seed)
    return module, missing


def draw_module(
    settings: Mapping[str, Any], *, task: Task, labels: tuple[str, ...] | None, seed: int
) -> PreTrainedModel:
    """A module with random weights from a config.

    Raises:
        UnsupportedError: an architecture that transformers does not have, or not for this task.
        UserError: no class names for a classifier.
    """
    values = dict(settings)
    model_type = values.pop("model_type")
    if model_type not in CONFIG_MAPPING:
        raise UnsupportedError(
            f"transformers has no architecture {model_type!r}",
            where="model.config.model_type",
            hint="such as bert, distilbert, roberta, gpt2 or llama",
        )
    config = AutoConfig.for_model(model_type, **values)
    if task.has_classes:
        _set_classes(config, _needed(labels, where="model.config"), task)
    elif task.kind == "number":
        _set_number(config)
    auto = _auto_class(config, task, where="model.config")
    torch.manual_seed(seed)
    module: PreTrainedModel = auto.from_config(config, dtype=torch.float32)
    return module


def classes_of(module: PreTrainedModel) -> tuple[str, ...]:
    """Names of a classifier's classes in the order of their ids."""
    names: Mapping[Any, Any] = module.config.id2label or {}
    return tuple(name for _, name in sorted((int(index), str(name)) for index, name in names.items()))


def _load(folder: Path, config: PreTrainedConfig, task: Task, seed: int) -> tuple[PreTrainedModel, tuple[str, ...]]:
    auto = _auto_class(config, task, where=str(folder))
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            "no safetensors weights here",
            where=str(folder),
            hint="convert them first; pickled weights are never loaded",
        )
    torch.manual_seed(seed)
    try:
        with quiet_transformers():
            module, report = auto.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except SafetensorError as error:
        raise CheckpointError(
            f"the weights cannot be read: {error}",
            where=str(folder),
            hint="a safetensors file here is cut short or damaged; fetch the folder again",
        ) from error
    missing = tuple(sorted(report["missing_keys"]))
    body = [name for name in missing if not _is_head(name, module) and "pooler." not in name]
    if body:
        raise _incomplete(folder, body)
    return module, missing


def _auto_class(config: PreTrainedConfig, task: Task, *, where: str) -> Any:
    auto = getattr(transformers, task.auto_class)
    if config.is_encoder_decoder:
        raise UnsupportedError(
            f"models of type {config.model_type!r} have an encoder and a decoder, and no stage here can serve both",
            where=where,
            hint="choose a model with one of the two, such as bert, distilbert, roberta, gpt2 or llama",
        )
    if type(config) not in auto._model_mapping:
        raise UnsupportedError(
            f"models of type {config.model_type!r} cannot be used for {task.name}",
            where=where,
            hint="change model.task, or choose another model",
        )
    return auto


def _is_head(name: str, module: PreTrainedModel) -> bool:
    return module.base_model is not module and not name.startswith(f"{module.base_model_prefix}.")


def _incomplete(folder: Path, missing: Sequence[str]) -> CheckpointError:
    return CheckpointError(
        f"{len(missing)} weights of the model are missing, such as {missing[0]}",
        where=str(folder),
        hint="the files are incomplete, or config.json describes another model; fetch the folder again",
    )


def _set_classes(config: PreTrainedConfig, labels: tuple[str, ...], task: Task) -> None:
    if task.kind == "classes":
        config.problem_type = "multi_label_classification"
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: index for index, name in enumerate(labels)}


def _set_number(config: PreTrainedConfig) -> None:
    """One output, read as it is."""
    config.num_labels = 1
    config.problem_type = "regression"


def _needed(labels: tuple[str, ...] | None, *, where: str) -> tuple[str, ...]:
    if labels is None:
        raise UserError(
            "the model has no classification head yet, and the pipeline does not name its classes",
            where=where,
            hint="name them in the order of their ids, such as model.labels: [negative, positive]",
        )
    return labels


def _agreed(wanted: tuple[str, ...] | None, config: PreTrainedConfig, *, where: str) -> tuple[str, ...]:
    """The classes of a head that is there: its own, or the pipeline's where they say the same."""
    names: Mapping[Any, Any] = config.id2label or {}
    found = tuple(name for _, name in sorted((int(index), str(name)) for index, name in names.items()))
    if wanted is None:
        return found
    is_same = [name.casefold() for name in wanted] == [name.casefold() for name in found]
    if len(wanted) == len(found) and (is_same or all(map(_GENERIC.fullmatch, found))):
        return wanted
    raise UserError(
        f"model.labels names {_listed(wanted)}, but the head of this model has {_listed(found)}",
        where=where,
        hint="leave model.labels out to keep the head's own classes, or start from a model without a head",
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"{index} {name}" for index, name in enumerate(names[:12]))
    return f"{len(names)} classes ({shown}{', ...' if len(names) > 12 else ''})"
