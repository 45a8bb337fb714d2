"""The fast path: any supported folder and some text, pruned to a measured budget in minutes, without labels or YAML.

It runs the stages of a pipeline (source, prune, export, and INT8 where that ships) on the text alone, and times what
came out beside the dense model once more. Nothing is trained.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from compressor.checkpoints.files import full_disk_named
from compressor.checkpoints.fingerprint import fingerprint, library_versions
from compressor.checkpoints.hub import resolve
from compressor.checkpoints.store import Checkpoint
from compressor.data.rows import load_rows, rows_digest
from compressor.data.splits import StageData
from compressor.errors import UnsupportedError, UserError
from compressor.measurement.session import require_meter
from compressor.measurement.whole_models import Comparison
from compressor.pipeline.layout import partial_folder, publish
from compressor.schema.events import Emit, Note, StageFinished, StageStarted
from compressor.spec.budgets import PruneBudget, Search
from compressor.spec.evaluation import Target, Workload
from compressor.spec.sources import DataSource, ModelSource, Pooling
from compressor.spec.stages import Export, Prune, Quantize, Stage
from compressor.spec.tasks import TASKS, Task
from compressor.stages.context import StageContext, StageInputs

ENCODER_CALLS = Workload(id="rows", batch=8, from_data=True)
DECODER_CALLS = Workload(id="prompt", input_tokens=128, output_tokens=32)
"""What is measured where nothing is said: rows of the text in batches of 8; a prompt and its continuation."""


@dataclass(frozen=True)
class Pruned:
    """What the fast path leaves.

    Attributes:
        checkpoint: the finished folder: torch weights, ONNX graph, tokenizer, manifest.
        structure: what each layer kept.
        choice: the facts of the search: budget, predicted and measured cost, losses.
        final: the finished ONNX file against the dense model; None where the budget is counted.
        tolerance: how far from the budget it may be, as a share of it.
    """

    checkpoint: Checkpoint
    structure: Mapping[str, Any]
    choice: Mapping[str, Any]
    final: Comparison | None
    tolerance: float | None


def prune_folder(
    model: str | Path,
    *,
    budget: PruneBudget,
    data: str | Path,
    out: str | Path,
    columns: Mapping[str, str] | None = None,
    workloads: Sequence[Workload] = (),
    search: Search | None = None,
    granule: int | None = None,
    rows: int | None = None,
    max_tokens: int | None = None,
    threads: int | None = None,
    accept_estimates: bool = False,
    seed: int = 0,
    on_event: Emit | None = None,
) -> Pruned:
    """Prune a model to a budget and leave a finished checkpoint.

    Args:
        model: a folder or hub name of a supported architecture; a checkpoint of ours, pruned or not, too.
        budget: what it may cost.
        data: text that the model will see in use: a text file with a document a line, or rows with a `text` column.
        out: the folder to make.
        columns: `{"text": name}` where the column has another name.
        workloads: calls that are measured; by default batches of 8 rows, or a prompt of 128 tokens and 32 more.
        search: how the budget is spent.
        granule: FFN widths are multiples of this; of what this device's kernels want, measured once, where None.
        rows: rows or windows of text to use; 768 rows or 64 windows by default.
        max_tokens: of a row or window; 128 by default, or what the model can read.
        threads: of one inference; all cores where None.
        accept_estimates: let a budget in joules be held on estimates.
        seed: of what is drawn.
        on_event: called with each event.

    Raises:
        UserError: a budget that cannot be met (the least reachable is named), a folder that is there already.
        DataError: too little text; how much is needed is said.
        UnsupportedError: an architecture or task that this path cannot serve.
    """
    emit, out = on_event or (lambda event: None), Path(out)
    if out.exists():
        raise UserError("this folder is there already", where=str(out), hint="name another with --out")
    if budget.joules_per_token is not None and not accept_estimates:
        require_meter("budget", accept="--accept-estimates")
    from compressor.runtime.torch_models import read_config, task_of  # brings torch

    folder, _ = resolve(model)
    config = read_config(folder)
    task = task_of(config, folder)
    max_tokens = max_tokens or min(128, int(getattr(config, "max_position_embeddings", 128)))
    texts = _texts(data, columns or {}, task)
    n_rows = rows or (64 if task.is_decoder else 768)
    calibration = drawn_from(texts, n_rows, task, seed)
    target = Target(threads=threads)
    settings = Prune(
        id="pruned",
        stage="prune",
        budget=budget,
        search=search or Search(),
        granule=granule or _device_granule(target, budget),
    )
    ctx = StageContext(
        data=StageData(None, None, calibration, {"calibration": rows_digest(texts)}),
        task=task,
        labels=None,
        max_tokens=max_tokens,
        calibration_rows=n_rows,
        seed=seed,
        target=target,
        fingerprint="",
        versions=library_versions(),
        emit=emit,
        workdir=out,
    )
    with full_disk_named(out), partial_folder(out) as (out_dir, workdir):
        try:
            line = _Line(ctx, workdir)
            source = line.source(folder, task)
            from compressor.stages.costing import cost_basis

            calls = tuple(workloads) or (DECODER_CALLS if task.is_decoder else ENCODER_CALLS,)
            basis = cost_basis(
                settings, source, workloads=calls, data=ctx.data, task=task, max_tokens=max_tokens, target=target,
                calibration=None, emit=emit, graphs=workdir / "graphs",
            )  # fmt: skip
            pruned = line.stage(settings, source, workdir / "pruned", costs=basis)
            ships_int8 = settings.search is not None and settings.search.precision == "int8"
            onnx_dir = workdir / "onnx" if ships_int8 else out_dir
            exported = line.stage(Export(id="onnx", stage="export"), pruned, onnx_dir)
            if ships_int8:
                exported = line.stage(Quantize(id="int8", stage="quantize", scheme="w8a8-dynamic"), exported, out_dir)
            final, choice = None, pruned.record.realised["choice"]
            if basis is not None:
                from compressor.measurement.cost_basis import WholeModels

                with WholeModels(basis) as whole:
                    final = whole.compare_file(exported.path / exported.content.variants[-1].path)
            checkpoint = publish(out)
        finally:
            shutil.rmtree(workdir, ignore_errors=True)
    tolerance = None if final is None else max(settings.search.tolerance if settings.search else 0.02, final.aa_bound)
    return Pruned(checkpoint, pruned.record.realised["structure"], choice, final, tolerance)


def _device_granule(target: Target, budget: PruneBudget) -> int:
    """What the device's kernels want; 64, which suits all that we know, where nothing is measured anyway."""
    if not budget.is_measured:
        return 64
    from compressor.measurement.cost_table import tables_folder
    from compressor.measurement.device import this_device
    from compressor.measurement.granule import device_granule
    from compressor.runtime.runners import n_cores

    device = this_device(threads=target.threads or n_cores(), provider=target.provider)
    return device_granule(device, tables_folder())


class _Line:
    """Stages one after the other, each in a folder of its own."""

    def __init__(self, ctx: StageContext, workdir: Path) -> None:
        self.ctx, self.workdir = ctx, workdir

    def source(self, folder: Path, task: Task) -> Checkpoint:
        """The model as a checkpoint; an embedder that does not say how it pools is taken to pool by the mean."""
        from compressor.checkpoints.sentence import MODULES
        from compressor.stages.source import make_source

        pooling = None
        if task.kind == "embedding" and not (folder / MODULES).is_file():
            pooling = Pooling()
            self.ctx.emit(Note("model", "the folder has no modules.json: its vectors are taken as the mean of tokens"))
        shutil.rmtree(self.workdir / "model", ignore_errors=True)
        source = ModelSource(task=task.name, path=str(folder), pooling=pooling)
        return make_source(source, self.workdir / "model", replace(self.ctx, workdir=self.workdir / "model-work"))

    def stage(self, config: Stage, source: Checkpoint, out_dir: Path, **changes: Any) -> Checkpoint:
        """Do one stage."""
        from compressor.stages.dispatch import run_stage, stage_version

        self.ctx.emit(StageStarted(stage=config.id, kind=config.stage))
        shutil.rmtree(out_dir, ignore_errors=True)
        identity = fingerprint(
            kind=config.stage,
            version=stage_version(config),
            config=config.model_dump(mode="json", by_alias=True),
            inputs={"source": source.digest},
            data=self.ctx.data.digests,
            versions=self.ctx.versions,
            seed=self.ctx.seed,
        )
        ctx = replace(self.ctx, workdir=self.workdir / f"{config.id}-work", fingerprint=identity, **changes)
        made = run_stage(config, StageInputs(source), out_dir, ctx)
        record = made.record
        self.ctx.emit(StageFinished(stage=config.id, path=config.stage, wall_s=record.wall_s, cpu_s=record.cpu_s))
        return made


def drawn_from(texts: Dataset, n_rows: int, task: Task, seed: int) -> Dataset:
    """Texts from the whole file, which may be in the order of time or topic: rows for encoders, and for decoders all
    documents in a drawn order, since windows are cut from the first of them."""
    drawn = texts.shuffle(seed=seed)
    return drawn if task.is_decoder else drawn.select(range(min(n_rows, len(drawn))))


def _texts(data: str | Path, columns: Mapping[str, str], task: Task) -> Dataset:
    """The text alone, with blank labels where the task's rows have some: nothing here reads them.

    Raises:
        DataError: no such file or column.
        UnsupportedError: a task whose rows are more than text.
    """
    rows = load_rows(DataSource(path=str(data)), task=TASKS["causal-lm"], columns=columns, labels=None)
    texts = [text for text in rows["text"] if text.strip()]
    match task.kind:
        case "next_token" | "masked_token" | "embedding":
            return Dataset.from_dict({"text": texts})
        case "class":
            return Dataset.from_dict({"text": texts, "label": [0] * len(texts)})
        case "classes":
            return Dataset.from_dict({"text": texts, "label": [[] for _ in texts]})
        case "number":
            return Dataset.from_dict({"text": texts, "label": [0.0] * len(texts)})
        case _:
            raise UnsupportedError(
                f"{task.name} needs more than text to be pruned on",
                where=str(data),
                hint="write a pipeline with a `prune` stage: compressor init",
            )
