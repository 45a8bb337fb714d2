"""`compressor status`, `report`, `compare`, `card` and `clean`: what a run's folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.cli.output import AsJson, megabytes, print_json, print_rich, table, write_file
from compressor.errors import UserError

if TYPE_CHECKING:
    from compressor.render.page_figures import StageRecord
    from compressor.schema.report import Report

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, such as runs/smoke.")]


def status(run: RunFolder, *, as_json: AsJson = False) -> None:
    """Show where a run stands, step by step.

    Example: compressor status runs/minilm-sentiment
    """
    from compressor.pipeline.status import status as read_status

    found = read_status(run)
    if as_json:
        steps = [{**vars(line.state), "size_bytes": line.size_bytes} for line in found.steps]
        print_json({"name": found.name, "status": found.status, "report": found.report, "steps": steps})
        return
    rows = [
        (line.state.id, line.state.kind, line.state.status, megabytes(line.size_bytes), line.state.folder or "-")
        for line in found.steps
    ]
    print_rich(f"{found.name}: {found.status}", table(["step", "kind", "status", ">size", "folder"], rows))
    for line in found.steps:
        if line.state.error:
            print_rich(f"{line.state.id}: {line.state.error}")
    for folder in found.partial:
        print(f"unfinished, resumes from here: {folder}")


def report(
    run: RunFolder,
    *,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write Markdown to this file instead.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with figures, for offline use.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the report of a finished run.

    Example: compressor report runs/minilm-sentiment --html report.html
    """
    from compressor.schema.report import read_report

    found = read_report(run / "report.json" if run.is_dir() else run)
    if markdown is None and html is None:
        show_report(found, as_json=as_json)
    if markdown is not None:
        from compressor.render import markdown as to_markdown

        write_file(markdown, to_markdown(found))
    if html is not None:
        from compressor.render.page import page

        write_file(html, page(found, records=_stage_records(run)))


def _stage_records(run: Path) -> dict[str, StageRecord]:
    """What the manifests of a run's stages add to its report; none where only the report is there."""
    from compressor.checkpoints.store import open_checkpoint
    from compressor.pipeline.status import status as read_status
    from compressor.render.page_figures import StageRecord

    if not (run / "run.json").is_file():
        return {}
    records = {}
    for line in read_status(run).steps:
        folder = None if line.state.folder is None else run / line.state.folder
        if folder is not None and folder.is_dir():
            checkpoint = open_checkpoint(folder, verify=False)
            records[line.state.id] = StageRecord(
                line.state.id,
                tuple(checkpoint.record.realised.get("history") or ()),
                checkpoint.content.structure or checkpoint.record.realised.get("structure"),
                json.loads((folder / "config.json").read_text(encoding="utf-8")),
                checkpoint.record.realised.get("choice"),
            )
    return records


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Folders of runs, or their reports.")],
    *,
    html: Annotated[Path, typer.Option(metavar="FILE", help="Write the page to this file.")],
    as_json: AsJson = False,
) -> None:
    """Write one page that shows several runs side by side.

    Example: compressor compare runs/minilm-sentiment runs/smoke --html compared.html
    """
    from compressor.render.page import page
    from compressor.schema.report import read_report

    if len(runs) < 2:
        raise UserError("one run has nothing to be compared with", hint="name two or more")
    found = [read_report(run / "report.json" if run.is_dir() else run) for run in runs]
    write_file(html, page(*found))
    if as_json:
        print_json({"written": str(html), "runs": [{"name": one.name, "selected": one.selected} for one in found]})


def card(
    run: RunFolder,
    *,
    candidate: Annotated[
        str | None, typer.Option(metavar="ID", help="Whose card; the selected one's if absent.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Of the weights; the pipeline's `model.licence` if absent.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write to this file, not to stdout.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the model card of a finished run, with the metadata that the Hugging Face hub reads.

    Example: compressor card runs/minilm-sentiment --out README.md
    """
    from compressor.pipeline.reading import report_of_run
    from compressor.render.card import model_card

    text = model_card(report_of_run(run), candidate=candidate, licence=licence)
    if out is not None:
        write_file(out, text)
    if as_json:
        print_json({"card": text, "written": None if out is None else str(out)})
    elif out is None:
        print(text, end="")


def clean(run: RunFolder, *, as_json: AsJson = False) -> None:
    """Delete what can be made again: scratch exports, caches, unfinished work, old stages.

    Checkpoints of the present pipeline and the report stay.

    Example: compressor clean runs/minilm-sentiment
    """
    from compressor.pipeline.status import clean as clean_run

    freed = clean_run(run)
    if as_json:
        print_json({"freed_bytes": freed})
    else:
        print(f"{run}: {megabytes(freed)} freed")


def show_report(report: Report, *, as_json: bool) -> None:
    """A report as JSON or as tables."""
    if as_json:
        print(report.model_dump_json(by_alias=True, indent=1))
        return
    from compressor.render import terminal_table

    print_rich(terminal_table(report), markup=True)
