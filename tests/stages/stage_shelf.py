"""A shelf of tiny checkpoints: every stage's result, made once per session."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from compressor.checkpoints.store import Checkpoint
from compressor.data.splits import StageData, open_stage_data
from compressor.spec.evaluation import Target
from compressor.spec.sources import Data, ModelSource
from compressor.spec.stages import Stage
from compressor.spec.tasks import TASKS
from compressor.stages.context import StageContext, StageInputs
from compressor.stages.dispatch import run_here
from compressor.stages.source import make_source

ERAS = ("before 1865", "1865 to 1944", "since 1945")
TRAINING = {"epochs": 2, "learning_rate": 2e-3, "batch_size": 8}

CASES: dict[str, dict[str, Any]] = {
    "finetune": {"stage": "finetune", "from": "model", "training": TRAINING},
    "distill": {
        "stage": "distill", "from": "finetune", "teacher": "finetune", "layers": [1, 3], "training": TRAINING,
        "losses": {"labels": 0.1, "hidden": {"kind": "mse"}},
    },
    "prune-ffn": {"stage": "prune", "from": "finetune", "keep": {"ffn": 0.5}, "granule": 8},
    "prune-heads": {"stage": "prune", "from": "finetune", "keep": {"heads": 0.5, "ffn": 0.5}, "granule": 8},
    "prune-budget": {"stage": "prune", "from": "finetune", "budget": {"macs": 0.6}, "granule": 8},
    "recover": {
        "stage": "distill", "from": "prune-heads", "teacher": "finetune", "training": TRAINING,
        "losses": {"logits": {"temperature": 1.0}},
    },
    "recover-rounded": {
        "stage": "distill", "from": "finetune", "teacher": "finetune", "losses": {"logits": {"temperature": 1.0}},
        "training": {**TRAINING, "max_steps": 3, "quantisation_aware": "w8a8-static"},
    },
    "prune-all": {
        "stage": "prune", "from": "finetune", "granule": 8,
        "keep": {"layers": 0.5, "attention_sublayers": 0.5, "hidden": 0.5, "heads": 0.5, "ffn": 0.5},
    },
    "trim": {"stage": "trim-vocabulary", "from": "finetune"},
    "recover-trimmed": {
        "stage": "distill", "from": "trim", "teacher": "finetune", "training": {**TRAINING, "max_steps": 2},
        "losses": {"hidden": {"kind": "mse"}},
    },
    "export-narrow": {"stage": "export", "from": "prune-all"},
    "export": {"stage": "export", "from": "finetune"},
    "export-unpadded": {"stage": "export", "from": "finetune", "unpadded_path": True},
    "export-pruned": {"stage": "export", "from": "prune-heads"},
    "fp16": {"stage": "quantize", "from": "export", "scheme": "fp16"},
    "bf16": {"stage": "quantize", "from": "export", "scheme": "bf16"},
    "int8": {"stage": "quantize", "from": "export", "scheme": "w8a8-dynamic"},
    "static": {"stage": "quantize", "from": "export", "scheme": "w8a8-static"},
    "w8": {"stage": "quantize", "from": "export", "scheme": "w8"},
    "w4": {"stage": "quantize", "from": "export", "scheme": "w4"},
    "tune": {
        "stage": "tune", "from": "int8", "threads": [1], "spinning": [True], "memory_arena": [True], "rounds": 3,
        "window_s": 0.05, "batch_sizes": [4], "sort_by_length": [False], "io_binding": [False], "rows": 8,
    },
}  # fmt: skip
"""Every stage that a law is held against, by id; `from` and `teacher` name others."""


def make_context(task: str, data: StageData, workdir: Path, **changes: Any) -> StageContext:
    """A context for one piece of work; `emit` collects nothing unless it is given."""
    ctx = StageContext(
        data=data,
        task=TASKS[task],  # type: ignore[index]
        labels=ERAS if task == "sequence-classification" else None,
        max_tokens=32,
        calibration_rows=64,
        seed=7,
        target=Target(threads=1),
        fingerprint="0" * 64,
        versions={"torch": "2"},
        emit=lambda event: None,
        workdir=workdir,
    )
    return replace(ctx, **changes)


class Shelf:
    """Checkpoints by case id, made when first asked for and kept for the session."""

    def __init__(self, root: Path, task: str, data: Data, source: ModelSource) -> None:
        self.root, self.task, self.source = root, task, source
        self.data = open_stage_data(data, TASKS[task], source.labels, seed=7)  # type: ignore[index]
        self.made: dict[str, Checkpoint] = {}

    def get(self, case: str) -> Checkpoint:
        if case not in self.made:
            self.made[case] = self.make(case, self.root / case)
        return self.made[case]

    def make(self, case: str, folder: Path, *, runner: Any = run_here, **changes: Any) -> Checkpoint:
        """Do a case's stage in `folder`, anew; `settings` over those of the case."""
        settings = changes.pop("settings", {})
        ctx = make_context(self.task, changes.pop("data", self.data), folder / "work", **changes)
        if case == "model":
            return make_source(self.source, folder / "out", ctx)
        config = stage_config(case, {**CASES[case], **settings})
        checkpoint: Checkpoint = runner(config, self.inputs(case, settings), folder / "out", ctx)
        return checkpoint

    def inputs(self, case: str, changed: dict[str, Any] | None = None) -> StageInputs:
        settings = {**CASES[case], **(changed or {})}
        teacher = settings.get("teacher")
        return StageInputs(self.get(settings["from"]), self.get(teacher) if teacher else None)


def stage_config(case: str, settings: dict[str, Any]) -> Stage:
    """A stage's settings with its id."""
    config: Stage = TypeAdapter(Stage).validate_python({"id": case, **settings})
    return config
