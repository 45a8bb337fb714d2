"""The candidates' answers on the test rows: from the cache, or from a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compressor.checkpoints.files import digest_json
from compressor.checkpoints.fingerprint import library_versions
from compressor.measurement.arrays import Array
from compressor.measurement.inputs import PreparedRows
from compressor.measurement.outputs import OutputKind
from compressor.measurement.quality import SUITE_VERSION
from compressor.measurement.session import failure_of
from compressor.measurement.suite import CandidateSpec
from compressor.measurement.workers import Job, WorkerDied, WorkerProcess
from compressor.schema.events import Emit, Progress
from compressor.schema.report import Failure

Answers = Mapping[str, Array]


@dataclass(frozen=True)
class Answering:
    """One set of rows and the candidates that answer it."""

    rows: PreparedRows
    candidates: Sequence[CandidateSpec]


def collect_answers(
    parts: Sequence[Answering],
    jobs: Mapping[str, Callable[[int], Job]],
    *,
    threads: int,
    cache_dir: Path,
    workdir: Path,
    emit: Emit,
) -> tuple[dict[tuple[str, str], Answers], list[Failure]]:
    """Answers of every candidate, keyed by (candidate, kind of output); and the candidates that gave none.

    A worker is started only for what the cache lacks, and is gone before the next one starts.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, str], Answers] = {}
    failures: list[Failure] = []
    specs = list({spec.id: spec for part in parts for spec in part.candidates}.values())
    for done, spec in enumerate(specs, 1):
        wanted = [part.rows for part in parts if spec in part.candidates]
        job = jobs[spec.id](threads)
        files = {rows.kind: cache_dir / f"{cache_key(spec, rows, job)}.npz" for rows in wanted}
        missing = [rows for rows in wanted if not files[rows.kind].exists()]
        try:
            if missing:
                _ask(job, missing, files, workdir)
        except WorkerDied as death:
            failures.append(failure_of(spec.id, death))
            continue
        found |= {(spec.id, rows.kind): _read(files[rows.kind]) for rows in wanted}
        emit(Progress(stage="measure", task="test rows", done=done, total=len(specs)))
    return found, failures


def cache_key(spec: CandidateSpec, rows: PreparedRows, job: Job) -> str:
    """What the answers depend on: the variant's files, the inputs, the runtime, and the version of this suite."""
    content = spec.checkpoint.content
    variant = spec.checkpoint.variant(spec.variant_id)
    # External data of a graph lies beside it, under a name that starts with the graph's.
    files = {name: entry.sha256 for name, entry in content.files.items() if name.startswith(variant.path)}
    if variant.runtime == "torch":
        files |= {name: content.files[name].sha256 for name in ("config.json",) if name in content.files}
    return digest_json(
        {
            "suite": SUITE_VERSION,
            "files": files,
            "structure": content.structure,
            "kind": rows.kind,
            "inputs": rows.digest,
            "provider": job.provider,
            "versions": library_versions(),
        }
    )


def _ask(job: Job, missing: Sequence[PreparedRows], files: Mapping[OutputKind, Path], workdir: Path) -> None:
    with WorkerProcess(job, workdir / "worker-quality.log") as worker:
        worker.wait_until_ready()
        for rows in missing:
            out = files[rows.kind].resolve()
            worker.ask("outputs", kind=rows.kind, path=str(rows.path.resolve()), out=str(out))


def _read(path: Path) -> Answers:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
