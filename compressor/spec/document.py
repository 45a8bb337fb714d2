"""YAML text -> plain values that still know their lines.

Two departures from PyYAML's defaults, both because a pipeline is written by people: the scalars are those of YAML 1.2
(`1e-4` is a number, `no` and `on` are words, so `labels: [no, yes]` means what it says), and a key that is given twice
is a mistake instead of a silent last one wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from compressor.errors import PipelineError, Problem, UserError

Location = tuple[str | int, ...]
"""Keys and list positions from the root of a pipeline to one of its values."""


@dataclass(frozen=True)
class Document:
    """A pipeline as it was written.

    Attributes:
        file: how messages call it.
        value: the plain values; not validated.
        root: the composed YAML, for looking up lines; None when the pipeline came from Python.
        problems: what is wrong with the YAML itself (keys given twice, keys that are no words).
        overridden: where values were set on the command line instead.
    """

    file: str
    value: Any
    root: yaml.Node | None = None
    problems: tuple[Problem, ...] = ()
    overridden: tuple[Location, ...] = ()

    def line(self, location: Location) -> int | None:
        """Line of a key or list item, counted from 1; None when its value is not from the file."""
        if any(location[: len(changed)] == changed for changed in self.overridden):
            return None
        node, line = self.root, 1
        for part in location:
            found = _child(node, part)
            if found is None:
                return None
            line, node = found
        return line if self.root is not None else None


def dotted(location: Location) -> str:
    """`stages.1.training.epochs`."""
    return ".".join(str(part) for part in location)


def read_document(path: Path) -> Document:
    """Read one YAML file.

    Raises:
        UserError: the file is missing, is a folder, cannot be read or is not text.
        PipelineError: it is not YAML, is empty, or is not a mapping.
    """
    file = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("no such file", where=file, hint=_neighbours(path)) from None
    except IsADirectoryError:
        raise UserError("this is a folder, not a pipeline file", where=file, hint=_yaml_files(path)) from None
    except PermissionError:
        raise UserError("the file may not be read", where=file, hint="check its permissions") from None
    except UnicodeDecodeError:
        raise UserError("not a text file in UTF-8", where=file, hint="a pipeline is a YAML file") from None
    problems: list[Problem] = []
    try:
        root, value = _compose(text, problems)
    except yaml.YAMLError as error:
        raise PipelineError(file, [_syntax_problem(error, text)]) from None
    if value is None:
        raise PipelineError(file, [Problem("the file is empty", hint="`compressor schema` prints what goes in it")])
    if not isinstance(value, dict):
        hint = "start with `version: 1`; `compressor schema` prints all keys"
        raise PipelineError(
            file, [Problem("a pipeline is a mapping of keys to values, and this is not", line=1, hint=hint)]
        )
    return Document(file, value, root, tuple(problems))


def parse_scalar(text: str) -> Any:
    """The value that `text` would have in a pipeline file.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return _compose(text, [])[1]


def _compose(text: str, problems: list[Problem]) -> tuple[yaml.Node | None, Any]:
    loader = _Loader(text)
    root = loader.get_single_node()
    return root, None if root is None else loader.plain(root, (), problems)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way to say it; nothing is inherited

    def plain(self, node: yaml.Node, location: Location, problems: list[Problem], above: tuple[int, ...] = ()) -> Any:
        """Dicts, lists and scalars; mistakes that leave the rest readable are collected."""
        if id(node) in above:
            raise yaml.constructor.ConstructorError(None, None, "an alias contains itself", node.start_mark)
        above = (*above, id(node))
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, (*location, i), problems, above) for i, item in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return self.construct_object(node)
        problems.extend(_key_problems(node, location))
        self.flatten_mapping(node)
        return {
            key.value: self.plain(value, (*location, key.value), problems, above)
            for key, value in node.value
            if isinstance(key, yaml.ScalarNode)
        }


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _child(node: yaml.Node | None, part: str | int) -> tuple[int, yaml.Node] | None:
    """Line and node of a mapping's key or a list's item."""
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    if isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):  # reversed: after a merge (`<<`) the mapping's own keys come last
            if key.value == part:
                return key.start_mark.line + 1, value
    return None


def _key_problems(node: yaml.MappingNode, location: Location) -> Iterator[Problem]:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            yield Problem("a key must be a word, not a list or a mapping", dotted(location), line)
        elif key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            hint = f'put it in quotes if it is meant: "{key.value}":'
            yield Problem(f"the key {key.value or 'null'} is not a word", dotted(location), line, hint)
        elif key.value in lines:
            first = lines[key.value]
            path = dotted((*location, key.value))
            yield Problem(f"given twice; the first is in line {first}", path, line, "keep one of the two")
        else:
            lines[key.value] = line


def _syntax_problem(error: yaml.YAMLError, text: str) -> Problem:
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or "a character that YAML does not allow"
    if mark is None:
        position = getattr(error, "position", 0)
        return Problem(
            f"not valid YAML: {reason}", line=text.count("\n", 0, position) + 1, hint="remove that character"
        )
    line = text.splitlines()[mark.line] if mark.line < len(text.splitlines()) else ""
    if line[: mark.column + 1].strip(" ").startswith("\t"):
        hint = "YAML is indented with spaces, never with tabs"
    else:
        hint = "check the indentation, colons, quotes and brackets in this line and the one before"
    return Problem(f"not valid YAML: {reason} (column {mark.column + 1})", line=mark.line + 1, hint=hint)


def _neighbours(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} is not there either; paths start at {Path.cwd()}"
    return _yaml_files(folder)


def _yaml_files(folder: Path) -> str:
    names = sorted(str(found) for pattern in ("*.yaml", "*.yml") for found in folder.glob(pattern))
    return f"there are: {', '.join(names)}" if names else "give the path of a YAML file, such as pipelines/smoke.yaml"
