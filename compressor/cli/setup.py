"""`compressor doctor` and `init`: the first minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compressor.cli.output import AsJson, print_json, print_rich, table


def doctor(*, as_json: AsJson = False) -> None:
    """Check versions, processor, meters, disk and cache; each line says what would help.

    Example: compressor doctor
    """
    from compressor.integrations.doctor import examine

    findings = examine()
    if as_json:
        print_json([vars(finding) for finding in findings])
        return
    rows = [(finding.name, finding.status, finding.text, finding.remedy or "-") for finding in findings]
    print_rich(table(["what", "", "found", "what would help"], rows))


def init(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A pipeline; without it, all are listed.")] = None,
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="File or folder to copy it to.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """List the pipelines that ship, or copy one to start from.

    Example: compressor init minilm-sentiment --out my-pipeline.yaml
    """
    from compressor.integrations.shipped import copy_pipeline, shipped_pipelines

    if name is None:
        found = shipped_pipelines()
        if as_json:
            print_json([{"name": one.name, "about": one.about} for one in found])
        else:
            print_rich(table(["pipeline", "what it does"], [(one.name, one.about) for one in found]))
        return
    target = copy_pipeline(name, out)
    if as_json:
        print_json({"written": str(target)})
    else:
        print(f"written: {target}\nnext: compressor run {target} --dry-run")
