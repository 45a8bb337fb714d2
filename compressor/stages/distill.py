"""Distillation: train a student to answer as its teacher does. Recovery after pruning is the same stage.

The student is the `from` checkpoint, or some of its layers (DistilBERT, arXiv 1910.01108). The teacher answers each
training row once; the cache is shared by all stages of a run that have the same teacher.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from compressor.checkpoints.files import digest_json
from compressor.checkpoints.sentence import read_sentence_modules
from compressor.checkpoints.store import Checkpoint
from compressor.data.tokenize import load_tokenizer
from compressor.errors import UnsupportedError, UserError
from compressor.methods.structure import Structure
from compressor.methods.surgery import drop_layers, hidden_width, layers_of
from compressor.methods.vocabulary import trim_embeddings
from compressor.runtime.torch_models import load_module, quiet_transformers, with_head
from compressor.schema.events import Emit, Note
from compressor.spec.distillation import OnPolicy
from compressor.spec.stages import Distill
from compressor.stages.context import DistillInput, StageContext
from compressor.stages.cost import measure_cost
from compressor.stages.fitting import (
    Splits,
    fit,
    open_splits,
    realised,
    sealed_by_the_first,
    splits_read,
    train_settings,
    whole,
)
from compressor.stages.kept_tokens import teacher_rows
from compressor.stages.rows import fill_vectors
from compressor.stages.sealing import made_by, seal_module
from compressor.stages.teaching import check_vectors, teaches_the_head, terms_of
from compressor.training.inside import Inside
from compressor.training.objective import (
    RelationTerm,
    Term,
    add_projections,
    distillation_loss,
    make_projections,
    places_of,
    remove_projections,
)
from compressor.training.processes import cpu_s_of_others, first_one_first
from compressor.training.teacher import Teacher, TopK, ask_teacher
from compressor.training.train import TrainResult, batches_of, n_drawn


def distill(config: Distill, inputs: DistillInput, out_dir: Path, ctx: StageContext) -> Checkpoint:
    """Train the student against the teacher's logits and hidden states (and the labels, where they have a weight).

    Raises:
        UserError: layers that the source does not have, a layer map that leaves the teacher, or a teacher with other
            classes or another tokenizer.
        DataError: no training rows, or a label that the head does not have.
        StageError: the loss stopped being a number.
    """
    source, teacher = inputs.source, inputs.teacher
    rows = teacher_rows(source, teacher)
    _check_same_language(source, teacher, same_tokens=rows is None)
    with measure_cost(ctx.workdir, ctx.calibration) as meter, quiet_transformers():
        emit = meter.watching(ctx.emit)
        splits = open_splits(source, ctx, config.training, stage=config.id, emit=emit, is_taught=True)
        student, structure = _student(config, source)
        taught = load_module(teacher)
        if rows is not None:
            trim_embeddings(taught, rows)  # its logits are then those of the tokens that the student kept
        terms = terms_of(config.losses, student, taught, ctx.task) if config.on_policy is None else ()
        pupil, master = (
            with_head(module, place.path, ctx.task) for module, place in ((student, source), (taught, teacher))
        )
        if splits.validation is not None:
            check_vectors(config.losses, pupil, master, has_labels=splits.validation[0]["labels"] != ())
            splits = replace(
                splits, validation=fill_vectors(splits.validation, master, splits.pad_id, ctx.target.device)
            )
        torch.manual_seed(ctx.seed)
        projections = make_projections(terms, hidden_width(student), hidden_width(taught))
        add_projections(pupil, projections)
        if config.on_policy is not None:
            result = _on_policy(config, config.on_policy, student, taught, splits, source, ctx, emit)
        else:
            with Inside(pupil, places_of(terms, "student")) as inside:
                loss = distillation_loss(
                    _teacher(config, teacher, master, splits, terms, rows, ctx, emit),
                    inside=inside,
                    terms=terms,
                    label_weight=config.losses.labels,
                    kind=ctx.task.kind,
                    projections=projections,
                )
                result = fit(
                    pupil, splits=splits, loss=loss, training=config.training, stage=config.id, ctx=ctx, emit=emit,
                    keep="best" if _sees_what_is_learned(config, emit) else "last",
                )  # fmt: skip
        remove_projections(pupil)
        student = whole(student, lambda: _student(config, source)[0], result)
        meter.add(cpu_s_of_others())
    made = made_by(
        config,
        inputs={"source": source.digest, "teacher": teacher.digest},
        splits=splits_read(config.training),
        realised=realised(student, result, splits) | _compared(config, terms),
    )

    def seal() -> Checkpoint:
        return seal_module(
            student, out_dir, made=made, ctx=ctx, cost=meter.cost, labels=source.content.labels, structure=structure,
            carry_from=source.path,
        )  # fmt: skip

    return sealed_by_the_first(seal, out_dir)


def _on_policy(
    config: Distill, on_policy: OnPolicy, student: PreTrainedModel, taught: PreTrainedModel, splits: Splits,
    source: Checkpoint, ctx: StageContext, emit: Emit,
) -> TrainResult:  # fmt: skip
    from compressor.training.on_policy import train_on_policy  # TRL is optional

    if not ctx.task.is_decoder:
        raise UnsupportedError(
            f"a {ctx.task.name} model writes nothing that a teacher could judge",
            where=f"stages.{config.id}.on_policy",
            hint="leave it out: on-policy distillation is for causal-lm",
        )
    return train_on_policy(
        student, taught, train_rows=splits.train, validation_rows=splits.validation,
        tokenizer=load_tokenizer(source.path), share=on_policy.share, new_tokens=on_policy.new_tokens,
        temperature=on_policy.temperature, beta=on_policy.beta, metric=splits.metric,
        settings=train_settings(config.training, ctx), pad_id=splits.pad_id, stage=config.id, emit=emit,
        workdir=ctx.workdir,
    )  # fmt: skip


def _student(config: Distill, source: Checkpoint) -> tuple[PreTrainedModel, dict[str, Any] | None]:
    """The student before training, and what to write of its structure."""
    student = load_module(source)
    structure = source.content.structure
    if config.layers is None:
        return student, structure
    n_layers = len(layers_of(student))
    if any(layer >= n_layers for layer in config.layers) or list(config.layers) != sorted(set(config.layers)):
        raise UserError(
            f"layers {list(config.layers)} cannot be taken from {source.record.stage!r}, which has {n_layers} layers",
            where=f"stages.{config.id}.layers",
            hint=f"name layers from 0 to {n_layers - 1} in rising order",
        )
    if len(config.layers) == n_layers:
        return student, structure
    kept = drop_layers(student, config.layers)
    if structure is not None:
        structure = Structure.from_json(structure).then(kept).to_json()
    return student, structure


def _sees_what_is_learned(config: Distill, emit: Emit) -> bool:
    """Whether validation can choose among states; says so where it cannot."""
    if teaches_the_head(config.losses):
        return True
    text = (
        "no loss of this stage teaches the task's head, so its last state is kept, and its validation figure says "
        "little before a stage that does (tinybert_prediction, logits, finetune)"
    )
    emit(Note(config.id, text))
    return False


def _teacher(
    config: Distill,
    teacher: Checkpoint,
    module: nn.Module,
    splits: Splits,
    terms: tuple[Term, ...],
    gathered: tuple[int, ...] | None,
    ctx: StageContext,
    emit: Emit,
) -> Teacher:
    settings = train_settings(config.training, ctx)
    logits = config.losses.logits
    key = {
        "teacher": teacher.digest,
        "train": ctx.data.digests["train"],
        "rows": splits.n_train_rows,
        "max_tokens": ctx.max_tokens,
        "variants": splits.n_variants,
        "masks": ctx.seed if ctx.task.kind == "masked_token" or splits.augmented_by else None,
        "augmented_by": splits.augmented_by,
        "precision": settings.precision,
        "kept_token_ids": None if gathered is None else digest_json(list(gathered)),
    }
    with first_one_first():
        return ask_teacher(
            module,
            splits.train,
            key=key,
            folder=(ctx.cache_dir or ctx.workdir) / f"teacher-{teacher.record.stage}{'-gathered' if gathered else ''}",
            kind=ctx.task.kind,
            places=places_of(terms, "teacher"),
            top_k=TopK(logits.top_k, logits.temperature) if logits is not None else TopK(None, 1.0),
            limit_bytes=int(config.cache_limit_gb * 1e9),
            n_drawn=n_drawn(batches_of(splits.train, settings, splits.n_variants), settings),
            pad_id=splits.pad_id,
            stage=config.id,
            emit=emit,
            device=ctx.target.device,
            precision=settings.precision,
        )


def _compared(config: Distill, terms: tuple[Term, ...]) -> dict[str, Any]:
    """What the record says of who was compared with whom."""
    compared = {term.name: [list(pair) for pair in term.layers] for term in terms if hasattr(term, "layers")}
    heads = {term.name: [dict(n) for n in term.n_heads] for term in terms if isinstance(term, RelationTerm)}
    return {
        "layers": list(config.layers) if config.layers is not None else None,
        "compared_layers": compared,
        "relation_heads": heads.get("relations"),
    }


def _check_same_language(source: Checkpoint, teacher: Checkpoint, *, same_tokens: bool) -> None:
    """Logits can only be compared class by class, and hidden states token by token."""
    ours, theirs = source.content, teacher.content
    if ours.labels != theirs.labels:
        raise UserError(
            f"the teacher {teacher.record.stage!r} has the classes {', '.join(theirs.labels or ())}, the student "
            f"{source.record.stage!r} has {', '.join(ours.labels or ())}",
            hint="teacher and student must have the same classes in the same order",
        )
    ours_puts, theirs_puts = (_default_prompt(checkpoint) for checkpoint in (source, teacher))
    if ours_puts != theirs_puts:
        raise UserError(
            f"the teacher {teacher.record.stage!r} puts {theirs_puts!r} before every text that it encodes, the student "
            f"{source.record.stage!r} puts {ours_puts!r}",
            hint="give both the same default prompt in config_sentence_transformers.json",
        )
    if not same_tokens:
        return  # the student's are among the teacher's, and the teacher is cut to them
    ours_reads, theirs_reads = (_reading(checkpoint.path / "tokenizer.json") for checkpoint in (source, teacher))
    differ = sorted(key for key in ours_reads | theirs_reads if ours_reads.get(key) != theirs_reads.get(key))
    if differ:
        raise UserError(
            f"the teacher {teacher.record.stage!r} and the student {source.record.stage!r} have different tokenizers "
            f"(in tokenizer.json: {', '.join(differ)})",
            hint="their tokens cannot be compared; choose a student of the same family",
        )


def _default_prompt(checkpoint: Checkpoint) -> str:
    modules = read_sentence_modules(checkpoint.path)
    return modules.prompt(None) if modules is not None else ""


def _reading(path: Path) -> dict[str, Any]:
    """What decides into which tokens a text is cut; how rows are padded or cut short is decided elsewhere."""
    if not path.is_file():
        raise UserError(
            f"{path.parent} has no tokenizer.json, so nobody can say whether teacher and student read the same tokens",
            hint="save a fast tokenizer there: AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        )
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in values.items() if key not in ("version", "truncation", "padding")}
