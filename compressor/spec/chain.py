"""The stages as a graph: who starts from whom, and whether each is given what it can work on.

Pure functions of the pipeline, run before any file is opened. A stage that is broken in itself (no id, an unknown
kind) is passed over here, since that has been reported already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from compressor.errors import Problem
from compressor.spec.document import Document, dotted
from compressor.spec.pipeline import Pipeline
from compressor.spec.problems import did_you_mean
from compressor.spec.stages import ACCEPTS, YIELDS

MODEL = "model"
"""The id under which stages name the source model."""


@dataclass(frozen=True)
class Link:
    """What the chain needs to know of a stage; None where it could not be read."""

    position: int
    id: str | None
    kind: str | None
    from_: str | None
    teacher: str | None
    brings_its_own: bool = False
    """A distillation whose student comes from elsewhere, so that it starts from no stage."""
    is_mixed: bool = False
    """A pruning that chooses the precision of every sublayer, or a quantisation that does as one chose."""


def resolve_sources(pipeline: Pipeline) -> dict[str, str]:
    """For each stage, the id it starts from: its `from`, else the stage before it, else `model`."""
    sources: dict[str, str] = {}
    before = MODEL
    for stage in pipeline.stages:
        sources[stage.id] = stage.from_ or before
        before = stage.id
    return sources


def baseline_id(pipeline: Pipeline) -> str:
    """The candidate all others are held against: as told, else the first fine-tuned stage, else the model."""
    if pipeline.evaluate.baseline is not None:
        return pipeline.evaluate.baseline
    return next((stage.id for stage in pipeline.stages if stage.stage == "finetune"), MODEL)


def links_of(stages: Any) -> tuple[Link, ...]:
    """Links of a pipeline's `stages` as written, whether or not they are valid."""
    return tuple(_link(i, stage) for i, stage in enumerate(stages)) if isinstance(stages, list) else ()


def _link(position: int, stage: Any) -> Link:
    values = stage if isinstance(stage, dict) else {}
    id_, kind, from_, teacher = (
        value if isinstance(value := values.get(key), str) else None for key in ("id", "stage", "from", "teacher")
    )
    brings_its_own = kind == "distill" and values.get("student") is not None
    search = values.get("search")
    chooses = kind == "prune" and isinstance(search, dict) and search.get("precision") == "mixed"
    follows = kind == "quantize" and (values.get("exclude"), values.get("scheme")) == ("searched", "w8a8-dynamic")
    return Link(position, id_, kind if kind in ACCEPTS else None, from_, teacher, brings_its_own, chooses or follows)


def chain_problems(links: Sequence[Link], document: Document) -> Iterator[Problem]:
    """Ids that clash, references that lead nowhere or forward, and stages that cannot use what they are given."""
    seen: dict[str, Link] = {}
    for link in links:
        if link.id == MODEL:
            message = "`model` names the source model, so no stage can be called that"
            yield _problem(message, link, "id", document, "choose another id")
        elif link.id in seen:
            message = f"`{link.id}` is the id of stages.{seen[link.id].position} already"
            yield _problem(message, link, "id", document, "each stage needs an id of its own")
        else:
            yield from _input_problems(link, links, document)
        if link.id is not None:
            seen.setdefault(link.id, link)


def _input_problems(link: Link, links: Sequence[Link], document: Document) -> Iterator[Problem]:
    before = links[link.position - 1].id if link.position else MODEL
    if link.from_ is not None and (wrong := reference_problem(link.from_, links, before=link.position)):
        yield _problem(wrong[0], link, "from", document, wrong[1])
    elif not link.brings_its_own and (source := link.from_ or before) is not None:
        yield from _source_problems(link, source, links, document)
        yield from _mixture_problems(link, links, document)
    if link.teacher is None:
        return
    if wrong := reference_problem(link.teacher, links, before=link.position):
        yield _problem(wrong[0], link, "teacher", document, wrong[1])
    elif (teacher := _named(link.teacher, links)) and teacher.kind and YIELDS[teacher.kind] != "torch":
        message = f"a teacher must be a torch checkpoint, but `{teacher.id}` ({teacher.kind}) leaves onnx"
        yield _problem(message, link, "teacher", document, _torch_hint("teacher", link, links))


def reference_problem(name: str, links: Sequence[Link], *, before: int | None = None) -> tuple[str, str] | None:
    """Message and hint when `name` is no stage, or none that stands before the position `before`."""
    if name == MODEL:
        return None
    found = _named(name, links)
    if found is None:
        known = [MODEL, *(link.id for link in links if link.id)]
        return f"there is no stage `{name}`", did_you_mean(name, known, otherwise="there are: ")
    if before is None or found.position < before:
        return None
    if found.position == before:
        return f"`{name}` cannot start from itself", "name an earlier stage, or `model`"
    here = links[before].id
    if here and here in _upstream(found, links):
        return f"`{here}` and `{name}` wait for each other", "one of them must start from an earlier stage, or `model`"
    return f"`{name}` comes later (stages.{found.position})", "a stage starts from an earlier one: change the order"


def _source_problems(link: Link, source: str, links: Sequence[Link], document: Document) -> Iterator[Problem]:
    found = _named(source, links)
    given_kind = found.kind if found else None
    if link.kind is None or (source != MODEL and given_kind is None):
        return
    gives = YIELDS[given_kind] if given_kind else "torch"
    called = f"`{source}` ({given_kind})" if given_kind else "the source model"
    needs = ACCEPTS[link.kind]
    key = "from" if link.from_ is not None else None
    if gives != needs:
        verb = "leaves" if given_kind else "is"
        message = f"`{link.id}` ({link.kind}) needs {_a(needs)} checkpoint, but {called} {verb} {gives}"
        onnx_hint = "put a stage `export` between them"
        yield _problem(message, link, key, document, onnx_hint if needs == "onnx" else _torch_hint("from", link, links))
    elif link.kind == "quantize" and given_kind == "quantize":
        exports = [other.id for other in links[: link.position] if other.kind == "export" and other.id]
        hint = f"write `from: {exports[-1]}` to quantise the same export again" if exports else "quantise an export"
        yield _problem(
            f"`{link.id}` (quantize) starts from {called}, which is quantised already", link, key, document, hint
        )


def _mixture_problems(link: Link, links: Sequence[Link], document: Document) -> Iterator[Problem]:
    if link.kind != "quantize" or not link.is_mixed:
        return
    before = [other for other in links if other.id in _upstream(link, links) and other.kind == "prune"]
    if not any(other.is_mixed for other in before):
        message = f"`{link.id}` (quantize) leaves alone what was chosen, and no stage before it chooses"
        hint = "put a pruning with a `budget` and `search: {precision: mixed}` before it, or name nodes in `exclude`"
        yield _problem(message, link, "exclude", document, hint)


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "onnx" else f"a {kind}"


def _torch_hint(key: str, link: Link, links: Sequence[Link]) -> str:
    torch = [other.id for other in links[: link.position] if other.kind and YIELDS[other.kind] == "torch" and other.id]
    return f"write `{key}: {torch[-1] if torch else MODEL}`, the last torch checkpoint before it"


def _named(name: str, links: Sequence[Link]) -> Link | None:
    return next((link for link in links if link.id == name), None)


def _upstream(link: Link, links: Sequence[Link]) -> set[str]:
    """Every id that a stage needs, its own inputs' inputs included."""
    needed: set[str] = set()
    ahead = [link]
    while ahead:
        current = ahead.pop()
        before = links[current.position - 1].id if current.position else None
        for name in (current.from_ or before, current.teacher):
            if name is not None and name not in needed:
                needed.add(name)
                ahead.extend(found for found in (_named(name, links),) if found)
    return needed


def _problem(message: str, link: Link, key: str | None, document: Document, hint: str) -> Problem:
    location = ("stages", link.position) if key is None else ("stages", link.position, key)
    return Problem(message, dotted(location), document.line(location), hint)
