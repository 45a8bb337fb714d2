"""Checkpoint folders <-> live torch modules: stock shapes by `from_pretrained`, pruned ones by structure."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from compressor.checkpoints.files import write_whole
from compressor.checkpoints.manifest import MANIFEST_NAME
from compressor.checkpoints.sentence import Dense, read_sentence_modules
from compressor.checkpoints.store import Checkpoint, open_checkpoint
from compressor.errors import CheckpointError, UnsupportedError
from compressor.methods.pooling import ACTIVATIONS, SentenceEncoder, SentenceHead
from compressor.methods.structure import Structure
from compressor.methods.surgery import rebuild, stock_fit
from compressor.runtime.choose import task_of_architectures
from compressor.spec.tasks import TASKS, Task

WEIGHTS = "model.safetensors"


def load_module(source: Checkpoint | Path, *, task: Task | None = None) -> PreTrainedModel:
    """The live model of a checkpoint or of a plain Hugging Face folder, whole: no weight is drawn at random.

    Args:
        source: an open checkpoint, or a folder.
        task: only for a folder whose config does not name its architecture.

    Raises:
        CheckpointError: files that are missing, cannot be read, or do not fit each other.
        UnsupportedError: an architecture that transformers does not know, or not for this task.
    """
    if isinstance(source, Path) and (source / MANIFEST_NAME).is_file():
        source = open_checkpoint(source, verify=False)
    if isinstance(source, Checkpoint):
        task = TASKS[source.content.task]  # type: ignore[index]
        if source.content.structure is not None:
            return _load_pruned(source.path, task, Structure.from_json(source.content.structure))
        folder = source.path
    else:
        folder = source
    config = read_config(folder)
    task = task or task_of(config, folder)
    with _named_errors(folder, task), quiet_transformers():
        module, info = _auto_class(task).from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # ours names them below
        )
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        name, found, wanted = mismatched[0]
        raise CheckpointError(
            f"the weights do not fit the config: {name} is {tuple(found)} where the config wants {tuple(wanted)}",
            where=str(folder),
            hint="fetch the folder again; a pruned model needs its compressor.json",
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"the weights lack {len(missing)} tensors: {', '.join(missing[:3])}",
            where=str(folder),
            hint="fine-tune the model for this task first, or fetch the folder again",
        )
    return module.eval()  # type: ignore[no-any-return]


def with_head(module: PreTrainedModel, folder: Path, task: Task) -> nn.Module:
    """The module with what makes its answer: an embedder's pooling and what follows; any other is whole as it is.

    Raises:
        CheckpointError: an embedder's folder that does not say how it pools, or a dense layer whose weights do not fit.
        UnsupportedError: a module of it that cannot be served.
    """
    if task.kind != "embedding":
        return module
    modules = read_sentence_modules(folder)
    if modules is None:
        raise CheckpointError(
            "does not say how token vectors become one vector (no modules.json)",
            where=str(folder),
            hint="name it in the pipeline: model.pooling: {mode: mean, normalise: true}",
        )
    dense = [(_linear(folder, layer), _activation(layer)) for layer in modules.dense]
    return SentenceEncoder(module, SentenceHead(modules.pooling, dense, modules.normalise)).eval()


def _linear(folder: Path, layer: Dense) -> nn.Linear:
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias)
    path = folder / layer.folder / WEIGHTS
    try:
        linear.load_state_dict({key.removeprefix("linear."): value for key, value in load_file(path).items()})
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"the dense layer cannot be read: {_first_line(error)}", where=str(path)) from error
    return linear.float()


def _activation(layer: Dense) -> nn.Module:
    if layer.activation not in ACTIVATIONS:
        raise UnsupportedError(
            f"the activation {layer.activation} is none of: {', '.join(ACTIVATIONS)}", where=layer.folder
        )
    return ACTIVATIONS[layer.activation]()


def save_module(module: PreTrainedModel, out_dir: Path, *, structure: Mapping[str, Any] | None = None) -> None:
    """Write `config.json`, `model.safetensors` and, for decoders, `generation_config.json`.

    A file that is there is replaced and never edited, since it may be a hard link into another checkpoint. Where the
    shapes are more than a stock config can say, the config gets a `per_layer_config`: a stock loader then stops and
    names the setting that varies, instead of building a model of other shapes.

    Args:
        module: the model.
        out_dir: an existing or new folder.
        structure: what pruning kept, when it did; the manifest carries it, and `load_module` builds from it.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    scratch = out_dir / ".saving"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with quiet_transformers():
            module.save_pretrained(scratch, max_shard_size="1000GB")
        if structure is not None:
            path = scratch / "config.json"
            write_whole(path, _with_layer_config(json.loads(path.read_text()), module))
        for file in sorted(scratch.iterdir()):
            file.replace(out_dir / file.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def count_parameters(weights: Path) -> int:
    """Parameters in a safetensors file, read from its header; tied ones are stored once.

    Raises:
        CheckpointError: not a safetensors file.
    """
    try:
        with weights.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    except (OSError, struct.error, ValueError, MemoryError, OverflowError) as error:
        raise CheckpointError(f"not a safetensors file: {error}", where=str(weights)) from error
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def read_config(folder: Path) -> PreTrainedConfig:
    """The config of a folder, without what only our manifest can make sense of.

    Raises:
        CheckpointError: no config, or one that is not JSON.
        UnsupportedError: a model type that transformers does not know.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            "no config.json here: not a model folder", where=str(folder), hint="check the path"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"config.json is not JSON: {error}", where=str(folder), hint="fetch it again") from error
    model_type = values.pop("model_type", None)
    values.pop("per_layer_config", None)
    try:
        return AutoConfig.for_model(model_type, **values)
    except ValueError as error:
        raise UnsupportedError(
            f"transformers knows no model type {model_type!r}", where=str(path), hint="see its list of models"
        ) from error


def task_of(config: PreTrainedConfig, folder: Path) -> Task:
    """The task that a config's architecture serves.

    Raises:
        UnsupportedError: none of ours.
    """
    return task_of_architectures(config.architectures or (), folder)


def _load_pruned(folder: Path, task: Task, structure: Structure) -> PreTrainedModel:
    """The stock model without numbers, resized to the structure, and then the weights."""
    config = read_config(folder)
    with _named_errors(folder, task), quiet_transformers():
        with init_empty_weights():
            module = _auto_class(task).from_config(config, dtype=torch.float32)
        rebuild(module, structure, load_file(folder / WEIGHTS))
        if module.can_generate() and (folder / "generation_config.json").is_file():
            module.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return module  # type: ignore[no-any-return]


def _auto_class(task: Task) -> Any:
    return getattr(transformers, task.auto_class)


@contextlib.contextmanager
def _named_errors(folder: Path, task: Task) -> Iterator[None]:
    """What transformers raises, as ours: the text is its first line."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"the weights cannot be read: {_first_line(error)}",
            where=str(folder),
            hint=f"a folder with {WEIGHTS} is wanted (pickles are never loaded); fetch it again",
        ) from error
    except RuntimeError as error:  # shapes that do not fit
        raise CheckpointError(
            f"the weights do not fit the config: {' '.join(str(error).split())[:400]}", where=str(folder)
        ) from error
    except ValueError as error:  # no such architecture for the task
        raise UnsupportedError(f"no {task.name} model: {_first_line(error)}", where=str(folder)) from error


def _with_layer_config(config: dict[str, Any], module: PreTrainedModel) -> str:
    """The config, with overrides for each layer whose shape the config's own values do not give."""
    overrides = stock_fit(module).per_layer_config
    if overrides is not None:
        config["per_layer_config"] = overrides
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and no advice from transformers while inside: progress is told as events, missing weights as results."""
    verbosity, had_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
