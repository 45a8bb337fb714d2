"""What pydantic found, in a user's words: one problem for each mistake, at the key that is to be changed."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from compressor.errors import Problem
from compressor.spec.document import Document, Location, dotted
from compressor.spec.pipeline import Pipeline

_TYPES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a mapping of keys to values",
}
_LIMITS = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
}
_SLUG_HINT = "lower-case letters, digits, `.`, `_` and `-`, starting with a letter or digit: it is a folder's name too"


def problems_of(error: ValidationError, document: Document) -> list[Problem]:
    """Translate a validation error of `Pipeline`."""
    details = [(_location(detail["loc"]), detail) for detail in error.errors(include_url=False)]
    unknown = [location for location, detail in details if detail["type"] == "extra_forbidden"]
    problems = []
    for location, detail in details:
        if detail["type"] == "missing" and _is_misspelt(location, unknown, document.value):
            continue  # `modle:` is one mistake, not an unknown key and a missing one
        if detail["type"] == "too_short" and detail["input"]:
            continue  # its items are wrong, not missing
        if detail["type"] == "union_tag_invalid":
            location = (*location, "stage")
        message, hint = _words(location, detail, document.value)
        line = document.line(location)
        if line is None and detail["type"] in ("missing", "union_tag_not_found"):
            line = document.line(location[:-1])
        problems.append(Problem(message, dotted(location), line, hint))
    return problems


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return close[0] if close else None


def did_you_mean(word: str, known: Collection[str], *, otherwise: str = "known here: ") -> str:
    """A hint: the nearest known word, or all of them."""
    meant = nearest(word, known)
    return f"did you mean `{meant}`?" if meant else otherwise + ", ".join(known)


def described(value: object) -> str:
    """A value as a message names it: with its type, since `3` and `"3"` look alike."""
    match value:
        case None:
            return "empty"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {value!r}"
        case list():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            return f"a {type(value).__name__}"


def _location(loc: tuple[int | str, ...]) -> Location:
    """Pydantic names the stage's kind after its index; the file does not."""
    return (*loc[:2], *loc[3:]) if loc[:1] == ("stages",) and len(loc) > 2 else loc


def _is_misspelt(missing: Location, unknown: Iterable[Location], document: Any) -> bool:
    fields = _fields(missing[:-1], document)
    return any(key[:-1] == missing[:-1] and nearest(str(key[-1]), fields) == missing[-1] for key in unknown)


def _words(location: Location, detail: ErrorDetails, document: Any) -> tuple[str, str | None]:
    """Message and hint for one of pydantic's findings."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown key", _unknown_hint(str(location[-1]), _fields(location[:-1], document))
    if kind == "missing":
        field = _fields(location[:-1], document).get(str(location[-1]))
        return "missing", field.description if field else None
    if kind == "union_tag_not_found":
        return "says no `stage`", f"add `stage:` and one of: {', '.join(_stage_kinds())}"
    if kind == "union_tag_invalid":
        tag = str(context["tag"])
        return f"`stage: {tag}` is no stage", did_you_mean(tag, _stage_kinds(), otherwise="stages are: ")
    if kind == "literal_error":
        return _literal_words(location, value, document)
    if kind == "value_error":
        return str(context["error"]), None
    if kind == "string_pattern_mismatch":
        return f"{value!r} is not a name that can be used here", _SLUG_HINT
    if kind == "string_too_long":
        return f"longer than {context['max_length']} characters", None
    if kind == "too_short":
        return "the list is empty; it needs at least one item", None
    if kind in _LIMITS:
        limits = {name: int(limit) if limit == int(limit) else limit for name, limit in context.items()}
        return f"{_LIMITS[kind].format(**limits)}, not {value}", None
    if kind in _TYPES:
        hint = f'quote it to make it text: "{value}"' if kind == "string_type" and _is_scalar(value) else None
        return f"{_TYPES[kind]}, not {described(value)}", hint
    return detail["msg"], None


def _is_scalar(value: object) -> bool:
    return isinstance(value, bool | int | float)


def _literal_words(location: Location, value: object, document: Any) -> tuple[str, str | None]:
    field = _fields(location[:-1], document).get(str(location[-1]))
    options = [str(option) for option in _literals(field.annotation)] if field else []
    meant = nearest(str(value), options)
    return (
        f"must be one of: {', '.join(options)}; not {described(value)}",
        f"did you mean `{meant}`?" if meant else None,
    )


def _unknown_hint(key: str, fields: Mapping[str, FieldInfo]) -> str:
    """The nearest key; or the part that the key belongs under (`epochs` in a stage is `training.epochs`)."""
    for name, field in fields.items():
        for part in _parts(field.annotation):
            if key in _by_key(part):
                return f"did you mean `{name}.{key}`? It goes under `{name}:`"
    return did_you_mean(key, fields)


def _stage_kinds() -> list[str]:
    return [_literals(part.model_fields["stage"].annotation)[0] for part in _parts(Pipeline.model_fields["stages"])]


def _fields(location: Location, document: Any) -> dict[str, FieldInfo]:
    """The keys that the part at `location` may have; none where it has no fixed ones."""
    part: type[BaseModel] = Pipeline
    value: Any = document
    annotation: Any = None
    for step in location:
        value = _at(value, step)
        if isinstance(step, str):
            field = _by_key(part).get(step)
            if field is None:
                return {}
            annotation = field
        parts = _parts(annotation)
        if isinstance(value, dict) and len(parts) > 1:
            parts = [p for p in parts if value.get("stage") in _literals(p.model_fields["stage"].annotation)]
        if parts:
            part = parts[0]
        elif not isinstance(value, list):
            return {}
    return _by_key(part)


def _at(value: Any, step: str | int) -> Any:
    if isinstance(value, list) and isinstance(step, int):
        return value[step] if step < len(value) else None
    return value.get(step) if isinstance(value, dict) else None


def _by_key(part: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in part.model_fields.items()}


def _parts(annotation: Any) -> list[type[BaseModel]]:
    """The parts of the language inside an annotation: `tuple[Workload, ...]` holds `Workload`."""
    if isinstance(annotation, FieldInfo):
        annotation = annotation.annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (tuple, Union, UnionType, Annotated):
        return [part for inner in get_args(annotation) for part in _parts(inner)]
    return []


def _literals(annotation: Any) -> list[Any]:
    """The options inside an annotation: those of `Literal["cpu", "cuda"] | None` are cpu and cuda."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return [option for inner in get_args(annotation) for option in _literals(inner)]
    return [option for option in get_args(annotation) if isinstance(option, str | int)]
