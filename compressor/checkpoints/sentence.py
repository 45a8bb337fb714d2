"""What follows the encoder in a sentence-transformers folder: pooling, dense layers, normalisation, prompts.

A folder of theirs names its modules in `modules.json` and keeps the settings of each in a folder of its own. Only this
is read, and only modules that are nothing but arithmetic; a folder that needs code of its own is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from compressor.checkpoints.files import write_whole
from compressor.errors import CheckpointError, UnsupportedError

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
LENGTH = "sentence_bert_config.json"
Mode = Literal["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
_OLD_KEYS: dict[str, Mode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Dense:
    """One linear layer after pooling.

    Attributes:
        folder: where its weights are, relative to the checkpoint.
        in_features, out_features: its widths.
        bias: whether it adds one.
        activation: name of a class of `torch.nn`; `Identity` for none.
    """

    folder: str
    in_features: int
    out_features: int
    bias: bool
    activation: str


@dataclass(frozen=True)
class SentenceModules:
    """The way from token vectors to one vector, in order.

    Attributes:
        pooling: side by side where there are several.
        dense: layers after it.
        normalise: whether the result has length 1.
        pooling_folder: where pooling is described, relative to the checkpoint.
        prompts: name -> text put before another text.
        default_prompt: the name of the one that every text gets; None for none.
        max_tokens: longest text in tokens; None where the folder does not say.
    """

    pooling: tuple[Mode, ...]
    dense: tuple[Dense, ...] = ()
    normalise: bool = False
    pooling_folder: str = "1_Pooling"
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    max_tokens: int | None = None

    def prompt(self, name: str | None) -> str:
        """The text before a text; the default one's where no name is given.

        Raises:
            CheckpointError: there is no prompt of that name.
        """
        name = name if name is not None else self.default_prompt
        if name is None:
            return ""
        if name not in self.prompts:
            there = ", ".join(self.prompts) or "none"
            raise CheckpointError(f"the model has no prompt {name!r}; its prompts are: {there}", where=PROMPTS)
        return self.prompts[name]


def read_sentence_modules(folder: Path) -> SentenceModules | None:
    """The modules of a folder; None where it is no sentence-transformers folder.

    Raises:
        CheckpointError: a file of it that is missing or says nothing we can read.
        UnsupportedError: a module that is none of pooling, dense and normalisation, or a prompt left out of pooling.
    """
    if not (folder / MODULES).is_file():
        return None
    pooling: tuple[Mode, ...] | None = None
    pooling_folder, dense, normalise = "", list[Dense](), False
    for kind, path in _modules(folder):
        match kind:
            case "Transformer":
                if path:
                    raise UnsupportedError(
                        f"its encoder lies in {path!r} and not at the top",
                        where=str(folder),
                        hint="save it again with sentence-transformers 3 or newer",
                    )
            case "Pooling":
                settings = _read(folder / path / "config.json")
                pooling, pooling_folder = _modes(settings, folder), path
                if settings.get("include_prompt", True) is False:
                    raise UnsupportedError("pools without the tokens of its prompt", where=str(folder / path))
            case "Dense":
                dense.append(_dense(folder, path))
            case "Normalize":
                normalise = True
            case _:
                raise UnsupportedError(
                    f"has a module of type {kind!r}; pooling, dense layers and normalisation can be served",
                    where=str(folder / MODULES),
                )
        if normalise and kind in ("Pooling", "Dense"):
            raise UnsupportedError(f"normalises before {kind}", where=str(folder / MODULES))
    if pooling is None:
        raise CheckpointError("names no pooling", where=str(folder / MODULES), hint="fetch the folder again")
    prompts, length = _read_if_there(folder / PROMPTS), _read_if_there(folder / LENGTH)
    return SentenceModules(
        pooling=pooling,
        dense=tuple(dense),
        normalise=normalise,
        pooling_folder=pooling_folder,
        prompts=dict(prompts.get("prompts") or {}),
        default_prompt=prompts.get("default_prompt_name"),
        max_tokens=length.get("max_seq_length"),
    )


def write_sentence_modules(folder: Path, *, mode: Mode, normalise: bool, width: int) -> None:
    """Make a sentence-transformers folder of a plain encoder's."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalise else [])]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds)
    ]
    pooling = {"word_embedding_dimension": width} | {key: value == mode for key, value in _OLD_KEYS.items()}
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    write_whole(folder / "1_Pooling" / "config.json", json.dumps(pooling, indent=2) + "\n")
    write_whole(folder / MODULES, json.dumps(modules, indent=2) + "\n")


def set_pooling_width(folder: Path, modules: SentenceModules, width: int) -> None:
    """Write the width of the token vectors into the pooling's settings, where pruning has changed it.

    Raises:
        UnsupportedError: a dense layer follows, which takes vectors of the old width.
    """
    path = folder / modules.pooling_folder / "config.json"
    settings = dict(_read(path))
    key = next((key for key in ("word_embedding_dimension", "embedding_dimension") if key in settings), None)
    if key is None or settings[key] == width:
        return
    if modules.dense:
        raise UnsupportedError(
            f"the token vectors are now {width} wide, and the dense layer after pooling takes {settings[key]}",
            where=modules.dense[0].folder,
            hint="keep the hidden width of an embedder with dense layers",
        )
    settings[key] = width
    write_whole(path, json.dumps(settings, indent=2) + "\n")


def sentence_files(folder: Path) -> list[str]:
    """The files that make a folder one of sentence-transformers, beside the encoder's own; relative paths."""
    found = [name for name in (MODULES, PROMPTS, LENGTH) if (folder / name).is_file()]
    for _, path in _modules(folder):
        if path:
            files = (entry for entry in sorted((folder / path).glob("*")) if entry.suffix in (".json", ".safetensors"))
            found += [entry.relative_to(folder).as_posix() for entry in files]
    return found


def _modules(folder: Path) -> Iterator[tuple[str, str]]:
    """(last part of the type, path) of each module."""
    try:
        for module in _read(folder / MODULES):
            path = str(module["path"])
            if Path(path).is_absolute() or ".." in Path(path).parts:
                raise CheckpointError(f"a module lies outside the folder: {path!r}", where=str(folder / MODULES))
            yield str(module["type"]).rpartition(".")[2], path
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"cannot be understood: {error!r}", where=str(folder / MODULES)) from error


def _modes(settings: Mapping[str, Any], folder: Path) -> tuple[Mode, ...]:
    named = settings.get("pooling_mode")
    names = [named] if isinstance(named, str) else list(named or [])
    modes: list[Mode] = [mode for mode in get_args(Mode) if mode in names]
    modes += [mode for key, mode in _OLD_KEYS.items() if settings.get(key) and mode not in modes]
    if not modes or len(modes) < len(names):
        raise CheckpointError(
            f"the pooling is none of: {', '.join(get_args(Mode))}", where=str(folder), hint="fetch the folder again"
        )
    return tuple(modes)


def _dense(folder: Path, path: str) -> Dense:
    settings = _read(folder / path / "config.json")
    if not (folder / path / "model.safetensors").is_file():
        raise CheckpointError(
            "a dense layer without model.safetensors",
            where=str(folder / path),
            hint="convert it first; pickled weights are never loaded",
        )
    try:
        return Dense(
            folder=path,
            in_features=int(settings["in_features"]),
            out_features=int(settings["out_features"]),
            bias=bool(settings.get("bias", True)),
            activation=str(settings.get("activation_function") or "torch.nn.Tanh").rpartition(".")[2],
        )
    except KeyError as error:
        raise CheckpointError(f"config.json lacks {error}", where=str(folder / path)) from error


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError("no such file", where=str(path), hint="fetch the folder again") from None
    except ValueError as error:
        raise CheckpointError(f"not JSON: {error}", where=str(path), hint="fetch the folder again") from error


def _read_if_there(path: Path) -> Mapping[str, Any]:
    values: Mapping[str, Any] = _read(path) if path.is_file() else {}
    return values
