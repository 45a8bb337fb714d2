"""`report.json`: the whole interface between measuring and rendering. Versioned, frozen, free of torch.

A figure that could not be had is `None` beside a reason; nothing here turns absence into a number.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compressor.errors import UserError
from compressor.schema.certificate import Certificate
from compressor.schema.notebook import report_html, report_rows

if TYPE_CHECKING:
    import pandas

SCHEMA = "compressor-report/1"

Phase = Literal["forward", "prefill", "decode"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Interval(_Record):
    """A 95 % interval."""

    low: float
    high: float


class Ratio(_Record):
    """A paired ratio to another candidate: geometric mean over rounds, with its 95 % interval."""

    against: str
    value: float
    ci95: Interval | None
    """None when there are too few rounds."""


class Paired(_Record):
    """A difference on the same rows."""

    against: str
    delta: float
    """This candidate minus the other, in the metric's own unit."""
    ci95: Interval
    test: str
    p_value: float | None


class LabelQuality(_Record):
    """The share of one label's rows that got it."""

    label: str
    n: int
    """Rows of the label."""
    recall: float | None
    """None where there is no such row."""
    ci95: Interval | None
    paired: Paired | None


class Quality(_Record):
    """One metric on one data set."""

    metric: str
    dataset: str
    split: str
    value: float
    ci95: Interval | None
    n: int
    """Rows (classification) or predicted tokens (language models)."""
    paired: Paired | None
    settings: dict[str, Any] = Field(default_factory=dict)
    """What the number depends on: context, stride, decode path, ..."""
    labels: tuple[LabelQuality, ...] = ()
    """Of a classifier's first metric: the recall of each label."""


class EnergyFigure(_Record):
    """Joules for one measurement: the JSON of `energy-result/1`, or why there is none."""

    result: dict[str, Any] | None
    """As `compressor.energy` writes it; its keys say whether it was measured or estimated."""
    reason: str | None
    """Why there is no figure."""
    figures: dict[str, float] = Field(default_factory=dict)
    """Per token, per request, per joule, as `compressor.energy.figures` names them: `est_...` for an estimate."""


class Measurement(_Record):
    """Cost of one candidate on one workload in one phase, over the rounds of one session."""

    workload: str
    phase: Phase
    session: str
    """Ratios are taken within a session only."""
    profile: str
    batch: int
    threads: int
    rounds: int
    tokens: int
    """Real (unpadded) tokens per pass: input tokens, or generated tokens in `decode`."""
    requests: int
    """Rows per pass."""
    padding_ratio: float
    """Padded positions / all positions."""
    latency_s_p50: float
    """Median seconds of one batch (forward, prefill) or of one generated token of a batch (decode)."""
    latency_s_p95: float
    tokens_per_s: float
    cpu_s_per_token: float
    """The worker process's own CPU seconds per real token; median over rounds."""
    cpu_s_per_token_ci95: Interval | None
    cpu_s_per_token_ratio: Ratio | None
    """To the baseline of the same round."""
    latency_ratio: Ratio | None
    cpu_s_per_token_ratio_to_source: Ratio | None = None
    """To the candidate that this one was quantised or converted from."""
    energy_ratio: Ratio | None = None
    """Of measured joules per token; None where energy is estimated, since that ratio would be the one of CPU time."""
    peak_memory_bytes: int | None
    energy: EnergyFigure
    valid: bool
    """False when the guard against other load or the A/A gate refused the session."""
    remarks: tuple[str, ...] = ()


class Candidate(_Record):
    """One (checkpoint, variant) that was judged."""

    id: str
    """`<stage>` for the stage's own variant, `<stage>@onnx` for a scratch export of a torch stage."""
    stage: str
    checkpoint: str
    """Folder, relative to the run."""
    digest: str
    variant: str
    runtime: Literal["torch", "onnxruntime"]
    scheme: str
    scratch: bool
    """True for an export made only to be measured."""
    parameters: int
    size_bytes: int
    facts: dict[str, Any] = Field(default_factory=dict)
    """Realised facts: dtypes in the file, fused operators, kept structure, provider used."""
    quality: tuple[Quality, ...] = ()
    measurements: tuple[Measurement, ...] = ()


class GoalResult(_Record):
    """A goal and whether it was kept."""

    goal: dict[str, Any]
    status: Literal["met", "missed", "not_shown"]
    value: float | None
    limit: float | None
    text: str
    """One sentence for a person."""


class Verdict(_Record):
    """A judgement that follows from the figures, such as "do not quantise here"."""

    kind: str
    candidate: str
    text: str
    reasons: tuple[str, ...] = ()


class StageCost(_Record):
    """What it took to make a checkpoint (from its own journal, so it survives resume and skips)."""

    stage: str
    wall_s: float
    cpu_s: float
    energy: EnergyFigure
    skipped: bool


class Payback(_Record):
    """After how much use the energy of compressing has come back, or why none is shown."""

    workload: str
    candidate: str
    against: str
    role: Literal["baseline", "cheapest alternative"]
    unit: str
    """Requests, or input or generated tokens."""
    stages: tuple[str, ...]
    """Whose energy has to come back: what the candidate needed and the other did not."""
    figures: dict[str, int]
    """As `compressor.energy.BreakEven` names them: `est_...` where something is an estimate; empty if none is shown."""
    text: str


class AssumedFigure(_Record):
    """Energy times a factor that somebody else published: of the building, or carbon."""

    of: str
    """What was done: compressing, or a request or token of a candidate."""
    figures: dict[str, float]
    """As `compressor.energy` names them: `est_...` for an estimate."""
    assumptions: tuple[str, ...]
    text: str


class Failure(_Record):
    """A candidate or stage that could not be judged, and why."""

    where: str
    error: str
    text: str


class DoorRow(_Record):
    """One runtime through which the selected candidate goes."""

    door: str
    file: str | None
    """Below the folder that the runtime is given; None where it cannot take this model, as `note` says."""
    opened: bool
    """In this run; laid out only where not."""
    difference: float | None
    """Largest difference of any answer as a multiple of the largest answer, where it was compared."""
    note: str


class Report(_Record):
    """Everything a run found out."""

    schema_: Literal["compressor-report/1"] = Field(default="compressor-report/1", alias="schema")
    name: str
    created: str
    """UTC, ISO 8601."""
    metadata: dict[str, Any]
    pipeline: dict[str, Any]
    """The validated pipeline, as it ran."""
    environment: dict[str, Any]
    """CPU, cores, threads, memory, versions, meters, load by others."""
    data: dict[str, Any]
    """Digest, rows and name of each split used here."""
    model: str
    """Name of the source model, as the pipeline calls it."""
    baseline: str
    selected: str | None
    selected_reason: str
    candidates: tuple[Candidate, ...]
    goals: tuple[GoalResult, ...]
    verdicts: tuple[Verdict, ...]
    stage_costs: tuple[StageCost, ...]
    failures: tuple[Failure, ...]
    payback: tuple[Payback, ...] = ()
    facility: tuple[AssumedFigure, ...] = ()
    """With cooling and distribution, where the pipeline names a PUE or a cooling plant."""
    carbon: tuple[AssumedFigure, ...] = ()
    """Location-based, and market-based where the pipeline names that factor too."""
    certificates: tuple[Certificate, ...] = ()
    """One for each candidate but scratch exports: whether it keeps what the baseline can do."""
    doors: tuple[DoorRow, ...] = ()
    """Through which other runtimes the selected candidate goes."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True)

    def candidate(self, candidate_id: str) -> Candidate:
        """The candidate of that id.

        Raises:
            KeyError: there is none.
        """
        for candidate in self.candidates:
            if candidate.id == candidate_id:
                return candidate
        raise KeyError(candidate_id)

    def to_pandas(self) -> pandas.DataFrame:
        """One row for each candidate, workload and phase; columns of estimates begin with `est_`."""
        import pandas

        return pandas.DataFrame(report_rows(self))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return report_html(self)


def write_report(report: Report, path: Path) -> None:
    """Write the report as JSON, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(report.model_dump_json(by_alias=True, indent=1) + "\n")
    partial.replace(path)


def read_report(path: Path) -> Report:
    """Read a report.

    Raises:
        UserError: no such file, not JSON, of another version (which is named), or damaged.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no report here", where=str(path), hint="compressor run PIPELINE --out RUN") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"not JSON: {error}", where=str(path), hint="run the pipeline again") from None
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if schema != SCHEMA:
        raise UserError(
            f"this is {schema!r}, and this version reads {SCHEMA!r}"
            if schema is not None
            else f"not a {SCHEMA} report: it names no schema",
            where=str(path),
            hint="read it with the version that wrote it (pip install --upgrade joule-compressor for a newer one), or "
            "run the pipeline again: finished stages are skipped",
        )
    try:
        return Report.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"not a {SCHEMA} report: {place}: {first['msg']}", where=str(path), hint="run the pipeline again"
        ) from None
