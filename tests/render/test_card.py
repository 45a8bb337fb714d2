"""Model cards: read by the hub's own parser, and never an estimate that passes as a measurement."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData
from test_render import JOULES, unmarked_joules

from compressor.errors import UserError
from compressor.render.card import model_card
from compressor.render.card_text import flat
from compressor.schema.report import AssumedFigure, Failure, Report, read_report

ROOT = Path(__file__).parents[2]
REPORT = read_report(Path(__file__).parent / "smoke_report.json")
CARBON = AssumedFigure(
    of="compressing, all stages",
    figures={"est_gco2e_location": 0.0123456, "est_gco2e_location_low": 0.01, "est_gco2e_location_high": 0.05},
    assumptions=("50 gCO2e/kWh, FR 2025, average, location-based (a yearbook)", "no cooling counted"),
    text="compressing, all stages: ~0.012 (estimated, 0.010-0.050) g CO2e [50 gCO2e/kWh, FR 2025]",
)


def with_pipeline(report: Report, **sections: dict[str, Any]) -> Report:
    """The report with keys of the pipeline's sections replaced."""
    pipeline = dict(report.pipeline)
    for section, values in sections.items():
        pipeline[section] = {**pipeline.get(section, {}), **values}
    return report.model_copy(update={"pipeline": pipeline})


def data_of(report: Report, **arguments: Any) -> ModelCardData:
    return ModelCard(model_card(report, **arguments)).data


def test_the_hub_reads_every_metric_back_as_the_report_has_it() -> None:
    data = data_of(REPORT)
    found = {result.metric_name: result for result in data.eval_results}
    quality = {row.metric: row for row in REPORT.candidate("int8").quality}
    assert set(found) == {"accuracy", "macro_f1"}
    assert found["macro_f1"].metric_type == "f1"
    for name, result in found.items():
        assert result.metric_value == quality[name].value
        assert (result.task_type, result.dataset_name, result.dataset_split) == (
            "text-classification",
            "era_tiny/test.jsonl",
            "test",
        )
    assert (data.library_name, data.pipeline_tag) == ("onnx", "text-classification")
    assert data.tags == ["joule-compressor", "onnx", "onnxruntime", "w8a8-dynamic"]


def test_equal_reports_give_equal_cards() -> None:
    assert model_card(REPORT) == model_card(Report.model_validate_json(REPORT.model_dump_json(by_alias=True)))


def test_every_joule_says_where_it_comes_from() -> None:
    card = model_card(REPORT)
    assert len(JOULES.findall(card)) >= 10
    assert unmarked_joules(card) == []
    assert "energy is an estimate from CPU and wall seconds; no joule was measured" in card


def test_no_estimated_joule_enters_the_metadata() -> None:
    metadata = str(data_of(REPORT))
    assert "joule-compressor" in metadata
    assert "j_per" not in metadata and "energy" not in metadata and "co2" not in metadata


def test_carbon_enters_only_with_a_factor_that_the_pipeline_names_and_is_called_an_estimate() -> None:
    factor = {"carbon": {"g_per_kwh": 50, "region": "FR", "year": 2025, "source": "a yearbook"}}
    with_figure = REPORT.model_copy(update={"carbon": (CARBON,)})
    assert "co2_eq_emissions" not in data_of(with_figure).to_dict()
    assert "co2_eq_emissions" not in data_of(with_pipeline(REPORT, energy=factor)).to_dict()
    emissions = data_of(with_pipeline(with_figure, energy=factor)).to_dict()["co2_eq_emissions"]
    assert emissions["emissions"] == 0.0123
    assert emissions["source"].startswith("joule-compressor, estimated from CPU and wall seconds: 50 gCO2e/kWh")
    assert emissions["geographical_location"] == "FR"
    assert emissions["training_type"] == "fine-tuning"


def test_base_model_is_a_hub_id_or_nothing() -> None:
    hub = with_pipeline(REPORT, model={"name": "org/base"})
    assert data_of(hub).base_model == "org/base"
    assert data_of(hub).to_dict()["base_model_relation"] == "quantized"
    assert data_of(REPORT).base_model is None


def test_the_licence_is_inherited_overridden_or_said_to_be_missing() -> None:
    apache = with_pipeline(REPORT, model={"licence": "Apache-2.0"})
    assert data_of(apache).license == "apache-2.0"
    assert data_of(apache, licence="mit").license == "mit"
    own = data_of(REPORT, licence="Our Own")
    assert (own.license, own.license_name) == ("other", "our own")
    assert data_of(REPORT).license is None
    assert "The pipeline names no licence." in model_card(REPORT)


def test_the_card_names_stages_teacher_data_seed_and_losses() -> None:
    card = model_card(REPORT)
    for text in (
        "2. **teacher** (finetune): training.learning_rate 0.001, training.batch_size 8",
        "7. **int8** (quantize): scheme w8a8-dynamic",
        "- teacher: teacher\n",
        "- seed 0;",
        "- test data: era_tiny/test.jsonl (sha256 of the rows 8ea497d9fac241f4)",
        "| int8 (selected) | accuracy | 48.7 % (43.1-54.3) | 300 | +0.0067 (-0.0176 to +0.0309)",
        'compressor.load("FOLDER", precision="onnx-w8a8-dynamic")',
        "the profile `smoke` only shows that the path works",
    ):
        assert text in card
    assert "fp16** (quantize)" not in card, "a stage that the candidate did not go through"


def test_another_candidate_has_its_own_card_and_no_goal_of_the_winner() -> None:
    card = model_card(REPORT, candidate="fp16")
    assert "# smoke: fp16" in card
    assert "- goal:" not in card
    assert "fp16 buys disk, not energy here" in card
    torch = model_card(REPORT, candidate="teacher")
    assert "library_name: transformers" in torch
    assert "ONNX Runtime:" not in torch and "Pruning took" not in torch


@pytest.mark.parametrize(
    ("change", "candidate", "text"),
    [
        ({}, "in8", "no candidate 'in8'; there are: teacher, teacher@onnx,"),
        ({}, "teacher@onnx", "made only to be measured"),
        ({"selected": None, "selected_reason": "no goal was met"}, None, "no candidate was selected: no goal was met"),
        ({"pipeline": {}}, None, "does not come from a pipeline"),
        ({"pipeline": {"stages": [1]}}, None, "the report's pipeline cannot be read by this version"),
        (
            {"failures": (Failure(where="int8", error="StageError", text="ran out of disk"),)},
            None,
            "int8 failed, so there is no card for it: ran out of disk",
        ),
    ],
)
def test_there_is_no_card_for_what_was_not_shown(change: dict[str, Any], candidate: str | None, text: str) -> None:
    with pytest.raises(UserError) as caught:
        model_card(REPORT.model_copy(update=change), candidate=candidate)
    assert text in str(caught.value)


def test_a_candidate_that_was_never_judged_has_no_card() -> None:
    bare = tuple(one.model_copy(update={"quality": ()}) for one in REPORT.candidates)
    with pytest.raises(UserError, match="the quality of int8 was never judged"):
        model_card(REPORT.model_copy(update={"candidates": bare}))


def test_settings_become_dotted_keys() -> None:
    assert dict(flat({"a": {"b": 1, "c": [1, 2]}, "d": {}})) == {"a.b": "1", "a.c": "[1, 2]", "d": "{}"}


def test_no_committed_card_or_table_is_out_of_date() -> None:
    tables = runpy.run_path(str(ROOT / "eval" / "tables.py"))
    texts = tables["generated"]()
    for path, text in texts.items():
        assert path.read_text() == text, f"{path.name}: run python eval/tables.py"
    assert tables["orphans"](texts) == []
