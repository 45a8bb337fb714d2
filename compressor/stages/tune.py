"""Runtime tuning: the same graph with the settings that cost least here. No weight changes.

Measured on calibration (else validation) rows, never on test rows. What was found is one more table in the record, and
`tuning.json` beside the manifest: given as `table`, it settles a later run without measuring.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from compressor.checkpoints.files import carry_files, write_whole
from compressor.checkpoints.manifest import Variant
from compressor.checkpoints.store import Checkpoint
from compressor.data.tokenize import Encoded, draw_windows, encode_rows, load_tokenizer
from compressor.energy import identify_cpu
from compressor.errors import DataError, UnsupportedError, UserError
from compressor.measurement.tuning import Plan, RuntimeSettings, Texts, tune_settings
from compressor.measurement.workers import Job
from compressor.runtime.runners import n_cores
from compressor.schema.events import Progress
from compressor.spec.stages import Tune
from compressor.stages.context import SourceInput, StageContext
from compressor.stages.cost import measure_cost
from compressor.stages.rows import pad_id_of
from compressor.stages.sealing import made_by, seal_variant

TABLE = "tuning.json"
SCHEMA = "tuning/1"
FOR_TEXTS = ("batch_sizes", "sort_by_length")
FOR_PROMPTS = ("input_tokens", "output_tokens")


def tune(config: Tune, inputs: SourceInput, out_dir: Path, ctx: StageContext) -> Checkpoint:
    """Find the runtime settings of least cost for the source's variant, and let them travel with it.

    That nothing is cheaper than the defaults is a result, and the record says so.

    Raises:
        UserError: a setting that the task has no use for, or a table that is none.
        UnsupportedError: the source's stage left more or less than one variant.
        DataError: no calibration and no validation rows.
        StageError: no setting keeps the latency limit.
    """
    source = inputs.source
    _check_settings(config, ctx)
    variant = _own_variant(source)
    with measure_cost(ctx.workdir, ctx.calibration) as meter:
        emit = meter.watching(ctx.emit)
        carry_files(source.path, out_dir, exclude_prefixes=(TABLE,))
        if config.table is not None:
            table = read_table(Path(config.table))
        else:
            axes = list(_axes(config, ctx))
            emit(Progress(config.id, "tune", 0, len(axes) + 1))
            table = _measure(
                config, source, ctx, axes, lambda axis: emit(Progress(config.id, "tune", axis + 1, len(axes) + 1))
            )
        write_whole(out_dir / TABLE, json.dumps(table, indent=1, sort_keys=True) + "\n")
    return seal_variant(
        source,
        out_dir,
        variant.model_copy(update={"stage": config.id, "settings": {**variant.settings, **table["settings"]}}),
        made=made_by(
            config,
            inputs={"source": source.digest},
            splits=() if config.table is not None else (_split(ctx),),
            realised={"parameters": variant.parameters, "tuning": table},
        ),
        ctx=ctx,
        cost=meter.cost,
    )


def read_table(path: Path) -> dict[str, Any]:
    """A table that an earlier tuning wrote.

    Raises:
        UserError: no such file, or not a tuning table.
    """
    hint = f"name the {TABLE} in the folder of a finished tune stage"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the tuning table: {error}", where=str(path), hint=hint) from error
    if not isinstance(table, dict) or table.get("schema") != SCHEMA:
        raise UserError(f"not a tuning table ({SCHEMA})", where=str(path), hint=hint)
    return table


def _measure(
    config: Tune,
    source: Checkpoint,
    ctx: StageContext,
    axes: Sequence[Sequence[Mapping[str, Any]]],
    on_axis: Callable[[int], None],
) -> dict[str, Any]:
    """The table of a search: every trial, what was chosen, and what of it differs from the defaults."""
    default = _default(ctx)
    plan = Plan(axes, config.minimise, config.latency_s_max, config.rounds, config.window_s)
    with tempfile.TemporaryDirectory(dir=ctx.workdir, prefix="tuning-") as folder:
        chosen, trials = tune_settings(
            partial(_job, source, _own_variant(source), ctx),
            _texts(config, source, ctx),
            default,
            plan,
            seed=ctx.seed,
            calibration=ctx.calibration,
            workdir=Path(folder),
            on_axis=on_axis,
        )
    last = {} if chosen == default else trials[-1].to_json()  # the best against the default
    return {
        "schema": SCHEMA,
        "minimised": "est_j_per_token" if any(trial.est_j_per_token for trial in trials) else config.minimise,
        "latency_s_max": config.latency_s_max,
        "rounds": config.rounds,
        "window_s": config.window_s,
        "processor": identify_cpu().name,
        "default": _used(default, ctx),
        "settings": {name: value for name, value in _used(chosen, ctx).items() if value != getattr(default, name)},
        "ratio_to_default": last.get("ratio"),
        "ratio_to_default_ci95": last.get("ratio_ci95"),
        "finding": "nothing was shown to cost less than the defaults" if chosen == default else "a setting costs less",
        "trials": [{**trial.to_json(), "settings": _used(trial.settings, ctx)} for trial in trials],
    }


def _job(source: Checkpoint, variant: Variant, ctx: StageContext, name: str, settings: RuntimeSettings) -> Job:
    values = {**variant.settings, **asdict(settings)}
    return Job(name, source.path, variant.id, settings.threads, ctx.target.provider, values)


def _default(ctx: StageContext) -> RuntimeSettings:
    return RuntimeSettings(threads=ctx.target.threads or n_cores(), batch_size=1 if ctx.task.is_decoder else 32)


def _used(settings: RuntimeSettings, ctx: StageContext) -> dict[str, Any]:
    """As the manifest carries them: a decoder's batch is what its caller gives."""
    left_out = ("batch_size", "sort_by_length") if ctx.task.is_decoder else ()
    return {name: value for name, value in asdict(settings).items() if name not in left_out}


def _axes(config: Tune, ctx: StageContext) -> Iterator[list[dict[str, Any]]]:
    """Settings that bear on each other are tried together: threads with spinning, batch size with sorting."""
    most = ctx.target.threads or n_cores()
    threads = config.threads or tuple(2**i for i in range(most.bit_length()) if 2**i <= most)
    yield [{"threads": n, "allow_spinning": spins} for n, spins in product(threads, config.spinning)]
    if not ctx.task.is_decoder:
        yield [
            {"batch_size": n, "sort_by_length": is_sorted}
            for n, is_sorted in product(config.batch_sizes, config.sort_by_length)
        ]
    yield [{"memory_arena": value} for value in config.memory_arena]
    yield [{"io_binding": value} for value in config.io_binding]


def _texts(config: Tune, source: Checkpoint, ctx: StageContext) -> Texts:
    """The first rows of calibration (else validation) text, or prompts drawn from it."""
    split = _split(ctx)
    rows = getattr(ctx.data, split)
    tokenizer = load_tokenizer(source.path)
    encoded: list[Encoded]
    if ctx.task.is_decoder:
        drawn = draw_windows(
            tokenizer, rows["text"], context=config.input_tokens, n_windows=min(config.rows, 4), seed=ctx.seed
        )
        encoded = [{"input_ids": list(ids), "attention_mask": [1] * len(ids)} for ids in drawn]
    else:
        encoded = encode_rows(tokenizer, rows.select(range(min(config.rows, len(rows)))), ctx.max_tokens)
    return Texts(encoded, pad_id_of(tokenizer), config.output_tokens if ctx.task.is_decoder else 0)


def _split(ctx: StageContext) -> str:
    for name in ("calibration", "validation"):
        if getattr(ctx.data, name) is not None:
            return name
    raise DataError(
        "tuning runs the model on calibration or validation rows, and there are none",
        where="data.calibration",
        hint="add `data.calibration` or `data.validation`; test rows are never tuned on",
    )


def _check_settings(config: Tune, ctx: StageContext) -> None:
    """A setting that does nothing would be believed."""
    names = FOR_TEXTS if ctx.task.is_decoder else FOR_PROMPTS
    for name in names:
        if name in config.model_fields_set:
            kind = "generates, and its batch is what the caller gives" if ctx.task.is_decoder else "generates nothing"
            raise UserError(
                f"`{name}` has no use here: a {ctx.task.name} model {kind}", where=f"stages.{config.id}.{name}"
            )


def _own_variant(source: Checkpoint) -> Variant:
    own = [variant for variant in source.content.variants if variant.stage == source.record.stage]
    if len(own) != 1 or own[0].runtime != "onnxruntime":
        named = ", ".join(variant.id for variant in own) or "nothing"
        raise UnsupportedError(
            f"{source.record.stage!r} left {named}, and tuning is for one ONNX graph",
            hint="start from an export or a quantize stage",
        )
    return own[0]
