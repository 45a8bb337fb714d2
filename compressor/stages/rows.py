"""Splits as stages need them: training rows, calibration batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compressor.checkpoints.store import Checkpoint
from compressor.data.tokenize import draw_windows, encode_rows, load_tokenizer
from compressor.errors import DataError
from compressor.spec.tasks import Task
from compressor.stages.context import StageContext
from compressor.training.metrics import ACCURACY, TOKEN_PERPLEXITY, Metric
from compressor.training.rows import Batch, Row, collate, joined_blocks, labelled_rows, language_model_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

CALIBRATION_BATCH_ROWS = 16


def metric_of(task: Task) -> Metric:
    """The metric that picks the best state on validation."""
    return TOKEN_PERPLEXITY if task.is_decoder else ACCURACY


def pad_id_of(tokenizer: PreTrainedTokenizerFast) -> int:
    """The padding token's id; any id does where there is none, since padded positions are masked."""
    return int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else 0


def train_rows(source: Checkpoint, ctx: StageContext, n_rows: int | None) -> list[Row]:
    """The training split, or its first rows.

    Raises:
        DataError: there is no training split, or a label that the head does not have.
    """
    if ctx.data.train is None:
        raise DataError(
            "this stage trains, and the pipeline has no training split", where="data.train", hint="add `data.train`"
        )
    dataset = ctx.data.train if n_rows is None else ctx.data.train.select(range(min(n_rows, len(ctx.data.train))))
    return _rows(dataset, source, ctx, "data.train")


def validation_rows(source: Checkpoint, ctx: StageContext) -> list[Row] | None:
    """The validation split; None where the pipeline has none.

    Raises:
        DataError: a label that the head does not have.
    """
    return None if ctx.data.validation is None else _rows(ctx.data.validation, source, ctx, "data.validation")


def calibration_batches(source: Checkpoint, ctx: StageContext) -> list[Batch]:
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
        rows = _rows(ctx.data.calibration, source, ctx, "data.calibration")
    rows = sorted(rows, key=lambda row: -len(row["input_ids"]))
    starts = range(0, len(rows), CALIBRATION_BATCH_ROWS)
    batches = [collate(rows[at : at + CALIBRATION_BATCH_ROWS], pad_id=pad_id_of(tokenizer)) for at in starts]
    return [{name: tensor for name, tensor in batch.items() if name != "index"} for batch in batches]


def _rows(dataset: Dataset, source: Checkpoint, ctx: StageContext, where: str) -> list[Row]:
    if len(dataset) == 0:
        raise DataError("there are no rows", where=where, hint="check the file, and `rows` and `split` if they are set")
    tokenizer = load_tokenizer(source.path)
    if ctx.task.is_decoder:
        documents = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in dataset["text"]]
        return language_model_rows(joined_blocks(documents, ctx.max_tokens, separator=tokenizer.eos_token_id))
    _check_labels(dataset["label"], source.content.labels, where)
    return labelled_rows(encode_rows(tokenizer, dataset, ctx.max_tokens), dataset["label"])


def _check_labels(labels: Sequence[int], classes: tuple[str, ...] | None, where: str) -> None:
    n_classes = len(classes or ())
    for number, label in enumerate(labels, 1):
        if not 0 <= label < n_classes:
            named = ", ".join(f"{index} {name}" for index, name in enumerate(classes or ()))
            raise DataError(
                f"row {number} has label {label}, but the head has {n_classes} classes: {named}",
                where=where,
                hint="mend the data, or name all classes in model.labels (a new head is made for a base model)",
            )
