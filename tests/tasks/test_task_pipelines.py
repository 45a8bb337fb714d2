"""A whole pipeline for every task: train, export, INT8, and every candidate judged on the test split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from task_data import model_section, write_task_data

import compressor
from compressor.spec.tasks import TASKS, TaskName

EVERY: tuple[TaskName, ...] = tuple(name for name in TASKS if name != "causal-lm")
BEST = {"top1_agreement": 1.0, "spearman_to_baseline": 1.0, "cosine_to_baseline": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("task", EVERY)
def test_a_pipeline_of_every_task_is_judged(
    task: TaskName, era_rows: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    row = TASKS[task]
    goal = {"metric": row.agreement, "min_retained": 0.5}
    pipeline = {
        "version": 1,
        "name": "tiny",
        "model": model_section(task),
        "data": write_task_data(task, era_rows, tmp_path),
        "target": {"threads": 1},
        "stages": [
            {"id": "tuned", "stage": "finetune", "training": {"epochs": 1, "learning_rate": 2e-3, "batch_size": 8}},
            {"id": "onnx", "stage": "export"},
            {"id": "int8", "stage": "quantize", "scheme": "w8a8-dynamic"},
        ],
        "workloads": [{"id": "rows", "from_data": True, "batch": 8, "rows": 16}],
        "evaluate": {"baseline": "tuned"},
        "energy": {"profile": "smoke"},
        "goals": [goal],
    }
    report = compressor.run(pipeline, out=tmp_path / "run").report
    assert report is not None and report.failures == ()
    baseline = report.candidate("tuned")
    shown = [quality.metric for quality in baseline.quality]
    # Every sentence comes with one other, so there is no ranking to judge among the embedder's rows.
    assert shown == [name for name in row.metrics if (task, name) != ("sentence-embedding", "ndcg_at_10")]
    for candidate in (report.candidate("onnx"), report.candidate("int8")):
        found = {quality.metric: quality for quality in candidate.quality}
        assert set(shown) <= set(found)
        assert row.agreement in found
        assert candidate.measurements[0].tokens > 0
        for name in shown:
            paired = found[name].paired
            assert paired is not None and paired.ci95.low <= paired.delta <= paired.ci95.high
    exported = {quality.metric: quality for quality in report.candidate("onnx").quality}
    assert exported[row.agreement].value == pytest.approx(BEST[row.agreement], abs=1e-2)
    assert report.goals[0].goal["metric"] == row.agreement
