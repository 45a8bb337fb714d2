"""A distillation's settings as terms of a loss: which layers are compared, in how many heads, and what cannot be.

Everything that two shapes make impossible is refused here, by the name it has in the pipeline, before any training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from compressor.errors import UnsupportedError, UserError
from compressor.methods.pooling import SentenceEncoder
from compressor.methods.surgery import hidden_width
from compressor.spec.distillation import AttentionLoss, DistillLosses, PkdLoss, RelationLoss
from compressor.spec.tasks import Task
from compressor.training.answers import VOCABULARY
from compressor.training.inside import Heads, heads_of
from compressor.training.objective import (
    AttentionTerm,
    LayerPairs,
    LogitTerm,
    OutputTerm,
    PkdTerm,
    RelationTerm,
    StateTerm,
    Term,
    pair_layers,
    relation_heads,
)


def terms_of(losses: DistillLosses, student: PreTrainedModel, teacher: PreTrainedModel, task: Task) -> tuple[Term, ...]:
    """Every teacher loss with a weight, ready to be computed between these two models.

    Raises:
        UserError: a layer map out of range, or shapes (widths, heads) that a loss cannot compare.
        UnsupportedError: a loss that this task or architecture has no use for.
    """
    found: list[Term] = []
    if losses.logits is not None and losses.logits.weight:
        if task.kind in ("number", "embedding"):
            raise UnsupportedError(
                f"{task.name} models have no classes, so losses.logits would be zero whatever they answer",
                hint="write `losses: {logits: null, output: {kind: mse}}`, or `preset: embedding`",
            )
        piece = losses.logits
        found.append(LogitTerm(piece.weight, piece.kind, piece.temperature, piece.beta, piece.skew))
    if losses.output is not None and losses.output.weight:
        if task.kind in VOCABULARY:
            raise UnsupportedError(
                f"losses.output would compare the raw logits of all tokens, which a {task.name} model has no use for",
                hint="use losses.logits",
            )
        found.append(OutputTerm(losses.output.weight, losses.output.kind))
    if losses.embeddings is not None and losses.embeddings.weight:
        found.append(StateTerm(losses.embeddings.weight, losses.embeddings.kind, "embeddings", ((0, 0),)))
    if losses.hidden is not None and losses.hidden.weight:
        pairs = _pairs("hidden", losses.hidden.layer_map, losses.hidden.at, student, teacher)
        found.append(StateTerm(losses.hidden.weight, losses.hidden.kind, "hidden", pairs))
    if losses.attention is not None and losses.attention.weight:
        found.append(_attention(losses.attention, student, teacher))
    if losses.relations is not None and losses.relations.weight:
        found.append(_relations(losses.relations, student, teacher))
    if losses.pkd is not None and losses.pkd.weight:
        found.append(_pkd(losses.pkd, student, teacher, task))
    return tuple(found)


def check_vectors(losses: DistillLosses, student: nn.Module, teacher: nn.Module, *, has_labels: bool) -> None:
    """Refuse two embedders whose vectors of a text differ in width where these are compared.

    Args:
        has_labels: whether the validation rows say how alike two texts are; else it is judged by the teacher's vectors.

    Raises:
        UserError: names both widths.
    """
    if not (isinstance(student, SentenceEncoder) and isinstance(teacher, SentenceEncoder)):
        return
    ours, theirs = student.vector_width, teacher.vector_width
    if ours == theirs:
        return
    widths = f"but the student's are {ours} wide and the teacher's {theirs}"
    if losses.output is not None and losses.output.weight:
        hint = "use losses.hidden or losses.relations, which take any widths, and `losses: {output: null}`"
        raise UserError(f"losses.output compares vectors of one width, {widths}", hint=hint)
    if not has_labels:
        raise UserError(
            f"texts without labels are validated by the teacher's vectors, {widths}",
            where="data.validation",
            hint="give pairs with a label that says how alike they are",
        )


def teaches_the_head(losses: DistillLosses) -> bool:
    """Whether anything reaches the task's head, so that validation sees what is learned."""
    logits, output = losses.logits, losses.output
    return bool(losses.labels or (logits is not None and logits.weight) or (output is not None and output.weight))


def _pairs(
    loss: str,
    layer_map: Sequence[int] | None,
    held: Literal["every", "last", "all but last"],
    student: PreTrainedModel,
    teacher: PreTrainedModel,
) -> LayerPairs:
    return pair_layers(loss, layer_map, held, student.config.num_hidden_layers, teacher.config.num_hidden_layers)


def _attention(piece: AttentionLoss, student: PreTrainedModel, teacher: PreTrainedModel) -> AttentionTerm:
    for side, model in (("student", student), ("teacher", teacher)):
        if getattr(model.config, "rope_parameters", None):
            raise UnsupportedError(
                f"losses.attention: the {side} ({model.config.model_type}) turns queries and keys by their positions "
                "after the projections, and its attention scores are not seen there",
                hint="use losses.relations (preset minilmv2), which compares the projections themselves",
            )
    pairs = _pairs("attention", piece.layer_map, piece.at, student, teacher)
    heads = _heads("attention", pairs, student, teacher)
    for (ours, theirs), (mine, its) in zip(pairs, heads, strict=True):
        if mine.query != its.query:
            raise UserError(
                f"losses.attention compares heads one by one, but student layer {ours} has {mine.query} of them and "
                f"teacher layer {theirs} has {its.query}",
                hint="use losses.relations (preset minilmv2), which takes any head counts",
            )
    return AttentionTerm(piece.weight, piece.kind, pairs, heads)


def _relations(piece: RelationLoss, student: PreTrainedModel, teacher: PreTrainedModel) -> RelationTerm:
    pairs = _pairs("relations", piece.layer_map, piece.at, student, teacher)
    heads = _heads("relations", pairs, student, teacher)
    n_heads: list[Mapping[str, int]] = []
    for mine, its in heads:
        asked = {
            what: its.of(what) if piece.heads == "attention" else None if piece.heads == "auto" else piece.heads
            for what in piece.of
        }
        n_heads.append({what: relation_heads(mine.width(what), its.width(what), asked[what]) for what in piece.of})
    return RelationTerm(piece.weight, piece.of, pairs, tuple(n_heads))


def _pkd(piece: PkdLoss, student: PreTrainedModel, teacher: PreTrainedModel, task: Task) -> PkdTerm:
    if task.is_decoder:
        raise UnsupportedError(
            "losses.pkd compares the first token, which in a decoder has seen no other", hint="use losses.hidden"
        )
    ours, theirs = hidden_width(student), hidden_width(teacher)
    if ours != theirs:
        raise UserError(
            f"losses.pkd compares states of one width, but the student's are {ours} wide and the teacher's {theirs}",
            hint="use losses.hidden, which learns a projection, or losses.relations",
        )
    return PkdTerm(piece.weight, _pairs("pkd", piece.layer_map, "all but last", student, teacher))


def _heads(
    loss: str, pairs: LayerPairs, student: PreTrainedModel, teacher: PreTrainedModel
) -> tuple[tuple[Heads, Heads], ...]:
    """Head counts of the layers that are compared, (student, teacher)."""
    mine, its = heads_of(student), heads_of(teacher)
    for side, heads, number in (("student", mine, 0), ("teacher", its, 1)):
        gone = [pair[number] for pair in pairs if not heads[pair[number]].query]
        if gone:
            raise UserError(
                f"losses.{loss}: layer {gone[0]} of the {side} has no attention left (it was pruned away)",
                hint="name layers that have it in layer_map, or leave this loss out",
            )
    return tuple((mine[ours], its[theirs]) for ours, theirs in pairs)
