"""Reports and checkpoints in notebooks and pandas; estimates keep their mark."""

from __future__ import annotations

import re
from pathlib import Path

from compressor.checkpoints.manifest import Content, Manifest, Record, Variant
from compressor.checkpoints.store import Checkpoint
from compressor.schema.report import read_report

REPORT = read_report(Path(__file__).parent / "smoke_report.json")


def test_pandas_has_a_row_for_each_candidate_and_workload() -> None:
    frame = REPORT.to_pandas()
    assert len(frame) == sum(len(one.measurements) for one in REPORT.candidates) == 10
    row = frame[(frame.candidate == "int8") & (frame.workload == "test-rows")].iloc[0]
    measured = REPORT.candidate("int8").measurements[0]
    assert row.cpu_s_per_token == measured.cpu_s_per_token
    assert row.accuracy == REPORT.candidate("int8").quality[0].value
    assert bool(row.is_selected)
    assert row.est_j_per_input_token == measured.energy.figures["est_j_per_input_token"]


def test_every_joule_column_of_an_estimate_says_so() -> None:
    joules = [name for name in REPORT.to_pandas().columns if re.search(r"(^|_)(j|wh)_per_|_per_j", name)]
    assert len(joules) >= 6
    assert [name for name in joules if not name.startswith("est_")] == []


def test_a_notebook_shows_the_report_as_a_table_that_names_estimates() -> None:
    shown = REPORT._repr_html_()
    assert shown.count("<tr>") == 11
    assert "est_j_per_input_token" in shown and "columns est_... are estimates, not measurements" in shown
    assert "<b>int8</b>" in shown and "<b>fp16</b>" not in shown


def test_a_name_is_never_markup() -> None:
    assert "<script>" not in REPORT.model_copy(update={"name": "<script>"})._repr_html_()


def test_a_candidate_without_measurements_keeps_its_row() -> None:
    bare = tuple(one.model_copy(update={"measurements": ()}) for one in REPORT.candidates)
    frame = REPORT.model_copy(update={"candidates": bare}).to_pandas()
    assert list(frame.candidate) == [one.id for one in REPORT.candidates]
    assert "cpu_s_per_token" not in frame


def test_a_notebook_shows_the_variants_of_a_checkpoint() -> None:
    variant = Variant(
        id="onnx<fp32", path="onnx/model.onnx", runtime="onnxruntime", scheme="fp32", stage="onnx",
        parameters=12345, size_bytes=2_000_000,
    )  # fmt: skip
    content = Content(
        task="causal-lm", model_type="gpt2", architecture="GPT2LMHeadModel", labels=None, files={},
        variants=(variant,), structure=None,
    )  # fmt: skip
    record = Record(
        stage="onnx", kind="export", fingerprint="", config={}, inputs={}, data={}, seed=0, versions={}, realised={},
        wall_s=0, cpu_s=0, energy=None, energy_reason="", host={}, created="",
    )  # fmt: skip
    manifest = Manifest(digest="ab" * 32, content=content, record=record, record_sha256="")
    shown = Checkpoint(Path("folder"), manifest)._repr_html_()
    assert "onnx&lt;fp32" in shown and "12,345" in shown and "2.0" in shown
