"""Certify the selected candidate of a run once more, with the baseline, rows and limits that the run names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.errors import UserError
from compressor.measurement.certify import certify
from compressor.measurement.goals import is_cost
from compressor.pipeline.reading import report_of_run
from compressor.render.card import pipeline_of
from compressor.schema.certificate import Certificate
from compressor.schema.events import Emit
from compressor.spec.evaluation import Goal


def certify_run(
    run: Path,
    *,
    candidate: str | None = None,
    baseline: str | None = None,
    data: Any = None,
    columns: Mapping[str, str] | None = None,
    goals: Sequence[Goal | Mapping[str, Any]] = (),
    max_label_drop_points: float | None = None,
    rows: int | None = None,
    threads: int | None = None,
    on_event: Emit | None = None,
) -> Certificate:
    """As `compressor.certify`, for a finished run; what is not given is the run's own.

    Raises:
        UserError: no finished run, nothing selected, or no limits.
        CheckpointError: a folder that is gone or corrupt.
    """
    report = report_of_run(run)
    pipeline = pipeline_of(report)
    chosen = candidate or report.selected
    if chosen is None:
        raise UserError(f"no candidate was selected: {report.selected_reason}", where=str(run))
    one, other = report.candidate(chosen), report.candidate(report.baseline)
    evaluate = pipeline.evaluate.model_dump(include={"metrics", "rows", "context", "stride"})
    limit = max_label_drop_points
    return certify(
        run / one.checkpoint,
        baseline=baseline or run / other.checkpoint,
        data=data if data is not None else pipeline.data.test,
        columns=columns if columns is not None else pipeline.data.columns,
        goals=goals or [goal for goal in pipeline.goals if not is_cost(goal)],
        max_label_drop_points=limit if limit is not None else pipeline.evaluate.max_label_drop_points,
        precision=one.variant,
        baseline_precision=None if baseline is not None else other.variant,
        evaluate={**evaluate, **({} if rows is None else {"rows": rows})},
        target=pipeline.target.model_copy(update={} if threads is None else {"threads": threads}),
        max_tokens=pipeline.data.max_tokens,
        on_event=on_event,
    )
