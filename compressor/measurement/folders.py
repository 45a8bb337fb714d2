"""`compressor.measure`: judge folders without a pipeline, checkpoints of ours or plain Hugging Face ones."""

from __future__ import annotations

import datetime as dt
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from compressor.checkpoints.files import carry_files
from compressor.checkpoints.fingerprint import library_versions
from compressor.checkpoints.hub import resolve
from compressor.checkpoints.manifest import MANIFEST_NAME, Record, Variant
from compressor.checkpoints.store import Checkpoint, open_checkpoint, seal
from compressor.data.rows import dataset_from_memory, rows_digest
from compressor.data.splits import TestData, open_test_data
from compressor.errors import CheckpointError, UserError
from compressor.measurement.judge import judge_suite
from compressor.measurement.profiles import PROFILES
from compressor.measurement.quality import Metric
from compressor.measurement.suite import CandidateSpec, Suite
from compressor.runtime.choose import task_of_architectures
from compressor.runtime.runners import require_torch
from compressor.schema.events import Emit
from compressor.schema.report import Report
from compressor.spec.evaluation import Evaluate, Target, Workload
from compressor.spec.sources import Data, DataSource
from compressor.spec.tasks import TASKS, Task

ROWS = Workload(id="rows", batch=8, from_data=True)
"""What is measured where no workload is given: rows of the data in file order, padded to the longest of their batch."""


def measure(
    paths: str | Path | Sequence[str | Path],
    *,
    data: Any,
    columns: Mapping[str, str] | None = None,
    workloads: Sequence[Workload | Mapping[str, Any]] = (ROWS,),
    evaluate: Evaluate | Mapping[str, Any] | None = None,
    target: Target | Mapping[str, Any] | None = None,
    profile: Literal["smoke", "quick", "standard", "publish"] = "quick",
    max_tokens: int = 128,
    baseline: str | None = None,
    metrics: Mapping[str, Metric] | None = None,
    out: str | Path | None = None,
    on_event: Emit | None = None,
) -> Report:
    """Judge quality, speed and energy of one or more models against the same rows.

    Args:
        paths: checkpoint folders of ours, plain Hugging Face folders (safetensors, ONNX files or both), or hub names.
            Every variant of each is a candidate: `<variant>`, or `<folder>/<variant>` where there are several folders.
        data: a file, a `DataSource` or its mapping, or rows in memory (`datasets.Dataset`, data frame, list of dicts).
        columns: task column -> column of the data, where they differ.
        workloads: shapes of use; rows in batches of 8 by default.
        evaluate: metrics, rows, context and stride, as a pipeline's `evaluate`.
        target: provider and threads, as a pipeline's `target`.
        profile: rounds and windows: `quick`, `standard`, `publish`, or `smoke`, which only shows that it works.
        max_tokens: longest row in tokens.
        baseline: id of the candidate that the others are held against; the first one by default.
        metrics: further quality metrics: name -> f(predictions, references) -> float.
        out: folder that keeps the answers for the next time; a temporary one by default.
        on_event: called with each event of `compressor.schema.events`.

    Returns:
        The report, without goals and stages.

    Raises:
        UserError: no such model, data or baseline; folders of different tasks or tokenizers.
        CheckpointError: a folder that is corrupt, or holds no weights.
    """
    suite_target = target if isinstance(target, Target) else Target.model_validate(target or {})
    with ExitStack() as stack:
        run_dir = Path(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folders = [paths] if isinstance(paths, str | Path) else list(paths)
        checkpoints = [open_any(folder, run_dir, number) for number, folder in enumerate(folders)]
        if not checkpoints:
            raise UserError("no model to measure", where="paths")
        task, labels = common_task(checkpoints)
        candidates = _candidates(checkpoints, folders)
        chosen = baseline if baseline is not None else candidates[0].id
        if chosen not in {spec.id for spec in candidates}:
            known = ", ".join(spec.id for spec in candidates)
            raise UserError(f"no candidate {chosen!r}", where="baseline", hint=f"there are: {known}")
        suite_workloads = tuple(
            entry if isinstance(entry, Workload) else Workload.model_validate(entry) for entry in workloads
        )
        source, test = open_rows(data, task, columns or {}, labels, max_tokens)
        suite = Suite(
            name="measure",
            model=", ".join(str(folder) for folder in folders),
            seed=0,
            metadata={},
            task=task,
            labels=labels,
            data=source,
            target=suite_target,
            workloads=suite_workloads,
            evaluate=evaluate if isinstance(evaluate, Evaluate) else Evaluate.model_validate(evaluate or {}),
            profile=PROFILES[profile],
            goals=(),
            leaves=None,
            pipeline={},
        )
        return judge_suite(
            suite,
            candidates,
            baseline=chosen,
            test=test,
            other_splits={},
            stage_costs=(),
            failures=(),
            run_dir=run_dir,
            metrics=metrics or {},
            emit=on_event or (lambda event: None),
        )


def open_any(path: str | Path, run_dir: Path, number: int) -> Checkpoint:
    """A checkpoint of ours as it is; a plain folder through hard links to its files, which get a manifest.

    Raises:
        CheckpointError: no such folder, corrupt, or without weights that can be measured.
    """
    folder, _ = resolve(path)
    if (folder / MANIFEST_NAME).is_file():
        return open_checkpoint(folder)
    config = _read_config(folder)
    variants = [*_torch_variant(folder), *_onnx_variants(folder)]
    if not variants:
        raise CheckpointError("neither model.safetensors nor an ONNX file here", where=str(folder))
    copy = run_dir / "plain" / f"{number}-{folder.resolve().name}"
    if (copy / MANIFEST_NAME).is_file():
        (copy / MANIFEST_NAME).unlink()
    carry_files(folder, copy)
    labels = config.get("id2label") or {}
    task = task_of_architectures(config.get("architectures") or (), folder)
    names = [str(labels[key]) for key in sorted(labels, key=int)] if task.has_classes else []
    return seal(
        copy,
        task=task.name,
        model_type=str(config.get("model_type")),
        architecture=str((config.get("architectures") or ["unknown"])[0]),
        labels=names or None,
        variants=variants,
        structure=None,
        record=_record(folder),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError("no config.json here: not a model folder", where=str(folder)) from None
    except ValueError as error:
        raise CheckpointError(f"config.json is not JSON: {error}", where=str(folder)) from error
    return config


def _torch_variant(folder: Path) -> list[Variant]:
    weights = folder / "model.safetensors"
    if not weights.is_file():
        return []
    require_torch(f"measuring {weights}")
    from compressor.runtime.torch_models import count_parameters

    n_parameters = count_parameters(weights)
    return [_variant("torch-fp32", weights.name, "torch", "fp32", n_parameters, weights.stat().st_size, {})]


def _onnx_variants(folder: Path) -> list[Variant]:
    """Graphs in the folder or in `onnx/`: `model.onnx` is fp32, `model_<word>.onnx` is called by its word."""
    files = sorted([*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")])
    if not files:
        return []
    # Only here: facts need the package onnx, which comes with the extra [torch].
    from compressor.graphs.facts import inspect_onnx

    variants = []
    for file in files:
        facts = inspect_onnx(file)
        word = file.stem.removeprefix("model").strip("_-") or "fp32"
        path = file.relative_to(folder).as_posix()
        known: dict[str, Any] = {
            "dtype_bytes": facts.dtype_bytes,
            "quantised_operators": facts.quantised_op_counts,
        }
        entry = _variant(f"onnx-{word}", path, "onnxruntime", word, facts.n_parameters, facts.size_bytes, known)
        variants.append(entry)
    return variants


def _variant(
    id_: str,
    path: str,
    runtime: Literal["torch", "onnxruntime"],
    scheme: str,
    parameters: int,
    size_bytes: int,
    facts: dict[str, Any],
) -> Variant:
    return Variant(
        id=id_,
        path=path,
        runtime=runtime,
        scheme=scheme,
        stage="plain",
        parameters=parameters,
        size_bytes=size_bytes,
        facts=facts,
    )


def _record(folder: Path) -> Record:
    """Nobody told how a plain folder was made."""
    return Record(
        stage="plain",
        kind="source",
        fingerprint="",
        config={"path": folder.name},
        inputs={},
        data={},
        seed=0,
        versions=library_versions(),
        realised={},
        wall_s=0.0,
        cpu_s=0.0,
        energy=None,
        energy_reason="a plain folder: how it was made is unknown",
        host={},
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )


def common_task(checkpoints: Sequence[Checkpoint]) -> tuple[Task, tuple[str, ...] | None]:
    """The task and classes of all checkpoints.

    Raises:
        UserError: two tasks, or two sets of classes.
    """
    first = checkpoints[0].content
    for other in checkpoints[1:]:
        if (other.content.task, other.content.labels) != (first.task, first.labels):
            raise UserError(
                f"{other.path.name} does {other.content.task} with the classes {other.content.labels}; "
                f"{checkpoints[0].path.name} does {first.task} with {first.labels}",
                where="paths",
                hint="measure models of one task and the same classes together",
            )
    return TASKS[first.task], first.labels  # type: ignore[index]  # a wrong name in a manifest fails its digest first


def _candidates(checkpoints: Sequence[Checkpoint], folders: Sequence[str | Path]) -> list[CandidateSpec]:
    several = len(checkpoints) > 1
    specs = []
    for checkpoint, folder in zip(checkpoints, folders, strict=True):
        for variant in checkpoint.content.variants:
            id_ = f"{Path(folder).name}/{variant.id}" if several else variant.id
            specs.append(CandidateSpec(id_, variant.stage, checkpoint, variant.id, scratch=False))
    ids = [spec.id for spec in specs]
    if len(set(ids)) < len(ids):
        raise UserError("two folders have the same name", where="paths", hint="rename one, so that candidates differ")
    return specs


def open_rows(
    data: Any, task: Task, columns: Mapping[str, str], labels: tuple[str, ...] | None, max_tokens: int
) -> tuple[Data, TestData]:
    """The rows to judge on, from a file, a source or memory."""
    if isinstance(data, str | Path):
        data = DataSource(path=str(data))
    elif isinstance(data, Mapping):
        data = DataSource.model_validate(data)
    if isinstance(data, DataSource):
        source = Data(test=data, columns=dict(columns), max_tokens=max_tokens)
        return source, open_test_data(source, task, labels)
    rows = dataset_from_memory(data, task, columns, labels)
    # Only max_tokens is read from here on: the rows are open already.
    source = Data(test=DataSource(path="data in memory"), columns=dict(columns), max_tokens=max_tokens)
    return source, TestData(rows=rows, digest=rows_digest(rows), name="data in memory")
