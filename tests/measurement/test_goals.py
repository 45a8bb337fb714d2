"""Goals, the winner and verdicts, from figures made up by hand."""

from __future__ import annotations

import pytest
from made_up import SESSION, TEACHER, accuracy, candidate, measured, ratio, report

from compressor.measurement.goals import judge_goal, keeps
from compressor.measurement.select import select
from compressor.measurement.verdicts import find_verdicts
from compressor.schema.report import Candidate, GoalResult, Interval, Quality
from compressor.spec.evaluation import Goal, Workload

ROWS = Workload(id="rows", from_data=True)


def hold(goal: Goal, one: Candidate, resolution: float | None = None) -> GoalResult:
    return judge_goal(goal, one, TEACHER, "rows", {SESSION: {"aa": {"forward": {"resolution": resolution}}}})


# A goal is met, missed or not shown ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "delta_ci", "status"),
    [
        (0.860, (-0.015, 0.005), "met"),  # the whole interval is above 0.97 x 0.865 = 0.839
        (0.845, (-0.035, -0.005), "not_shown"),  # its lower end is below
        (0.800, (-0.080, -0.050), "missed"),
    ],
)
def test_quality_by_the_share_retained(value: float, delta_ci: tuple[float, float], status: str) -> None:
    goal = Goal(metric="accuracy", min_retained=0.97)
    result = hold(goal, candidate("int8", quality=(accuracy(value, delta_ci),)))
    assert result.status == status
    assert result.value == pytest.approx(value / 0.865)
    assert result.limit == 0.97


@pytest.mark.parametrize(
    ("delta_ci", "status"), [((-0.009, 0.001), "met"), ((-0.012, -0.001), "not_shown"), ((-0.03, -0.011), "missed")]
)
def test_quality_by_points(delta_ci: tuple[float, float], status: str) -> None:
    goal = Goal(metric="accuracy", max_drop_points=1.0)
    middle = 0.865 + sum(delta_ci) / 2
    result = hold(goal, candidate("int8", quality=(accuracy(middle, delta_ci),)))
    assert result.status == status


@pytest.mark.parametrize(
    ("value", "ci", "status"),
    [
        (0.150, (0.140, 0.160), "met"),
        (0.160, (0.150, 0.175), "not_shown"),
        (0.300, (0.290, 0.310), "missed"),
        (0.150, None, "not_shown"),
    ],
)
def test_cost_by_ratio(value: float, ci: tuple[float, float] | None, status: str) -> None:
    goal = Goal(metric="cpu_s_per_token", max_ratio=1 / 6)
    result = hold(goal, candidate("int8", measurements=(measured(ratio(value, ci)),)))
    assert result.status == status


def test_a_saving_smaller_than_a_a_is_not_shown() -> None:
    goal = Goal(metric="cpu_s_per_token", max_ratio=0.98)
    one = candidate("int8", measurements=(measured(ratio(0.95, (0.94, 0.96))),))
    assert hold(goal, one, resolution=1.02).status == "met"
    result = hold(goal, one, resolution=1.08)
    assert result.status == "not_shown"
    assert "since the baseline differs from itself by a factor of up to 1.080" in result.text


def test_counts_need_no_interval() -> None:
    goal = Goal(metric="size_bytes", max_ratio=0.5)
    result = hold(goal, candidate("int8", size_bytes=1000))
    assert (result.status, result.value) == ("met", 0.25)
    assert "size_bytes of int8: 1,000 against 4,000, 0.25x; at most 0.5x was asked: met" in result.text
    assert hold(goal, candidate("int8", size_bytes=3000)).status == "missed"


def test_a_joule_goal_on_estimates_says_that_it_is_the_ratio_of_cpu_time() -> None:
    goal = Goal(metric="j_per_token", max_ratio=0.5)
    result = hold(goal, candidate("int8", measurements=(measured(ratio(0.4, (0.39, 0.41))),)))
    assert result.status == "met"
    assert "(estimated: the ratio of CPU time)" in result.text


def test_a_joule_goal_on_an_invalid_measurement_is_not_shown() -> None:
    goal = Goal(metric="j_per_token", max_ratio=0.5)
    row = measured(
        ratio(0.4, (0.39, 0.41)), kind="measured", energy_ratio=ratio(0.4, (0.39, 0.41)), valid=False, remarks=("busy",)
    )
    result = hold(goal, candidate("int8", measurements=(row,)))
    assert result.status == "not_shown"
    assert "the measured energy is not valid: busy" in result.text


def test_what_was_not_measured_is_not_shown() -> None:
    result = hold(Goal(metric="latency_s", workload="night", max_ratio=0.5), candidate("int8"))
    assert result.status == "not_shown"
    assert result.value is None
    assert result.text == "latency_s of int8: was not measured on night: not shown"
    assert not keeps(result)


def test_perplexity_goals_use_the_uncached_row_and_its_paired_interval() -> None:
    def row(value: float, **parts: object) -> Quality:
        shared = {"metric": "token_perplexity", "dataset": "d", "split": "test", "n": 9, "ci95": None}
        return Quality.model_validate({**shared, "value": value, "paired": None, **parts})

    paired = {
        "against": "teacher",
        "delta": 0.2,
        "ci95": {"low": 0.1, "high": 0.3},
        "test": "bootstrap",
        "p_value": None,
    }
    base = TEACHER.model_copy(update={"quality": (row(20.0),)})
    int8 = candidate("int8", quality=(row(20.2, paired=paired), row(99.0, settings={"path": "decode"})))
    result = judge_goal(Goal(metric="token_perplexity", max_ratio=1.02), int8, base, "rows", {})
    assert result.value == pytest.approx(1.01)
    assert result.status == "met"


def test_agreement_is_held_against_all_answers() -> None:
    row = Quality(
        metric="top1_agreement", dataset="d", split="test", value=0.99, ci95=Interval(low=0.985, high=0.995), n=1000,
        paired=None,
    )  # fmt: skip
    assert hold(Goal(metric="top1_agreement", min_retained=0.98), candidate("int8", quality=(row,))).status == "met"


# The winner ----------------------------------------------------------------------------------------------------------


def pick(*candidates: Candidate, goals: tuple[Goal, ...] = (), asked: str | None = None) -> tuple[str | None, str]:
    return select(
        candidates, baseline="teacher", goals=goals, workloads=(ROWS,), judge=lambda g, c: hold(g, c), asked=asked
    )


KEEP = Goal(metric="accuracy", min_retained=0.97)
GOOD = candidate("onnx", quality=(accuracy(0.86, (-0.01, 0.0)),), measurements=(measured(ratio(0.5, (0.49, 0.51))),))
BAD = candidate("tiny", quality=(accuracy(0.60, (-0.3, -0.2)),), measurements=(measured(ratio(0.1, (0.09, 0.11))),))


def test_the_cheapest_that_keeps_quality_wins() -> None:
    winner, reason = pick(TEACHER, GOOD, BAD, goals=(KEEP,))
    assert winner == "onnx"
    kept, _, cost = reason.partition(", ")
    assert kept == "of 2 candidates that keep the quality goals"
    assert cost == "the least CPU-seconds per token: 0.500 of the baseline's (rows)"


def test_without_a_quality_goal_the_reason_says_so() -> None:
    winner, reason = pick(TEACHER, GOOD, BAD)
    assert winner == "tiny"
    assert reason.startswith("with no goal on quality, ")


def test_the_baseline_stays_where_nothing_else_keeps_quality() -> None:
    assert pick(TEACHER, BAD, goals=(KEEP,)) == (
        "teacher", "no other candidate keeps the quality goals, so the baseline stays"
    )  # fmt: skip


def test_scratch_exports_cannot_win() -> None:
    assert pick(TEACHER, GOOD.model_copy(update={"scratch": True}))[0] == "teacher"


def test_a_small_session_of_the_ends_does_not_hide_the_middle() -> None:
    """`leaf` ran one workload more; it wins there, but the comparison is made where all were measured."""
    leaf = candidate(
        "leaf",
        quality=GOOD.quality,
        measurements=(measured(ratio(0.6, None)), measured(ratio(0.1, None), workload="night")),
    )
    assert pick(TEACHER, GOOD, leaf)[0] == "onnx"


def test_a_named_winner_is_taken() -> None:
    assert pick(TEACHER, GOOD, BAD, asked="tiny") == ("tiny", "named by the pipeline (evaluate.select)")
    winner, reason = pick(TEACHER, asked="gone")
    assert winner is None
    assert "it could not be judged" in reason


# Verdicts ------------------------------------------------------------------------------------------------------------


def quantised(source: tuple[float, tuple[float, float]], scheme: str = "w8a8-dynamic", **parts: object) -> Candidate:
    cpu = ratio(source[0] / 2, None)
    rows = (measured(cpu, source=ratio(*source, against="onnx")),)
    values: dict[str, object] = {"quality": GOOD.quality, "measurements": rows, "size_bytes": 2000}
    return candidate("int8", scheme=scheme, **{**values, **parts})


def test_dearer_int8_is_not_advised_and_the_reasons_are_there() -> None:
    int8 = quantised((1.3, (1.25, 1.35)), facts={"quantised_operators": {}})
    (verdict,) = find_verdicts(report(GOOD, int8))
    assert verdict.kind == "do_not_quantise"
    assert verdict.text == "do not quantise here: int8 (w8a8-dynamic): it costs no less per token than onnx"
    assert verdict.reasons == (
        "rows: 1.30x the CPU-seconds per token of onnx (95 % interval 1.25 to 1.35)",
        "the graph has no quantised operators: weights are unpacked and computed in fp32",
        "this processor has no VNNI: 8-bit products take several instructions",
    )


WHY_DEARER = {
    "no VNNI": ({}, "this processor has no VNNI: 8-bit products take several instructions"),
    "unfused": (
        {"quantised_operators": {"QDQ MatMul": 12}, "unfused_products": 5},
        "5 of 12 products have no fused kernel here: ONNX Runtime dequantises, multiplies in fp32 and quantises again",
    ),
    "fallback": (
        {"provider": "A", "nodes_by_provider": {"A": 3, "CPUExecutionProvider": 7}},
        "A took 3 of 10 nodes; the others fell back to CPUExecutionProvider",
    ),
}


@pytest.mark.parametrize("cause", WHY_DEARER)
def test_why_int8_is_dearer_follows_from_what_was_found(cause: str) -> None:
    facts, text = WHY_DEARER[cause]
    reasons = find_verdicts(report(GOOD, quantised((1.3, (1.25, 1.35)), facts=facts)))[0].reasons
    assert text in reasons
    others = [other for name, (_, other) in WHY_DEARER.items() if name not in (cause, "no VNNI")]
    assert not set(others) & set(reasons)


def test_a_file_whose_products_are_all_fused_gets_no_such_reason() -> None:
    facts = {"quantised_operators": {"QDQ MatMul": 12}, "unfused_products": 0}
    reasons = find_verdicts(report(GOOD, quantised((1.3, (1.25, 1.35)), facts=facts)))[0].reasons
    assert not any("fused kernel" in reason for reason in reasons)


def test_cheaper_int8_needs_no_verdict() -> None:
    assert find_verdicts(report(GOOD, quantised((0.7, (0.68, 0.72))))) == ()


def test_a_saving_within_a_a_is_no_saving() -> None:
    int8 = quantised((0.97, (0.955, 0.99)))
    assert find_verdicts(report(GOOD, int8, resolution=1.01)) == ()
    (verdict,) = find_verdicts(report(GOOD, int8, resolution=1.05))
    assert verdict.kind == "do_not_quantise"


def test_what_cannot_be_told_is_not_decided() -> None:
    (verdict,) = find_verdicts(report(GOOD, quantised((0.9, (0.7, 1.2)))))
    assert verdict.kind == "no_saving_shown"


def test_fp16_that_only_shrinks_the_file() -> None:
    (verdict,) = find_verdicts(report(GOOD, quantised((1.1, (1.08, 1.12)), scheme="fp16")))
    assert verdict.kind == "saves_disk_only"
    assert "fp16 buys disk, not energy here: 0.0 MB instead of 0.0 MB" in verdict.text


def test_int8_that_breaks_a_goal_its_source_keeps() -> None:
    int8 = quantised((0.5, (0.49, 0.51)), quality=(accuracy(0.7, (-0.2, -0.1)),))
    pipeline = {"workloads": [{"id": "rows"}], "goals": [KEEP.model_dump()]}
    (verdict,) = find_verdicts(report(GOOD, int8, pipeline=pipeline))
    assert verdict.kind == "do_not_quantise"
    assert verdict.text.endswith("it breaks a goal that onnx keeps")
    assert "accuracy of int8" in verdict.reasons[0]
    assert not any("99.9th percentile" in reason for reason in verdict.reasons)
    wide = int8.model_copy(update={"facts": {"wide_activations": 4}})
    (verdict,) = find_verdicts(report(GOOD, wide, pipeline=pipeline))
    assert verdict.reasons[1].startswith("activations of 4 products have a few numbers over 8 times the 99.9th")


def test_cheaper_in_one_place_only() -> None:
    rows = (
        measured(ratio(0.6, None), source=ratio(1.1, (1.05, 1.15), against="onnx"), phase="prefill"),
        measured(ratio(0.3, None), source=ratio(0.5, (0.45, 0.55), against="onnx"), phase="decode"),
    )
    (verdict,) = find_verdicts(report(GOOD, candidate("int8", scheme="w8", quality=GOOD.quality, measurements=rows)))
    assert verdict.kind == "saves_in_places"
    assert verdict.text == "int8 (w8) costs less than onnx on rows (decode); on rows (prefill) no saving is shown"


def test_a_tuning_says_what_it_found() -> None:
    """Nothing better than the defaults is a finding and no failure."""
    tuning = {
        "settings": {"threads": 1, "allow_spinning": False}, "ratio_to_default": 0.62,
        "ratio_to_default_ci95": [0.55, 0.7], "minimised": "cpu_s_per_token",
    }  # fmt: skip
    none = {**tuning, "settings": {}, "ratio_to_default": None, "ratio_to_default_ci95": None}
    found = [find_verdicts(report(GOOD, candidate("tuned", facts={"tuning": table})))[0] for table in (tuning, none)]
    assert (found[0].kind, found[0].text) == ("tuned", "tuned runs with threads 1, allow_spinning False")
    assert found[0].reasons == (
        "on calibration text, 0.62x the cpu_s_per_token of the defaults (95 % interval 0.55 to 0.70)",
    )
    assert (found[1].kind, found[1].text) == (
        "defaults_are_best",
        "tuned: no runtime setting was shown to cost less than the defaults",
    )
