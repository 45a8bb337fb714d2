"""The commands, on one screen, and the way from an error to an exit code.

    0    fine (a "do not quantise" verdict too)
    1    something failed
    2    a mistake that the user can mend
    3    a goal, a gate or `--require` not satisfied
    130  stopped by the user; the run resumes

Every command imports what it needs when it is called: `compressor --help` loads no torch.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, NoReturn

import typer

from compressor.cli import checkpoints, energy, hub, pipelines, pruning, results, runs, setup, tracking
from compressor.errors import CompressorError, InterruptedRunError

COMMANDS: Mapping[str, Callable[..., None]] = {
    "init": setup.init,
    "run": pipelines.run,
    "validate": pipelines.validate,
    "schema": pipelines.schema,
    "status": runs.status,
    "report": runs.report,
    "compare": runs.compare,
    "card": runs.card,
    "clean": runs.clean,
    "gate": results.gate,
    "export-results": results.export_results,
    "prune": pruning.prune,
    "inspect": checkpoints.inspect,
    "predict": checkpoints.predict,
    "generate": checkpoints.generate,
    "layout": checkpoints.layout,
    "export": checkpoints.export,
    "measure": checkpoints.measure,
    "certify": hub.certify,
    "push": hub.push,
    "log": tracking.log,
    "meters": energy.meters,
    "doctor": setup.doctor,
}
ENERGY_COMMANDS: Mapping[str, Callable[..., None]] = {"verify": energy.verify, "calibrate": energy.calibrate}

SETTINGS = {"help_option_names": ["-h", "--help"]}


def build() -> typer.Typer:
    """The typer application over the tables above."""
    app = typer.Typer(context_settings=SETTINGS, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_root)
    for name, command in COMMANDS.items():
        app.command(name)(command)
    group = typer.Typer(context_settings=SETTINGS, no_args_is_help=True, help="Check and calibrate energy figures.")
    for name, command in ENERGY_COMMANDS.items():
        group.command(name)(command)
    app.add_typer(group, name="energy")
    return app


def main() -> NoReturn:
    """Run the command line and exit with the code of what happened.

    Only errors of ours become text; anything else is a bug and keeps its traceback.
    """
    # Set first: libraries that call basicConfig when they are imported then change nothing.
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    # Schedulers and containers stop a run with SIGTERM: it is stopped as Ctrl-C stops it, and says where it stands.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # they would run across our own
    try:
        build()(prog_name="compressor")
    except KeyboardInterrupt:
        sys.exit(InterruptedRunError.exit_code)
    except CompressorError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(0)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"compressor {version('joule-compressor')}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Compress BERT- and GPT-type models from one YAML, and measure what that saves.

    Start with: compressor run pipelines/smoke.yaml
    """
