"""`--set stages.student.training.epochs=1`: values from the command line, over those of the file."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import yaml

from compressor.errors import Problem
from compressor.spec.document import Location, dotted, parse_scalar
from compressor.spec.problems import described, did_you_mean


class _RefusedError(Exception):
    """One override that cannot be applied."""

    def __init__(self, location: Location, message: str, hint: str | None = None) -> None:
        self.problem = Problem(f"{message} (from --set)", dotted(location), None, hint)


def apply_overrides(values: Any, overrides: Sequence[str]) -> tuple[Any, list[Location], list[Problem]]:
    """Set `path=value` for each override; the value is read as YAML.

    A list item is named by its position or, for stages and workloads, by its id. Parts that are absent are made, so
    that a wrong key is found by validation, which knows the nearest right one.

    Returns:
        The changed copy, where it was changed, and the overrides that could not be applied.
    """
    values = copy.deepcopy(values)
    locations: list[Location] = []
    problems: list[Problem] = []
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not all(path.strip().split(".")):
            hint = "write --set seed=1 or --set stages.student.training.epochs=1"
            problems.append(Problem(f"--set {override!r} is not of the form path=value", hint=hint))
            continue
        try:
            locations.append(_set(values, path.strip().split("."), parse_scalar(text)))
        except yaml.YAMLError:
            problems.append(Problem(f"the value {text!r} is not YAML (from --set)", path.strip()))
        except _RefusedError as refused:
            problems.append(refused.problem)
    return values, locations, problems


def _set(values: Any, steps: Sequence[str], value: object) -> Location:
    place, rest = values, list(steps)
    location: Location = ()
    while rest:
        key, rest = _next_step(place, location, rest)
        location = (*location, key)
        if not rest:
            place[key] = value
        elif isinstance(place, dict) and place.get(key) is None:
            place[key] = {}
        place = place[key]
    return location


def _next_step(place: Any, location: Location, rest: list[str]) -> tuple[Any, list[str]]:
    """The key or position that the next words of a path name, and the words after them."""
    if isinstance(place, dict):
        return rest[0], rest[1:]
    if not isinstance(place, list):
        raise _RefusedError((*location, *rest), f"`{dotted(location)}` has no keys: it is {described(place)}")
    ids = {item["id"]: i for i, item in enumerate(place) if isinstance(item, dict) and isinstance(item.get("id"), str)}
    for n in range(len(rest), 0, -1):  # an id may have dots in it
        if (name := ".".join(rest[:n])) in ids:
            return ids[name], rest[n:]
    if rest[0].isdigit() and int(rest[0]) < len(place):
        return int(rest[0]), rest[1:]
    if rest[0].isdigit():
        hint = f"it has {len(place)}, counted from 0"
        raise _RefusedError((*location, *rest), f"`{dotted(location)}` has no item {rest[0]}", hint)
    hint = did_you_mean(rest[0], list(ids)) if ids else "name it by its position, counted from 0"
    raise _RefusedError((*location, *rest), f"`{dotted(location)}` has no item called `{rest[0]}`", hint)
