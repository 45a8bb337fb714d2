"""YAML -> `Pipeline`. Every mistake is reported at once, each with its file, line and path, and none twice."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compressor.errors import PipelineError, Problem
from compressor.spec.agreement import agreement_problems, parts_of
from compressor.spec.chain import chain_problems
from compressor.spec.document import Document, read_document
from compressor.spec.overrides import apply_overrides
from compressor.spec.pipeline import Pipeline
from compressor.spec.problems import described, problems_of

VERSION = 1
"""The version of the language that this release reads."""


def load_pipeline(
    source: Path | str | Mapping[str, Any], *, overrides: Sequence[str] = (), metrics: Collection[str] = ()
) -> Pipeline:
    """Read and check a pipeline without doing any of its work.

    Values must have the right type as they stand (`epochs: "3"` is refused), since a pipeline that means something
    else than it says is worse than one that is refused.

    Args:
        source: a YAML file, or its contents as a mapping.
        overrides: `path=value` each, as `--set` takes them; applied before checking.
        metrics: names of the caller's own metrics, which the pipeline may then ask for.

    Raises:
        UserError: the file is missing or cannot be read.
        PipelineError: everything that is wrong with the pipeline.
    """
    document = _document(source)
    values, overridden, problems = apply_overrides(document.value, overrides)
    problems = [*document.problems, *problems]
    document = dataclasses.replace(document, value=values, overridden=tuple(overridden))

    wrong_version = _version_problem(document)
    if wrong_version is not None and "version" in values:  # another language: its other keys are not ours to judge
        raise PipelineError(document.file, [*problems, wrong_version])
    if wrong_version is not None:
        problems.append(wrong_version)
        document = dataclasses.replace(document, value={"version": VERSION, **values})

    pipeline = None
    try:
        pipeline = Pipeline.model_validate_json(json.dumps(document.value), strict=True)
    except ValidationError as error:
        problems += problems_of(error, document)
    parts = parts_of(document, pipeline)
    problems += chain_problems(parts.links, document)
    problems += agreement_problems(parts, document, metrics)
    if pipeline is None or problems:
        raise PipelineError(document.file, sorted(problems, key=lambda problem: problem.line or 0))
    return pipeline


def _document(source: Path | str | Mapping[str, Any]) -> Document:
    if not isinstance(source, Mapping):
        return read_document(Path(source))
    try:
        return Document("the pipeline", json.loads(json.dumps(source)))
    except (TypeError, ValueError) as error:
        hint = "use the values that YAML has: text, numbers, true, false, None, lists and dicts"
        raise PipelineError("the pipeline", [Problem(f"cannot be written as JSON: {error}", hint=hint)]) from None


def _version_problem(document: Document) -> Problem | None:
    """What is wrong with the version; the rest is read only when it is the one we know."""
    version = document.value.get("version")
    if "version" not in document.value:
        hint = f"add `version: {VERSION}` at the top: it says which pipeline language the file is written in"
        return Problem("missing", "version", None if document.root is None else 1, hint)
    line = document.line(("version",))
    if isinstance(version, bool) or not isinstance(version, int):
        return Problem(f"must be the number {VERSION}, not {described(version)}", "version", line)
    if version > VERSION:
        message = f"this pipeline is of version {version}, and this release reads version {VERSION}"
        return Problem(message, "version", line, "pip install --upgrade joule-compressor")
    if version < VERSION:
        return Problem(f"there is no version {version} of the pipeline language", "version", line, "write `version: 1`")
    return None
