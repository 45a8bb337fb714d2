"""`compressor prune` as users meet it: counted budgets end to end, and every mistake in one sentence."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset

from compressor.checkpoints.store import open_checkpoint
from compressor.cli.pruning import read_budget
from compressor.errors import UserError
from compressor.measurement.session import find_meters
from compressor.pipeline.quick_prune import drawn_from, prune_folder
from compressor.spec.budgets import Limit
from compressor.spec.tasks import TASKS

Finished = subprocess.CompletedProcess[str]


def texts(folder: Path, n_lines: int) -> Path:
    path = folder / "texts.txt"
    lines = ("the house of the state of the union met in the year of peace and law" for _ in range(n_lines))
    path.write_text("".join(f"{line} {number}\n" for number, line in enumerate(lines)))
    return path


def test_a_folder_is_pruned_without_labels_or_yaml(
    command: Callable[..., Finished], tmp_path: Path, tiny_gpt2_dir: Path
) -> None:
    data = texts(tmp_path, 200)
    done = command(
        "prune", str(tiny_gpt2_dir), "--budget", "parameters=0.6x", "--data", str(data), "--out", "small",
        "--swaps", "2", "--json", "--threads", "1", "--granule", "8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["choice"]["predicted_cost_ratio"] <= 0.6 and said["final"] is None
    made = open_checkpoint(tmp_path / "small", verify=True)
    assert [variant.id for variant in made.content.variants] == ["torch-fp32", "onnx-fp32"]
    assert not list(tmp_path.glob("small.partial*/out"))
    assert "score options" in done.stderr and "pruned: prune ..." in done.stderr
    again = command("prune", str(tiny_gpt2_dir), "--budget", "0.6x", "--data", str(data), "--out", "small")
    assert again.returncode == 2 and "small: this folder is there already\n  -> name another with --out" in again.stderr


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (["0"], "--budget: a budget must be above 0, not 0\n  -> such as --budget 0.6x"),
        (["-1"], "--budget: a budget must be above 0, not -1"),
        (["1.2x"], "between 0x and 1x, not 1.2x"),
        (["watts=3"], "--budget: there is no budget 'watts'\n  -> one of: joules_per_token, cpu_s_per_token"),
        (["0.6x", "0.5x"], "--budget: the budget cpu_s_per_token is given twice"),
    ],
)
def test_what_is_no_budget(budget: list[str], text: str) -> None:
    with pytest.raises(UserError) as caught:
        read_budget(budget, None)
    assert text in str(caught.value)


@pytest.mark.slow
def test_too_little_text_says_how_much_is_needed(
    command: Callable[..., Finished], tmp_path: Path, tiny_gpt2_dir: Path
) -> None:
    data = texts(tmp_path, 4)
    done = command("prune", str(tiny_gpt2_dir), "--data", str(data), "--budget", "macs=0.6x", "--rows", "1")
    assert done.returncode == 2 and "calibration tokens are too few to refit" in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("*-pruned"))


@pytest.mark.skipif(bool(find_meters()), reason="this machine can measure joules")
def test_a_budget_in_joules_needs_a_meter_or_consent(tiny_gpt2_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a budget in joules, but no meter here .*\n  -> .* --accept-estimates"):
        prune_folder(
            tiny_gpt2_dir, budget=read_budget(["joules_per_token=0.6x"], None), data="none.txt", out=tmp_path / "out"
        )


def test_several_budgets_are_limits_together() -> None:
    found = read_budget(["0.6x", "latency_s=0.02"], "decode")
    assert found.limits == {"cpu_s_per_token": Limit(ratio=0.6), "latency_s": Limit(amount=0.02)}
    assert found.phase == "decode"
    with pytest.raises(UserError, match="`workload` and `phase` go with what is measured"):
        read_budget(["macs=0.6x"], "decode")


@pytest.mark.parametrize(("name", "n_wanted"), [("sentence-embedding", 20), ("causal-lm", 400)])
def test_a_file_in_order_is_drawn_from_all_over(name: str, n_wanted: int) -> None:
    in_order = Dataset.from_dict({"text": [str(year) for year in range(400)]})
    drawn = [int(year) for year in drawn_from(in_order, 20, TASKS[name], seed=0)["text"]]
    assert len(drawn) == n_wanted and sorted(set(drawn)) == sorted(drawn)
    assert min(drawn[:20]) < 100 and max(drawn[:20]) > 300
    assert drawn == [int(year) for year in drawn_from(in_order, 20, TASKS[name], seed=0)["text"]]
