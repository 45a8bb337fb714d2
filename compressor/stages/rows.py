"""Splits as stages need them: training rows, validation rows, calibration batches, for every kind of task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, assert_never

import torch
from torch import nn

from compressor.checkpoints.store import Checkpoint
from compressor.data.aligned import encode_spans, encode_words, mask_rows, text_pieces
from compressor.data.tokenize import Encoded, draw_windows, encode_rows, encode_texts, load_tokenizer
from compressor.errors import DataError
from compressor.spec.tasks import Task
from compressor.stages.context import StageContext
from compressor.training.metrics import Metric, metric_for
from compressor.training.rows import (
    IGNORED,
    Batch,
    Row,
    collate,
    joined_blocks,
    labelled_rows,
    language_model_rows,
    model_inputs,
    on_device,
    pair_rows,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

CALIBRATION_BATCH_ROWS = 16


def metric_of(task: Task, classes: Sequence[str] | None = None) -> Metric:
    """The metric that picks the best state on validation."""
    return metric_for(task, classes)


def pad_id_of(tokenizer: PreTrainedTokenizerFast) -> int:
    """The padding token's id; any id does where there is none, since padded positions are masked."""
    return int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else 0


def train_rows(
    source: Checkpoint, ctx: StageContext, n_rows: int | None, *, is_taught: bool = False, variant: int = 0
) -> list[Row]:
    """The training split, or its first rows.

    Args:
        variant: of a masked language model's rows, which hide other tokens in each.
        is_taught: a teacher says what to learn, so an embedder's texts come one by one and need no labels.

    Raises:
        DataError: there is no training split, a label that the head does not have, or nothing to learn from.
    """
    if ctx.data.train is None:
        raise DataError(
            "this stage trains, and the pipeline has no training split", where="data.train", hint="add `data.train`"
        )
    dataset = ctx.data.train if n_rows is None else ctx.data.train.select(range(min(n_rows, len(ctx.data.train))))
    if ctx.task.kind == "embedding" and not is_taught and "label" not in dataset.column_names:
        raise DataError(
            "an embedder learns from pairs of texts with a label that says how alike they are, and there are none",
            where="data.train",
            hint="give text_pair and label (data.columns says which), or distil from a teacher, which needs texts only",
        )
    return _rows(dataset, source, ctx, "data.train", in_pairs=not is_taught, variant=variant)


def validation_rows(source: Checkpoint, ctx: StageContext, *, is_taught: bool = False) -> list[Row] | None:
    """The validation split; None where the pipeline has none, or where it says nothing without a teacher.

    Texts of an embedder that have no labels are rows whose labels are empty, for a teacher to fill.

    Raises:
        DataError: a label that the head does not have.
    """
    dataset = ctx.data.validation
    if dataset is None or (ctx.task.kind == "embedding" and "label" not in dataset.column_names and not is_taught):
        return None
    return _rows(dataset, source, ctx, "data.validation")


def fill_vectors(rows: Sequence[Row], teacher: nn.Module, pad_id: int, device: str) -> list[Row]:
    """The rows, with the teacher's vectors as labels where these are empty."""
    if not rows or rows[0]["labels"] != ():
        return list(rows)
    teacher.eval().to(device)
    filled: list[Row] = []
    for at in range(0, len(rows), CALIBRATION_BATCH_ROWS):
        some = rows[at : at + CALIBRATION_BATCH_ROWS]
        batch = on_device(model_inputs(collate(some, pad_id=pad_id)), device)
        with torch.no_grad():
            vectors = teacher(**batch).sentence_embedding.float().cpu()
        filled += [{**row, "labels": tuple(vector.tolist())} for row, vector in zip(some, vectors, strict=True)]
    return filled


def calibration_batches(
    source: Checkpoint, ctx: StageContext, *, batch_rows: int = CALIBRATION_BATCH_ROWS
) -> list[Batch]:
    """Calibration rows (encoders, longest first) or windows (decoders), padded, with their labels.

    Raises:
        DataError: there are none.
    """
    if ctx.data.calibration is None:
        raise DataError(
            "this stage needs calibration rows, and the pipeline has neither `data.calibration` nor `data.train`",
            where="data.calibration",
            hint="add one of them",
        )
    tokenizer = load_tokenizer(source.path)
    if ctx.task.is_decoder:
        windows = draw_windows(
            tokenizer,
            ctx.data.calibration["text"],
            context=ctx.max_tokens,
            n_windows=ctx.calibration_rows,
            seed=ctx.seed,
        )
        rows = language_model_rows(windows)
    else:
        rows = _rows(ctx.data.calibration, source, ctx, "data.calibration", in_pairs=False)
    rows = sorted(rows, key=lambda row: -len(row["input_ids"]))
    starts = range(0, len(rows), batch_rows)
    batches = [collate(rows[at : at + batch_rows], pad_id=pad_id_of(tokenizer)) for at in starts]
    return [{name: tensor for name, tensor in batch.items() if name != "index"} for batch in batches]


def _rows(
    dataset: Dataset, source: Checkpoint, ctx: StageContext, where: str, *, in_pairs: bool = True, variant: int = 0
) -> list[Row]:
    if len(dataset) == 0:
        raise DataError("there are no rows", where=where, hint="check the file, and `rows` and `split` if they are set")
    tokenizer = load_tokenizer(source.path)
    kind, max_tokens, classes = ctx.task.kind, ctx.max_tokens, source.content.labels
    match kind:
        case "next_token":
            texts = (tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in dataset["text"])
            return language_model_rows(joined_blocks(texts, max_tokens, separator=tokenizer.eos_token_id))
        case "masked_token":
            masked = mask_rows(
                tokenizer, text_pieces(tokenizer, dataset["text"], max_tokens), seed=ctx.seed, variant=variant
            )
            placed = [_at(row.encoded, row.positions, row.targets) for row in masked]
            return labelled_rows([row.encoded for row in masked], placed)
        case "token_class":
            return _word_rows(tokenizer, dataset, max_tokens, classes, where)
        case "span":
            return _span_rows(tokenizer, dataset, max_tokens)
        case "embedding":
            return _text_rows(tokenizer, dataset, max_tokens, in_pairs=in_pairs)
        case "number":
            return labelled_rows(encode_rows(tokenizer, dataset, max_tokens), [float(one) for one in dataset["label"]])
        case "class":
            _check_labels(dataset["label"], classes, where)
            return labelled_rows(encode_rows(tokenizer, dataset, max_tokens), [int(one) for one in dataset["label"]])
        case "classes":
            for number, row in enumerate(dataset["label"], 1):
                _check_labels(row, classes, where, row=number)
            sets = [tuple(float(index in row) for index in range(len(classes or ()))) for row in dataset["label"]]
            return labelled_rows(encode_rows(tokenizer, dataset, max_tokens), sets)
        case _:
            assert_never(kind)


def _word_rows(
    tokenizer: PreTrainedTokenizerFast, dataset: Dataset, max_tokens: int, classes: tuple[str, ...] | None, where: str
) -> list[Row]:
    """Each word's class at its first token."""
    encoded = encode_words(tokenizer, dataset["words"], max_tokens)
    labels = []
    for number, (row, tags) in enumerate(zip(encoded, dataset["label"], strict=True), 1):
        _check_labels(tags, classes, where, row=number)
        labels.append(_at(row.encoded, row.positions, [int(tags[word]) for word in row.words]))
    return labelled_rows([row.encoded for row in encoded], labels)


def _span_rows(tokenizer: PreTrainedTokenizerFast, dataset: Dataset, max_tokens: int) -> list[Row]:
    """A row for each window; one that lacks the answer points at its first token."""
    windows = encode_spans(tokenizer, dataset["text"], dataset["text_pair"], max_tokens)
    answers = dataset["label"]
    places = []
    for window in windows:
        first = answers[window.row][0] if answers[window.row] else None
        found = window.positions(first["start"], first["start"] + len(first["text"])) if first is not None else None
        places.append(found or (0, 0))
    return labelled_rows([window.encoded for window in windows], places)


def _text_rows(tokenizer: PreTrainedTokenizerFast, dataset: Dataset, max_tokens: int, *, in_pairs: bool) -> list[Row]:
    """An embedder's pairs with their labels, or all its texts by themselves with labels for a teacher to fill."""
    names = [name for name in ("text", "text_pair") if name in dataset.column_names]
    sides = [encode_texts(tokenizer, dataset[name], max_tokens) for name in names]
    if in_pairs and "label" in dataset.column_names:
        return pair_rows(sides[0], sides[1], [float(one) for one in dataset["label"]])
    texts = [row for side in sides for row in side]
    return labelled_rows(texts, [()] * len(texts))


def _at(encoded: Encoded, positions: Sequence[int], values: Sequence[int]) -> list[int]:
    """One label per token, ignored but at the positions given."""
    labels = [IGNORED] * len(encoded["input_ids"])
    for position, value in zip(positions, values, strict=True):
        labels[position] = value
    return labels


def _check_labels(
    labels: Sequence[Any], classes: tuple[str, ...] | None, where: str, *, row: int | None = None
) -> None:
    """Of one class a row, or of all classes of one row."""
    n_classes = len(classes or ())
    for place, label in enumerate(labels, 1):
        number = place if row is None else row
        if not 0 <= label < n_classes:
            named = ", ".join(f"{index} {name}" for index, name in enumerate(classes or ()))
            raise DataError(
                f"row {number} has label {label}, but the head has {n_classes} classes: {named}",
                where=where,
                hint="mend the data, or name all classes in model.labels (a new head is made for a base model)",
            )
