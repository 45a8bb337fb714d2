"""`compressor gate` and `export-results`: a finished run for CI and for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from compressor.cli.output import AsJson, print_json, print_rich, say, table, write_file
from compressor.cli.runs import RunFolder

OutFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Write to this file.")]


def gate(
    run: RunFolder,
    *,
    max_accuracy_drop: Annotated[
        float | None, typer.Option(help="Quality that may be lost: 0.01 is one point (a share, for perplexity).")
    ] = None,
    min_reduction: Annotated[float | None, typer.Option(help="Share of the cost to be saved: 0.3 is 30 %.")] = None,
    metric: Annotated[str, typer.Option(help="The quality that counts.")] = "accuracy",
    cost: Annotated[
        str, typer.Option(help="The cost that counts, such as latency_s or size_bytes.")
    ] = "cpu_s_per_token",
    workload: Annotated[str | None, typer.Option(metavar="ID", help="Where costs count; else the first one.")] = None,
    phase: Annotated[Literal["forward", "prefill", "decode"] | None, typer.Option(help="And in which phase.")] = None,
    require: Annotated[Literal["measured"] | None, typer.Option(help="Energy may not be an estimate.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="What is not shown fails.")] = False,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML.")] = None,
    summary: Annotated[Path | None, typer.Option(metavar="FILE", help="Append a Markdown summary.")] = None,
    as_json: AsJson = False,
) -> None:
    """Hold the selected candidate of a run to limits; exits with 3 when one is not kept.

    Without a limit, the pipeline's own goals count.

    Example: compressor gate runs/minilm-sentiment --max-accuracy-drop 0.01 --min-reduction 0.3 --junit gate.xml
    """
    from compressor.integrations import gate as gates
    from compressor.pipeline.reading import report_of_run

    report = report_of_run(run)
    checks = gates.check_gate(
        report,
        max_accuracy_drop=max_accuracy_drop,
        min_reduction=min_reduction,
        metric=metric,
        cost=cost,
        workload=workload,
        phase=phase,
        require=require,
    )
    if junit is not None:
        write_file(junit, gates.junit(report, checks, strict=strict))
    if summary is not None:
        with summary.open("a", encoding="utf-8") as file:  # CI servers hand one file to several steps
            file.write(gates.summary(report, checks, strict=strict))
        say(f"written: {summary}")
    if as_json:
        print_json(gates.to_json(report, checks, strict=strict))
    else:
        rows = [(check.name, check.status.replace("_", " "), check.text) for check in checks]
        print_rich(f"{report.name}: {report.selected or 'nothing'} selected", table(["check", "result", "why"], rows))
    gates.raise_if_failing(checks, strict=strict)


def export_results(
    run: RunFolder,
    *,
    format_: Annotated[
        str, typer.Option("--format", help="boamps, boamps-training, cyclonedx, spdx, sci or prometheus.")
    ],
    out: OutFile = None,
    as_json: AsJson = False,
) -> None:
    """Write the results of a run in the words of another tool or standard.

    An estimate enters only where it can be called one. No claim of compliance with anything.

    Example: compressor export-results runs/minilm-sentiment --format cyclonedx --out bom.json
    """
    from compressor.integrations.exports import export_results as export
    from compressor.pipeline.reading import report_of_run

    text = export(report_of_run(run), format_)
    if out is not None:
        write_file(out, text)
    if as_json:
        print_json({"format": format_, "text": text, "written": None if out is None else str(out)})
    elif out is None:
        print(text, end="")
