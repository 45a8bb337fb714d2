"""Runtime tuning: what is taken, what is refused, and how the settings travel."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stage_shelf import Shelf, make_context, stage_config

from compressor.data.splits import StageData
from compressor.data.tokenize import load_tokenizer
from compressor.errors import DataError, StageError, UnsupportedError, UserError
from compressor.measurement.tuning import Plan, RuntimeSettings, Timed, compare_settings
from compressor.runtime.onnx_runner import OnnxRunner
from compressor.runtime.runners import open_runner
from compressor.stages.dispatch import run_here
from compressor.stages.tune import read_table

ONE, TWO = RuntimeSettings(threads=2), RuntimeSettings(threads=1)
QUICK = {"threads": [1], "spinning": [True], "memory_arena": [True], "rounds": 3, "window_s": 0.02, "rows": 4}


def timed(settings: RuntimeSettings, *cpu_s: float, latency_s: float = 0.01) -> Timed:
    return Timed(settings, cpu_s=list(cpu_s), latencies_s=[latency_s] * 20)


def decisions(*candidates: Timed, limit: float | None = None) -> list[str]:
    plan = Plan((), "cpu_s_per_token", limit, rounds=3, window_s=1.0)
    return [trial.decision for trial in compare_settings(0, candidates, plan)]


def test_a_saving_is_taken_and_noise_is_not() -> None:
    in_place = timed(ONE, 1.0, 1.1, 0.9, 1.0)
    assert decisions(in_place, timed(TWO, 0.5, 0.55, 0.45, 0.5)) == [
        "costs more than what was taken",
        "taken: the least cost",
    ]
    kept = "taken: in place before, and nothing was shown to cost less"
    assert decisions(in_place, timed(TWO, 0.7, 1.3, 0.6, 1.2)) == [kept, "no saving is shown: its interval reaches 1"]
    assert decisions(in_place, timed(TWO, 1.5, 1.6, 1.4, 1.5)) == [kept, "costs more"]
    third = timed(replace(TWO, allow_spinning=False), 0.8, 0.88, 0.72, 0.8)
    assert decisions(in_place, timed(TWO, 0.5, 0.55, 0.45, 0.5), third)[2] == "costs less, but not the least"


def test_the_limit_comes_before_the_cost() -> None:
    in_place, cheap = timed(ONE, 1, 1, 1), timed(TWO, 0.5, 0.5, 0.5, latency_s=0.03)
    kept = "taken: in place before, and nothing was shown to cost less"
    assert decisions(in_place, cheap, limit=0.02) == [kept, "over the latency limit"]
    slow = timed(ONE, 1, 1, 1, latency_s=0.03)
    fast = timed(TWO, 2, 2, 2)
    assert decisions(slow, fast, limit=0.02) == ["over the latency limit", "taken: the least cost"]


def test_settings_travel_with_the_variant_and_are_applied(bert: Shelf, tmp_path: Path) -> None:
    """From a table, as any clock could have written it."""
    table = json.loads((bert.get("tune").path / "tuning.json").read_text())
    settings = {"threads": 1, "allow_spinning": False, "io_binding": True, "batch_size": 4, "sort_by_length": True}
    path = tmp_path / "given.json"
    path.write_text(json.dumps({**table, "settings": settings}))
    tuned = bert.make("tune", tmp_path, settings={"table": str(path)})
    assert tuned.variant("onnx-w8a8-dynamic").settings == settings
    assert tuned.record.realised["tuning"]["settings"] == settings
    source = bert.get("int8")
    inputs = {name: np.asarray(value) for name, value in load_tokenizer(source.path)(["Peace."]).items()}
    runners = [open_runner(checkpoint, "onnx-w8a8-dynamic") for checkpoint in (source, tuned)]
    assert isinstance(runners[1], OnnxRunner) and runners[1].io_binding
    options = runners[1].session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    answers = [runner.forward(inputs)["logits"] for runner in runners]
    np.testing.assert_array_equal(answers[0], answers[1])


def test_the_record_holds_every_trial(bert: Shelf) -> None:
    checkpoint = bert.get("tune")
    table = checkpoint.record.realised["tuning"]
    assert table == read_table(checkpoint.path / "tuning.json")
    assert table["default"] == {
        "threads": 1, "allow_spinning": True, "memory_arena": True, "io_binding": False, "batch_size": 32,
        "sort_by_length": False,
    }  # fmt: skip
    assert table["finding"] == (
        "a setting costs less" if table["settings"] else "nothing was shown to cost less than the defaults"
    )
    assert [trial["settings"]["batch_size"] for trial in table["trials"]][:2] == [32, 4]
    for trial in table["trials"]:
        assert 0 < trial["latency_s_p50"] <= trial["latency_s_p95"] and trial["cpu_s_per_token"] > 0
    assert list(checkpoint.record.data) == ["calibration"]


def test_a_decoder_is_tuned_on_prompts_and_joules_are_said_to_be_estimates(gpt2: Shelf, tmp_path: Path) -> None:
    settings = {
        **QUICK, "stage": "tune", "from": "int8", "io_binding": [True], "input_tokens": 6,
        "output_tokens": 4, "minimise": "j_per_token",
    }  # fmt: skip
    config = stage_config("tune", settings)
    ctx = make_context(gpt2.task, gpt2.data, tmp_path / "work")
    table = run_here(config, gpt2.inputs("int8", settings), tmp_path / "out", ctx).record.realised["tuning"]
    assert "batch_size" not in table["default"] and table["minimised"] in ("j_per_token", "est_j_per_token")
    for trial in table["trials"]:
        (joules,) = [trial[name] for name in ("j_per_token", "est_j_per_token") if trial[name] is not None]
        assert joules > 0


def test_a_limit_that_nothing_keeps_names_the_fastest(bert: Shelf, tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        bert.make("tune", tmp_path, settings={**QUICK, "latency_s_max": 1e-7})
    assert str(caught.value).startswith(
        "no setting that was tried answers within latency_s_max = 1e-07 s: the fastest took "
    )
    assert "\n  -> allow more time, smaller batch_sizes or more threads, or compress the model further" in str(
        caught.value
    )


def test_mistakes(bert: Shelf, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stages\.tune\.output_tokens: `output_tokens` has no use here: a sequence-cl"):
        bert.make("tune", tmp_path, settings={"output_tokens": 8})
    with pytest.raises(UserError, match="there is nothing to try: the lists name no setting but the defaults"):
        bert.make("tune", tmp_path, settings={"batch_sizes": [32]})
    with pytest.raises(UserError, match=r"no\.json: cannot read the tuning table: .*\n  -> name the tuning\.json in"):
        bert.make("tune", tmp_path, settings={"table": str(tmp_path / "no.json")})
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match=r"other\.json: not a tuning table \(tuning/1\)"):
        bert.make("tune", tmp_path, settings={"table": str(tmp_path / "other.json")})
    with pytest.raises(
        UnsupportedError, match="'finetune' left torch-fp32, and tuning is for one ONNX graph\n  -> start"
    ):
        bert.make("tune", tmp_path, settings={"from": "finetune"})
    nothing = StageData(train=None, validation=None, calibration=None, digests={})
    with pytest.raises(DataError, match=r"data\.calibration: tuning runs the model on calibration or validation rows"):
        bert.make("tune", tmp_path, data=nothing)


def test_validation_serves_where_there_is_no_calibration(bert: Shelf, tmp_path: Path) -> None:
    data = StageData(train=None, validation=bert.data.validation, calibration=None, digests={"validation": "v"})
    checkpoint = bert.make("tune", tmp_path, settings={**QUICK, "batch_sizes": [4], "io_binding": [False]}, data=data)
    assert checkpoint.record.data == {"validation": "v"}
