"""A finished run in Weights & Biases: a group, and in it one run per candidate, all with the same metric names.

Its own settings hold: `WANDB_MODE=offline` writes files and sends nothing, `wandb sync` sends them later.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compressor.checkpoints.manifest import CERTIFICATE_NAME, MANIFEST_NAME
from compressor.errors import MissingPackageError
from compressor.integrations.tracking import Logged
from compressor.schema.report import Report


class WandbTracker:
    """Weights & Biases behind `tracking.Tracker`.

    Args:
        project: made where there is none.
        folder: takes the folder `wandb/`.

    Raises:
        MissingPackageError: wandb is not installed.
    """

    def __init__(self, project: str, folder: Path) -> None:
        try:
            self.wandb: Any = importlib.import_module("wandb")
        except ModuleNotFoundError as error:
            if error.name != "wandb":
                raise
            raise MissingPackageError("wandb", extra="wandb", needed_for="logging to Weights & Biases") from None
        self.project = project
        self.folder = folder

    def log(self, report: Report, candidates: Sequence[Logged], files: Sequence[Path]) -> str:
        """Log a run; returns the name of the group."""
        group = f"{report.name} {report.created}"
        for one in candidates:
            run = self.wandb.init(
                project=self.project,
                group=group,
                name=one.id,
                job_type="selected" if one.is_selected else "candidate",
                dir=str(self.folder),
                config={**one.params, "baseline": report.baseline, "selected": report.selected},
                reinit="finish_previous",
            )
            run.log(dict(one.metrics))
            if one.checkpoint is not None:
                run.log_artifact(self._artifact(report, one))
            if one.is_selected:
                for file in files:
                    run.save(str(file), base_path=str(file.parent), policy="now")
            run.finish()
        return group

    def _artifact(self, report: Report, one: Logged) -> Any:
        assert one.checkpoint is not None
        name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in f"{report.name}-{one.id}")
        artifact = self.wandb.Artifact(name, type="model", metadata=dict(one.params))
        for path in [*one.checkpoint.content.files, MANIFEST_NAME, CERTIFICATE_NAME]:
            if (one.checkpoint.path / path).is_file():
                artifact.add_file(str(one.checkpoint.path / path), name=path)
        return artifact
