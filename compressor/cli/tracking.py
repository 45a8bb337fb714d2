"""`compressor log`: a finished run in an experiment tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from compressor.cli.output import AsJson, print_json
from compressor.cli.runs import RunFolder


def log(
    run: RunFolder,
    *,
    to: Annotated[Literal["mlflow", "wandb"], typer.Option(help="Which tracker.")],
    uri: Annotated[
        str | None, typer.Option(help="MLflow's address, such as sqlite:///mlflow.db; its own setting where absent.")
    ] = None,
    experiment: Annotated[str, typer.Option(help="MLflow's experiment, or the W&B project.")] = "joule-compressor",
    as_json: AsJson = False,
) -> None:
    """Log a finished run to MLflow 3 (a LoggedModel per candidate) or Weights & Biases (a run per candidate).

    Example: compressor log runs/minilm-sentiment --to mlflow --uri sqlite:///mlflow.db
    """
    from compressor.integrations.tracking import log_run, open_tracker

    found = log_run(run, open_tracker(to, uri=uri, experiment=experiment, folder=Path()))
    if as_json:
        print_json({"to": to, "experiment": experiment, "id": found})
    else:
        print(found)
