"""Losses as functions of a module and a batch: the task's own, and what a teacher adds to it.

A distillation sums weighted terms. What a term measures lives in `methods.losses`; here it meets the model's outputs,
the mask, the layers that are compared, and the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import torch
from torch import Tensor, nn

from compressor.errors import UserError
from compressor.methods import losses
from compressor.spec.tasks import Kind
from compressor.training.answers import PER_TOKEN, answer_of, label_error
from compressor.training.inside import Heads, Inside, Place, What
from compressor.training.rows import Batch, model_inputs
from compressor.training.teacher import Teacher, TeacherOutputs
from compressor.training.trainer import Loss

PROJECTIONS = "distillation_projections"
"""Name under which learned projections live on the student while it trains; removed afterwards."""
MOST_RELATION_HEADS = 48
"""MiniLMv2's number for a base-sized teacher."""

LayerPairs = tuple[tuple[int, int], ...]
"""(student layer, teacher layer) that are compared."""


@dataclass(frozen=True)
class LogitTerm:
    """Divergence of the output distributions."""

    weight: float
    kind: Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"]
    temperature: float
    beta: float = 0.5
    skew: float = 0.1
    name: str = "logits"


@dataclass(frozen=True)
class OutputTerm:
    """Distance of the outputs themselves."""

    weight: float
    kind: Literal["mse", "cosine"]
    name: str = "output"


@dataclass(frozen=True)
class StateTerm:
    """Distance of hidden states, or of what enters the first layer."""

    weight: float
    kind: Literal["mse", "cosine"]
    what: Literal["hidden", "embeddings"]
    layers: LayerPairs

    @property
    def name(self) -> str:
        """As in the pipeline."""
        return self.what


@dataclass(frozen=True)
class AttentionTerm:
    """Distance of attention scores or distributions; head counts are (student, teacher) of each pair of layers."""

    weight: float
    kind: Literal["scores", "distributions"]
    layers: LayerPairs
    heads: tuple[tuple[Heads, Heads], ...]
    name: str = "attention"


@dataclass(frozen=True)
class RelationTerm:
    """Divergence of relations among vectors; `n_heads[i][kind]` relation heads for the i-th pair of layers."""

    weight: float
    of: tuple[Literal["query", "key", "value"], ...]
    layers: LayerPairs
    n_heads: tuple[Mapping[str, int], ...]
    name: str = "relations"


@dataclass(frozen=True)
class PkdTerm:
    """Distance of the first token's normalised states."""

    weight: float
    layers: LayerPairs
    name: str = "pkd"


Term = LogitTerm | OutputTerm | StateTerm | AttentionTerm | RelationTerm | PkdTerm


def places_of(terms: Iterable[Term], side: Literal["student", "teacher"]) -> tuple[Place, ...]:
    """What the terms look at inside one of the two models."""
    found: set[Place] = set()
    for term in terms:
        if isinstance(term, LogitTerm | OutputTerm):
            continue
        kinds = _looks_at(term)
        found.update(Place(what, pair[side == "teacher"]) for what in kinds for pair in term.layers)
    return tuple(sorted(found))


def _looks_at(term: StateTerm | AttentionTerm | RelationTerm | PkdTerm) -> tuple[What, ...]:
    match term:
        case StateTerm():
            return (term.what,)
        case AttentionTerm():
            return ("query", "key")
        case RelationTerm():
            return term.of
        case PkdTerm():
            return ("hidden",)
        case _:
            assert_never(term)


def label_loss(kind: Kind) -> Loss:
    """The task's own loss."""

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        answer = answer_of(_forward(model, batch, hidden=False), kind)
        return label_error(answer, batch["labels"], kind), {}, answer

    return loss


def distillation_loss(
    teacher: Teacher, *, inside: Inside, terms: Sequence[Term], label_weight: float, kind: Kind,
    projections: nn.ModuleDict | None = None,
) -> Loss:  # fmt: skip
    """The weighted sum of what the labels and the teacher ask for.

    Args:
        teacher: what it says about a batch.
        inside: open on the student, at `places_of(terms, "student")`.
        terms: what is compared.
        label_weight: of the task's own loss; 0 leaves the labels alone.
        kind: what the models answer.
        projections: learned maps of the student's states to the teacher's width, by name of the term.
    """

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        outputs = _forward(model, batch, hidden=inside.wants_hidden)
        student, taught = TeacherOutputs(answer_of(outputs, kind), inside.take(outputs)), teacher(batch)
        parts: dict[str, Tensor] = {}
        if label_weight:
            parts["labels"] = label_error(student.answer, batch["labels"], kind)
        for term in terms:
            maps = projections[term.name] if projections is not None and term.name in projections else None
            parts[term.name] = _value(term, student, taught, batch["attention_mask"], kind, maps)
        weights = {term.name: term.weight for term in terms} | {"labels": label_weight}
        total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        return total, parts, student.answer

    return loss


def _value(term: Term, student: TeacherOutputs, taught: TeacherOutputs, mask: Tensor, kind: Kind, maps: Any) -> Tensor:
    """One term, the mean over the layers that it compares."""
    is_causal = kind == "next_token"
    match term:
        case LogitTerm():
            return _divergence(term, student.answer, taught, mask, kind)
        case OutputTerm():
            distance = losses.output_mse if term.kind == "mse" else losses.hidden_cosine
            return distance(student.answer, taught.answer, mask if student.answer.dim() == 3 else None)
        case StateTerm():
            distance = losses.hidden_mse if term.kind == "mse" else losses.hidden_cosine
            values = [
                distance(
                    student.inside[Place(term.what, ours)], taught.inside[Place(term.what, theirs)], mask,
                    maps[number] if maps is not None else None,
                )
                for number, (ours, theirs) in enumerate(term.layers)
            ]  # fmt: skip
        case AttentionTerm():
            compare = losses.attention_mse if term.kind == "scores" else losses.attention_kl
            values = [
                compare(_scores(student, ours, heads[0]), _scores(taught, theirs, heads[1]), mask, is_causal=is_causal)
                for (ours, theirs), heads in zip(term.layers, term.heads, strict=True)
            ]
        case RelationTerm():
            values = [
                torch.stack([
                    losses.relation_kl(
                        student.inside[Place(what, ours)], taught.inside[Place(what, theirs)], n_heads[what], mask,
                        is_causal=is_causal,
                    )
                    for what in term.of
                ]).sum()
                for (ours, theirs), n_heads in zip(term.layers, term.n_heads, strict=True)
            ]  # fmt: skip
        case PkdTerm():
            states = [
                torch.stack([side.inside[Place("hidden", pair[number])] for pair in term.layers])  # (M, B, T, H)
                for number, side in enumerate((student, taught))
            ]
            return losses.pkd(states[0], states[1]) / len(term.layers)
        case _:
            assert_never(term)
    return torch.stack(values).mean()


def _scores(side: TeacherOutputs, layer: int, heads: Heads) -> Tensor:
    """Attention scores before the softmax, (B, heads, T, T)."""
    query, key = (
        losses.split_heads(side.inside[Place(what, layer)], heads.of(what)) for what in ("query", "key")
    )  # fmt: skip
    return losses.dot_products(query, key)


def _divergence(term: LogitTerm, answer: Tensor, taught: TeacherOutputs, mask: Tensor, kind: Kind) -> Tensor:
    student, teacher, temperature = answer, taught.answer, term.temperature
    counted: Tensor | None = mask if kind in PER_TOKEN else None
    if taught.classes is not None:
        # Both at the temperature already; what is left to do is its square, which keeps the size of the gradient.
        student, temperature = losses.coarse_logits(answer, taught.classes, temperature), 1.0
    if kind == "classes":  # each class is a yes or no of its own
        student, teacher = (torch.stack([torch.zeros_like(z), z], dim=-1) for z in (student, teacher))
    if kind == "span":  # a distribution over the tokens of the row, one for the start and one for the end
        lowest = torch.finfo(torch.float32).min
        student, teacher = (
            z.float().masked_fill(~mask.bool().unsqueeze(-1), lowest).transpose(1, 2) for z in (student, teacher)
        )
    match term.kind:
        case "forward_kl":
            value = losses.logit_kl(student, teacher, temperature, counted)
        case "reverse_kl":
            value = losses.reverse_kl(student, teacher, temperature, counted)
        case "jsd":
            value = losses.jsd(student, teacher, term.beta, temperature, counted)
        case "skew_kl":
            value = losses.skew_kl(student, teacher, term.skew, temperature, counted)
        case "skew_reverse_kl":
            value = losses.skew_reverse_kl(student, teacher, term.skew, temperature, counted)
        case _:
            assert_never(term.kind)
    return value * (term.temperature / temperature) ** 2


def spread_layers(n_student: int, n_teacher: int) -> tuple[int, ...]:
    """The last teacher layer of each of `n_student` equal shares: 3 of 6 gives (1, 3, 5) (TinyBERT's g(m))."""
    return tuple((number + 1) * n_teacher // n_student - 1 for number in range(n_student))


def pair_layers(
    loss: str, layer_map: Sequence[int] | None, held: Literal["every", "last", "all but last"],
    n_student: int, n_teacher: int,
) -> LayerPairs:  # fmt: skip
    """Which student layer is held against which teacher layer, `spread_layers` where no map is given.

    Args:
        loss: its name in the pipeline, for errors.
        layer_map: one teacher layer for each student layer held.
        held: which student layers.
        n_student, n_teacher: layers there are.

    Raises:
        UserError: not one teacher layer for each student layer held, one that the teacher does not have, or no layer
            to hold.
    """
    ours = {"every": range(n_student), "last": range(n_student - 1, n_student), "all but last": range(n_student - 1)}
    held_layers = tuple(ours[held])
    if not held_layers:
        raise UserError(
            f"losses.{loss} compares all layers but the last, and the student has one layer",
            hint="leave this loss out, or take a deeper student",
        )
    spread = spread_layers(n_student, n_teacher)
    theirs = tuple(layer_map) if layer_map is not None else tuple(spread[layer] for layer in held_layers)
    if len(theirs) != len(held_layers):
        raise UserError(
            f"losses.{loss}.layer_map names {len(theirs)} layers, but the student has {len(held_layers)}"
            + ("" if held == "every" else f" to compare ({held} of {n_student})"),
            hint="give one teacher layer for each student layer, or leave it out to spread them evenly",
        )
    if any(not 0 <= layer < n_teacher for layer in theirs):
        raise UserError(
            f"losses.{loss}.layer_map {list(theirs)} leaves the teacher, which has {n_teacher} layers",
            hint=f"layers are counted from 0 to {n_teacher - 1}",
        )
    return tuple(zip(held_layers, theirs, strict=True))


def relation_heads(student_width: int, teacher_width: int, asked: int | None) -> int:
    """The number of relation heads: as asked, else the largest common divisor up to `MOST_RELATION_HEADS`.

    Raises:
        UserError: a number asked for that does not divide both widths.
    """
    common = math.gcd(student_width, teacher_width)
    fits = [number for number in range(1, min(common, MOST_RELATION_HEADS) + 1) if common % number == 0]
    if asked is None:
        return fits[-1]
    if common % asked:
        raise UserError(
            f"losses.relations.heads is {asked}, which does not divide both the student's width {student_width} and "
            f"the teacher's {teacher_width}",
            hint=f"choose one of {', '.join(map(str, fits))}, or leave it out",
        )
    return asked


def make_projections(terms: Iterable[Term], student_width: int, teacher_width: int) -> nn.ModuleDict | None:
    """One learned map to the teacher's width for each pair of states that is compared; None where widths agree."""
    if student_width == teacher_width:
        return None
    states = [term for term in terms if isinstance(term, StateTerm)]
    return nn.ModuleDict(
        {
            term.name: nn.ModuleList(nn.Linear(student_width, teacher_width, bias=False) for _ in term.layers)
            for term in states
        }
    )


def add_projections(student: nn.Module, projections: nn.ModuleDict | None) -> None:
    """Hang learned maps on the student while it trains, so that optimiser and checkpoints include them."""
    if projections is not None:
        student.add_module(PROJECTIONS, projections)


def remove_projections(student: nn.Module) -> None:
    """Take the learned maps off again: they are no part of the model."""
    if hasattr(student, PROJECTIONS):
        delattr(student, PROJECTIONS)


def _forward(model: nn.Module, batch: Batch, *, hidden: bool) -> Any:
    config = getattr(model, "module", model).config  # of the module inside, where processes share a model
    extra = {"use_cache": False} if getattr(config, "use_cache", False) else {}
    return model(**model_inputs(batch), output_hidden_states=hidden, **extra)
