"""The pipeline reference in Markdown, generated from the language's own JSON Schema, so that it stays true."""

from __future__ import annotations

import json
from typing import Any

from compressor.spec.pipeline import Pipeline
from compressor.spec.tasks import TASKS

TOP = "Pipeline"
INTRODUCTION = """\
# Pipeline reference

Written by `compressor schema --markdown`; do not edit it. A pipeline is one YAML file. Unknown keys are errors, and all
mistakes are told together, with their lines: `compressor validate PIPELINE`. For completion in an editor, let the first
line of a file be

```
# yaml-language-server: $schema=pipeline.schema.json
```

and write that file with `compressor schema > pipeline.schema.json`.

A key marked `required` has no default. `-` as a default means that the key may be left out.
"""


def pipeline_reference() -> str:
    """One section per part of the language, in the order in which a reader meets them."""
    schema = Pipeline.model_json_schema(by_alias=True)
    parts = {TOP: schema, **schema["$defs"]}
    sections = [INTRODUCTION, _tasks()]
    sections.extend(_section(name, parts[name]) for name in _order(parts))
    return "\n".join(sections)


def _order(parts: dict[str, Any]) -> list[str]:
    """Every part that has keys, each after the one that first names it."""
    order: list[str] = []
    waiting = [TOP]
    while waiting:
        name = waiting.pop(0)
        if name in order or "properties" not in parts[name]:
            continue
        order.append(name)
        waiting.extend(_references(parts[name]["properties"]))
    return order


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"].rpartition("/")[2]] if "$ref" in node else []
        inner = [found for key, value in node.items() if key != "discriminator" for found in _references(value)]
        return own + inner
    if isinstance(node, list):
        return [found for value in node for found in _references(value)]
    return []


def _section(name: str, part: dict[str, Any]) -> str:
    required = set(part.get("required", ()))
    stage = part["properties"].get("stage", {}).get("const")
    about = _sentence(part.get("description", ""))
    # The heading is the name alone: links between the sections are made from it.
    lines = [f"## {'The file' if name == TOP else name}", "", f"`stage: {stage}`. {about}" if stage else about, ""]
    lines += ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for key, value in part["properties"].items():
        default = "required" if key in required else _default(value)
        lines.append(f"| `{key}` | {_cell(_type(value))} | {_cell(default)} | {_cell(value.get('description', ''))} |")
    return "\n".join([*lines, ""])


def _tasks() -> str:
    lines = ["## Tasks", "", "What `model.task` may be:", "", "| task | columns | metrics |", "| --- | --- | --- |"]
    for name, task in TASKS.items():
        optional = [f"`{column}` (optional)" for column in task.optional_columns]
        columns = ", ".join([*(f"`{column}`" for column in task.columns), *optional])
        lines.append(f"| `{name}` | {columns} | {', '.join(f'`{metric}`' for metric in task.metrics)} |")
    return "\n".join([*lines, ""])


def _type(value: dict[str, Any]) -> str:
    """The shape of a value in words, with its limits."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if "-" not in name else f"`{name}`"
    if "const" in value:
        return f"`{_plain(value['const'])}`"
    if "enum" in value:
        return ", ".join(f"`{_plain(one)}`" for one in value["enum"])
    choices = value.get("anyOf") or value.get("oneOf")
    if choices:
        return " or ".join(_type(one) for one in choices if one.get("type") != "null")
    if value.get("type") == "array":
        items = value.get("items") or {}
        return f"list of {_type(items)}" if items else "list"
    if value.get("type") == "object":
        inner = value.get("additionalProperties")
        return f"key: {_type(inner)}" if isinstance(inner, dict) else "key: anything"
    words = {"integer": "whole number", "string": "text", "boolean": "true or false", "number": "number"}
    return words.get(value.get("type", ""), "anything") + _limits(value)


def _limits(value: dict[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    found = [f"{sign} {value[key]}" for key, sign in signs.items() if key in value]
    return f" {', '.join(found)}" if found else ""


def _default(value: dict[str, Any]) -> str:
    default = value.get("default")
    if default is None or default in ({}, []):
        return "-"
    # Parts have defaults of their own, which stand in their own sections.
    return "see there" if isinstance(default, dict) else f"`{_plain(default)}`"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _sentence(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _sentence(text).replace("|", "\\|") or "-"
