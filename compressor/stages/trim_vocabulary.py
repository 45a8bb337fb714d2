"""Vocabulary trim: the embedding table and the output layer keep the tokens that given texts use.

For small models the table is a large part of the weights (MiniLM-L6: half), and in a decoder the output layer is a
large part of each token's cost. No weight of the layers changes, and on covered text neither do the tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from compressor.checkpoints.files import write_whole
from compressor.checkpoints.store import Checkpoint
from compressor.checkpoints.vocabulary import KEPT_TOKENS, KeptTokens, kept_tokens_of
from compressor.data.tokenize import load_tokenizer
from compressor.data.vocabulary import VOCABULARY_FILES, check_same_tokens, needed_tokens, write_trimmed
from compressor.errors import DataError, StageError
from compressor.methods.structure import write_ranges
from compressor.methods.surgery import n_parameters
from compressor.methods.vocabulary import trim_embeddings
from compressor.runtime.torch_models import load_module, quiet_transformers
from compressor.spec.stages import TrimVocabulary
from compressor.stages.context import SourceInput, StageContext
from compressor.stages.cost import measure_cost
from compressor.stages.sealing import made_by, seal_module


def trim_vocabulary(config: TrimVocabulary, inputs: SourceInput, out_dir: Path, ctx: StageContext) -> Checkpoint:
    """Trim the source's vocabulary to what the covered splits need.

    Raises:
        DataError: a split to cover that the pipeline does not have, or one without text.
        UnsupportedError: a kind of tokenizer that cannot be trimmed.
        StageError: no token would leave, or a covered text comes out as other tokens.
    """
    source = inputs.source
    with measure_cost(ctx.workdir, ctx.calibration) as meter, quiet_transformers():
        texts = list(_texts(config, ctx))
        tokenizer = load_tokenizer(source.path)
        kept = needed_tokens(tokenizer, texts)
        module = load_module(source)
        n_before, n_rows_before = n_parameters(module), int(module.config.vocab_size)
        if len(kept) == n_rows_before:
            raise StageError(
                f"the texts and the special tokens need all {n_rows_before} tokens, so nothing would leave",
                where=f"stages.{config.id}",
                hint="leave the stage out, or cover less text",
            )
        trimmed = write_trimmed(source.path, kept, out_dir)
        n_tokens = check_same_tokens(tokenizer, trimmed, kept, texts)
        trim_embeddings(module, kept)
    record = _record(source, kept)
    write_whole(out_dir / KEPT_TOKENS, json.dumps(record.to_json(), indent=1) + "\n")
    return seal_module(
        module,
        out_dir,
        made=made_by(
            config,
            inputs={"source": source.digest},
            splits=config.cover,
            realised={
                "parameters": n_parameters(module),
                "parameters_before": n_before,
                "tokens": len(kept),
                "tokens_before": n_rows_before,
                "covered_tokens_compared": n_tokens,
                "kept_token_ids": write_ranges(record.kept_token_ids),
            },
        ),
        ctx=ctx,
        cost=meter.cost,
        labels=source.content.labels,
        structure=source.content.structure,
        carry_from=source.path,
        replaced=(*VOCABULARY_FILES, KEPT_TOKENS),
    )


def _texts(config: TrimVocabulary, ctx: StageContext) -> Iterator[str]:
    splits = {"train": ctx.data.train, "validation": ctx.data.validation, "calibration": ctx.data.calibration}
    for name in config.cover:
        rows = splits[name]
        if rows is None:
            raise DataError(
                f"the vocabulary shall cover the {name} split, which the pipeline does not have",
                where=f"data.{name}",
                hint=f"add `data.{name}`, or name other splits in `cover`",
            )
        for column in ("text", "text_pair"):
            if column in rows.column_names:
                yield from rows[column]


def _record(source: Checkpoint, kept: tuple[int, ...]) -> KeptTokens:
    """What is kept of the first, whole vocabulary, also when this is the second trim."""
    before = kept_tokens_of(source)
    if before is None:
        return KeptTokens(source.content.files["tokenizer.json"].sha256, kept)
    return KeptTokens(before.of_tokenizer, tuple(before.kept_token_ids[number] for number in kept))
