"""`compressor run`, `validate` and `schema`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from compressor.cli.output import AsJson, print_json, print_rich, table
from compressor.errors import GoalError, PipelineError, UserError

if TYPE_CHECKING:
    from compressor.pipeline.dry_run import DryRun
    from compressor.pipeline.run import RunResult
    from compressor.schema.report import Report

PipelineFile = Annotated[Path, typer.Argument(metavar="PIPELINE", help="A YAML file, such as pipelines/smoke.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a value: --set stages.student.training.epochs=1"),
]


def run(
    pipeline: PipelineFile,
    *,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME where absent.")] = None,
    overrides: Overrides = None,
    until: Annotated[str | None, typer.Option(metavar="ID", help="Stop after this stage, without a report.")] = None,
    force: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Do this stage again although it is finished.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, do nothing.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="A goal that is not shown counts as missed.")] = False,
    require: Annotated[
        Literal["measured"] | None, typer.Option(help="Refuse to start where energy can only be estimated.")
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Run a pipeline: stage after stage, then measure every candidate.

    Finished stages are skipped, so the same command resumes a run that was stopped.

    Example: compressor run pipelines/minilm-sentiment.yaml --out runs/first --set seed=1
    """
    if dry_run:
        _show_dry_run(pipeline, overrides or [], out, as_json=as_json)
        return
    from compressor import run as run_pipeline
    from compressor.cli.progress import watching

    with watching(quiet=quiet) as on_event:
        result = run_pipeline(
            pipeline,
            out=out,
            overrides=overrides or [],
            until=until,
            force=force or [],
            require=require,
            on_event=on_event,
        )
    _show_result(result, as_json=as_json)
    if result.report is not None:
        check_goals(result.report, strict=strict)


def validate(pipeline: PipelineFile, *, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a pipeline file; every mistake is told with its line.

    Example: compressor validate pipelines/minilm-sentiment.yaml
    """
    from compressor.spec.load import load_pipeline

    try:
        loaded = load_pipeline(pipeline, overrides=overrides or [])
    except PipelineError as error:
        if as_json:
            print_json({"valid": False, "problems": [vars(problem) for problem in error.problems]})
        raise
    ids = [stage.id for stage in loaded.stages]
    if as_json:
        print_json({"valid": True, "name": loaded.name, "stages": ids})
    else:
        print(f"{pipeline}: valid, {len(ids)} stages: {', '.join(ids)}")


def schema(
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the reference for people instead.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What it prints without --markdown anyway.")] = False,
) -> None:
    """Print the JSON Schema of pipelines, for editors.

    Example: compressor schema > pipeline.schema.json
    """
    if markdown and as_json:
        raise UserError("--markdown and --json are two forms of the same", hint="give one of them")
    if markdown:
        from compressor.integrations.reference import pipeline_reference

        print(pipeline_reference(), end="")
        return
    from compressor.spec.json_schema import pipeline_schema

    print(pipeline_schema(), end="")


def check_goals(report: Report, *, strict: bool) -> None:
    """Raise when a goal was not kept.

    Raises:
        GoalError: a goal was missed, or is not shown and `strict` is set.
    """
    failing = ("missed", "not_shown") if strict else ("missed",)
    broken = [goal for goal in report.goals if goal.status in failing]
    if broken:
        lines = "".join(f"\n  {goal.status.replace('_', ' ')}: {goal.text}" for goal in broken)
        raise GoalError(f"{len(broken)} of {len(report.goals)} goals not kept:{lines}")


def _show_result(result: RunResult, *, as_json: bool) -> None:
    if result.report is None:
        folders = {step: str(checkpoint.path) for step, checkpoint in result.checkpoints.items()}
        if as_json:
            print_json({"run_dir": str(result.run_dir), "checkpoints": folders})
        else:
            print_rich(table(["stage", "checkpoint"], list(folders.items())))
        return
    from compressor.cli.runs import show_report

    show_report(result.report, as_json=as_json)


def _show_dry_run(pipeline: Path, overrides: list[str], out: Path | None, *, as_json: bool) -> None:
    from compressor.pipeline.dry_run import dry_run
    from compressor.spec.load import load_pipeline

    found = dry_run(load_pipeline(pipeline, overrides=overrides), out=out)
    if as_json:
        print_json({"ok": found.ok, "steps": found.steps, "checks": [vars(check) for check in found.checks]})
    else:
        print_rich(*_dry_run_tables(found))
    if not found.ok:
        wrong = [check.name for check in found.checks if check.ok is False]
        raise UserError(f"the run would fail on: {', '.join(wrong)}", where=str(pipeline))


def _dry_run_tables(found: DryRun) -> list[object]:
    words = {True: "ok", False: "missing", None: "unknown"}
    rows = [(check.name, words[check.ok], check.text) for check in found.checks]
    return [f"steps: {', '.join(found.steps)}", table(["check", "", "found"], rows)]
