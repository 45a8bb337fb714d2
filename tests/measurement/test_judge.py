"""All of judging, on tiny real checkpoints: torch, ONNX and INT8 beside each other."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_judgements import (
    Judgement,
    always_first,
    decoder_pipeline,
    encoder_pipeline,
    judge_three,
    three_candidates,
)

from compressor.checkpoints.store import Checkpoint
from compressor.errors import DataError, UserError
from compressor.measurement.session import TWIN
from compressor.render.markdown import markdown
from compressor.schema.events import CandidateMeasured, Progress
from compressor.schema.report import Candidate, Measurement, read_report, write_report
from compressor.spec.pipeline import Pipeline


def test_the_pipeline_in_a_report_is_a_pipeline(
    encoder_judgement: Judgement, decoder_judgement: Judgement, sotu_text: dict[str, Path]
) -> None:
    Pipeline.model_validate(encoder_judgement.report.pipeline)
    assert Pipeline.model_validate(decoder_judgement.report.pipeline) == decoder_pipeline(sotu_text)


def by_metric(candidate: Candidate, metric: str) -> object:
    return next(row for row in candidate.quality if row.metric == metric)


def test_every_candidate_is_judged_and_the_report_reads_back(encoder_judgement: Judgement, tmp_path: Path) -> None:
    report = encoder_judgement.report
    assert [one.id for one in report.candidates] == ["teacher", "onnx", "int8"]
    assert report.failures == ()
    write_report(report, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report


def test_accuracy_is_that_of_the_model_itself(
    encoder_judgement: Judgement, bert: Checkpoint, era_rows: dict[str, list[dict[str, object]]], one_thread: None
) -> None:
    """Recomputed from outside: transformers, one row at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(bert.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(bert.path)
    hits = []
    for row in era_rows["test"][:60]:
        encoded = tokenizer(row["text"], truncation=True, max_length=32, return_tensors="pt")
        with torch.no_grad():
            hits.append(int(model(**encoded).logits.argmax()) == row["label"])
    quality = encoder_judgement.report.candidate("teacher").quality[0]
    assert quality.metric == "accuracy"
    assert quality.value == pytest.approx(np.mean(hits))
    assert quality.n == 60
    assert quality.settings == {"batch": 8, "order": "file", "max_tokens": 32}


def test_the_users_own_metric_is_in_every_row(encoder_judgement: Judgement) -> None:
    for candidate in encoder_judgement.report.candidates:
        assert 0 <= by_metric(candidate, "share_of_first").value <= 1  # type: ignore[attr-defined]


def test_differences_to_the_baseline_are_paired(encoder_judgement: Judgement) -> None:
    report = encoder_judgement.report
    assert all(row.paired is None for row in report.candidate("teacher").quality)
    paired = by_metric(report.candidate("int8"), "accuracy").paired  # type: ignore[attr-defined]
    assert paired.against == "teacher"
    assert paired.test == "mcnemar"
    assert paired.ci95.low <= paired.delta <= paired.ci95.high
    assert by_metric(report.candidate("onnx"), "top1_agreement").value == 1.0  # type: ignore[attr-defined]
    assert by_metric(report.candidate("onnx"), "kl_to_baseline").value < 1e-6  # type: ignore[attr-defined]


def measurements(judgement: Judgement) -> list[Measurement]:
    found = [row for one in judgement.report.candidates for row in one.measurements]
    assert found
    return found


def test_costs_agree_with_each_other(encoder_judgement: Judgement, decoder_judgement: Judgement) -> None:
    for row in measurements(encoder_judgement) + measurements(decoder_judgement):
        assert row.rounds == 3
        assert row.threads == 1
        assert row.cpu_s_per_token > 0
        assert row.latency_s_p50 <= row.latency_s_p95
        assert row.cpu_s_per_token_ci95 is not None
        assert row.cpu_s_per_token_ci95.low <= row.cpu_s_per_token <= row.cpu_s_per_token_ci95.high
        assert row.peak_memory_bytes is not None and row.peak_memory_bytes > 0


def test_joules_are_estimates_and_say_so(encoder_judgement: Judgement, decoder_judgement: Judgement) -> None:
    """On a machine without a meter. One with a meter has measured figures, and no estimated keys."""
    for row in measurements(encoder_judgement) + measurements(decoder_judgement):
        assert row.energy.result is not None
        kind = row.energy.result["kind"]
        assert kind in ("estimated", "measured")
        assert row.energy.figures
        assert all(key.startswith("est_") == (kind == "estimated") for key in row.energy.figures)


def test_an_estimate_recomputes_from_its_inputs(encoder_judgement: Judgement) -> None:
    from compressor.energy import estimate_energy

    row = encoder_judgement.report.candidate("onnx").measurements[0]
    result = row.energy.result
    assert result is not None
    if result["kind"] == "measured":
        pytest.skip("this machine has a meter")
    again = estimate_energy(cpu_s=result["inputs"]["cpu_s"], wall_s=result["inputs"]["wall_s"])
    assert result["est_energy_gross_j"] == again.est_energy_gross_j
    # The record holds whole passes over the workload's real tokens.
    n_tokens = result["est_energy_gross_j"] / row.energy.figures["est_j_per_input_token"]
    assert n_tokens / row.tokens == pytest.approx(round(n_tokens / row.tokens), rel=1e-9)


def test_ratios_are_to_the_baseline_and_to_the_source(encoder_judgement: Judgement) -> None:
    report = encoder_judgement.report
    teacher, onnx, int8 = (report.candidate(id_).measurements[0] for id_ in ("teacher", "onnx", "int8"))
    assert teacher.cpu_s_per_token_ratio is None
    for row in (onnx, int8):
        assert row.cpu_s_per_token_ratio is not None and row.cpu_s_per_token_ratio.against == "teacher"
    assert int8.cpu_s_per_token_ratio_to_source is not None
    assert int8.cpu_s_per_token_ratio_to_source.against == "onnx"
    assert onnx.cpu_s_per_token_ratio_to_source is None


def test_blocks_are_complete_and_hold_the_twin(encoder_judgement: Judgement) -> None:
    (session,) = encoder_judgement.report.environment["sessions"].values()
    assert len(session["order"]) == 3
    for block in session["order"]:
        assert sorted(block) == sorted(["teacher", "onnx", "int8", TWIN])
    assert session["aa"]["forward"]["resolution"] >= 1
    low, high = session["aa"]["forward"]["ci95"]
    bound = max(abs(math.log(low)), abs(math.log(high)))
    assert session["aa"]["forward"]["resolution"] == pytest.approx(math.exp(bound))


def test_tokens_are_real_and_padding_is_told(encoder_judgement: Judgement, bert: Checkpoint) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bert.path)
    path = Path(encoder_judgement.report.data["test"]["name"])
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()[:32]]
    lengths = [len(ids) for ids in tokenizer(texts, truncation=True, max_length=32)["input_ids"]]
    slots = sum(8 * max(lengths[start : start + 8]) for start in range(0, 32, 8))
    row = encoder_judgement.report.candidate("onnx").measurements[0]
    assert row.tokens == sum(lengths)
    assert row.requests == 32
    assert row.padding_ratio == pytest.approx(1 - sum(lengths) / slots)


def test_goals_and_winner(encoder_judgement: Judgement) -> None:
    report = encoder_judgement.report
    assert report.selected in ("onnx", "int8", "teacher")
    assert [goal.status for goal in report.goals][::2] == ["met", "missed"]
    assert "size_bytes" in report.goals[2].text


def test_environment_tells_machine_and_meters(encoder_judgement: Judgement) -> None:
    environment = encoder_judgement.report.environment
    assert environment["threads"] == 1
    assert environment["processors"] >= 1
    assert {"name", "status", "reason", "remedy"} == set(environment["meters"][0])
    assert "onnxruntime" in environment["versions"]


def test_progress_is_told(encoder_judgement: Judgement) -> None:
    events = encoder_judgement.events
    assert [event.candidate for event in events if isinstance(event, CandidateMeasured)] == ["teacher", "onnx", "int8"]
    bars = [event for event in events if isinstance(event, Progress)]
    assert {bar.task for bar in bars} == {"test rows", "workload rows"}
    assert all(bar.done <= bar.total for bar in bars)


def test_nothing_is_left_behind_but_the_cache(encoder_judgement: Judgement) -> None:
    left = [str(path.relative_to(encoder_judgement.run_dir)) for path in encoder_judgement.run_dir.iterdir()]
    assert left == ["cache"]
    assert len(list((encoder_judgement.run_dir / "cache" / "quality").iterdir())) == 3


def test_a_decoder_has_prefill_and_decode(decoder_judgement: Judgement) -> None:
    for candidate in decoder_judgement.report.candidates:
        prefill, decode = candidate.measurements
        assert (prefill.phase, decode.phase) == ("prefill", "decode")
        assert prefill.tokens == 2 * 16
        assert decode.tokens == 2 * 16
        assert any(key.endswith("j_per_generated_token") for key in decode.energy.figures)
        assert any(key.endswith("j_per_input_token") for key in prefill.energy.figures)


def test_perplexity_is_that_of_the_model_itself(
    decoder_judgement: Judgement, llama: Checkpoint, sotu_text: dict[str, Path], one_thread: None
) -> None:
    """Recomputed from outside: every token predicted once, from windows cut here anew."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(llama.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(llama.path)
    nll, n_tokens = 0.0, 0
    for text in [line for line in sotu_text["test"].read_text().splitlines() if line.strip()][:1]:
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        done, end = 1, min(64, ids.shape[1])  # predicted so far (the first token never is), and end of the window
        while done < ids.shape[1]:
            start = max(0, end - 64)
            with torch.no_grad():
                log_probs = model(ids[:, start:end]).logits[0].double().log_softmax(-1)
            targets = ids[0, done:end]
            nll -= float(log_probs[done - start - 1 : -1].gather(1, targets[:, None]).sum())
            n_tokens += len(targets)
            done, end = end, min(end + 32, ids.shape[1])
    quality = decoder_judgement.report.candidate("teacher").quality[0]
    assert quality.metric == "token_perplexity"
    assert quality.n == n_tokens
    assert quality.value == pytest.approx(math.exp(nll / n_tokens), rel=1e-5)


def test_dynamic_int8_has_its_decode_path_beside_it(decoder_judgement: Judgement) -> None:
    paths = {
        one.id: [row.settings["path"] for row in one.quality if row.metric == "token_perplexity"]
        for one in decoder_judgement.report.candidates
    }
    assert paths == {"teacher": ["uncached"], "onnx": ["uncached"], "int8": ["uncached", "decode"]}
    decode = decoder_judgement.report.candidate("int8").quality[-1]
    assert decode.n >= 1_024
    assert decode.value == pytest.approx(decode.settings["uncached_on_same_windows"], rel=0.02)
    assert decode.value != decode.settings["uncached_on_same_windows"]


def test_quality_comes_from_the_cache_and_a_dead_worker_costs_the_others_nothing(
    encoder_judgement: Judgement, bert: Checkpoint, era_files: dict[str, Path]
) -> None:
    """The graph vanishes after quality was cached: its costs cannot be measured, the others' can."""
    _, onnx, quantised = three_candidates(bert)
    specs = [replace(onnx, id="teacher"), quantised]
    int8 = bert.path / "onnx" / "model_int8.onnx"
    hidden = int8.with_suffix(".hidden")
    int8.rename(hidden)
    try:
        own = {"share_of_first": always_first}
        judgement = judge_three(encoder_pipeline(era_files), specs, encoder_judgement.run_dir, metrics=own)
    finally:
        hidden.rename(int8)
    report = judgement.report
    assert [(one.where, one.error) for one in report.failures] == [("int8", "WorkerDied")]
    assert "no such ONNX file" in report.failures[0].text
    before, after = (one.candidate("int8").quality for one in (encoder_judgement.report, report))
    assert [(row.metric, row.value) for row in after][:3] == [(row.metric, row.value) for row in before][:3]
    assert report.candidate("int8").measurements == ()
    assert len(report.candidate("teacher").measurements) == 1
    assert report.selected != "int8"


def test_equal_rows_across_splits_are_refused(bert: Checkpoint, era_files: dict[str, Path], tmp_path: Path) -> None:
    leaking = {**era_files, "validation": era_files["test"]}
    with pytest.raises(DataError, match="300 rows stand both in validation and in test"):
        judge_three(encoder_pipeline(leaking), three_candidates(bert), tmp_path)


def test_an_unknown_metric_is_refused_before_any_work(
    bert: Checkpoint, era_files: dict[str, Path], tmp_path: Path
) -> None:
    pipeline = encoder_pipeline(era_files, evaluate={"metrics": ["acuracy"]})
    with pytest.raises(UserError, match=r"evaluate\.metrics: no metric 'acuracy' for sequence-classification"):
        judge_three(pipeline, three_candidates(bert), tmp_path)


def test_labels_beyond_the_head_are_refused(bert: Checkpoint, era_files: dict[str, Path], tmp_path: Path) -> None:
    rows = [json.loads(line) for line in era_files["test"].read_text().splitlines()[:20]]
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps({**row, "label": row["label"] + 5}) + "\n" for row in rows))
    only_onnx = [replace(three_candidates(bert)[1], id="teacher")]
    with pytest.raises(UserError, match="labels reach 7, but the model tells 3 classes apart"):
        judge_three(encoder_pipeline({**era_files, "test": test}), only_onnx, tmp_path / "run")


def test_the_doors_of_the_winner_say_which_was_opened(encoder_judgement: Judgement) -> None:
    report = encoder_judgement.report
    assert report.selected is not None
    first, *others = report.doors
    assert first.opened and first.door in ("ONNX Runtime", "transformers")
    assert not any(row.opened for row in others)
    if first.door == "ONNX Runtime":
        assert {"Transformers.js", "Triton Inference Server", "OpenVINO"} <= {row.door for row in others}
    assert f"## Doors of {report.selected}" in markdown(report)
