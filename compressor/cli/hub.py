"""`compressor push` and `certify`: what goes out of the house, and whether it may."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.cli.output import AsJson, print_json, print_rich, table, write_file
from compressor.errors import GoalError, UserError

if TYPE_CHECKING:
    from compressor.schema.certificate import Certificate

Pairs = list[str] | None


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run, or of one of its stages.")],
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Where to; made where there is none.")],
    *,
    candidate: Annotated[str | None, typer.Option(metavar="ID", help="The selected one where absent.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
    licence: Annotated[str | None, typer.Option(help="Of the weights; the pipeline's where absent.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    private: Annotated[bool, typer.Option("--private", help="If the repository is made now.")] = False,
    branch: Annotated[str | None, typer.Option(help="To commit to; the main branch where absent.")] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a finished candidate to the hub in one commit: weights, ONNX, manifest, certificate, report and card.

    Example: compressor push runs/minilm-sentiment my-org/minilm-sentiment-int8 --dry-run
    """
    from compressor.integrations.push import push as push_run
    from compressor.integrations.push import summary

    found = push_run(
        run,
        repository,
        candidate=candidate,
        licence=licence,
        message=message,
        private=private,
        branch=branch,
        dry_run=dry_run,
    )
    if as_json:
        print_json(found.to_json())
        return
    print_rich(table(["", ""], list(summary(found).items())))
    if dry_run:
        rows = [(one.path, f"{one.size_bytes:,}", (one.sha256 or "written for the commit")[:22]) for one in found.files]
        print_rich("", table(["file", ">bytes", "sha256"], rows))


def certify(
    path: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT", help="A finished run, a folder, or a hub name.")],
    *,
    baseline: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Held against this; a run knows its own.")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="Rows to judge on; a run knows its own.")] = None,
    columns: Annotated[Pairs, typer.Option("--column", metavar="TASK=FILE", help="Where names differ.")] = None,
    max_drop: Annotated[Pairs, typer.Option(metavar="METRIC=POINTS", help="At most so many points lost.")] = None,
    min_retained: Annotated[Pairs, typer.Option(metavar="METRIC=SHARE", help="At least this share kept.")] = None,
    max_label_drop: Annotated[
        float | None, typer.Option(metavar="POINTS", min=0, help="Recall that each label may lose.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="Which variant, as `compressor predict` takes it.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Judge on the first rows only.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of one inference.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the certificate to this file too.")] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Judge a file against its baseline again, on this machine; exit code 3 where it is not certified.

    Example: compressor certify my-org/small --baseline my-org/big --data test.jsonl --max-drop accuracy=1.0
    """
    from compressor.cli.progress import watching

    limits: list[dict[str, str | float]] = [
        {"metric": name, "max_drop_points": value} for name, value in _numbers(max_drop, "--max-drop")
    ]
    limits += [{"metric": name, "min_retained": value} for name, value in _numbers(min_retained, "--min-retained")]
    named = _pairs(columns, "--column")
    with watching(quiet=quiet) as on_event:
        if (Path(path) / "run.json").is_file():
            from compressor.integrations.recertify import certify_run

            found = certify_run(
                Path(path),
                data=None if data is None else str(data),
                baseline=baseline,
                columns=named or None,
                goals=limits,
                max_label_drop_points=max_label_drop,
                rows=rows,
                threads=threads,
                on_event=on_event,
            )
        else:
            from compressor.measurement.certify import certify as certify_file

            if baseline is None or data is None:
                missing = "--baseline MODEL" if baseline is None else "--data FILE"
                raise UserError(
                    f"a checkpoint by itself needs {missing}", hint="or certify the run: it knows its baseline and rows"
                )
            found = certify_file(
                path,
                baseline=baseline,
                data=str(data),
                columns=named,
                goals=limits,
                max_label_drop_points=max_label_drop,
                precision=precision,
                evaluate={"rows": rows},
                target={"threads": threads},
                on_event=on_event,
            )
    if out is not None:
        write_file(out, found.model_dump_json(by_alias=True, indent=1) + "\n")
    if as_json:
        print(found.model_dump_json(by_alias=True, indent=1))
    else:
        _show(found)
    if not found.certified:
        raise GoalError(found.sentence())


def _show(found: Certificate) -> None:
    rows = [
        (
            one.metric if one.label is None else f"{one.metric} of {one.label}",
            str(one.n),
            "-" if one.value is None else f"{one.value:.4f}",
            "-" if one.baseline is None else f"{one.baseline:.4f}",
            "-" if one.delta is None else f"{one.delta:+.4f} ({one.delta_low:+.4f} to {one.delta_high:+.4f})",
            one.status.replace("_", " "),
        )
        for one in found.figures
    ]
    columns = ["metric", ">n", ">value", ">baseline", ">difference (95 %)", "limit"]
    print_rich(f"{found.of.variant}: {found.sentence()}", "", table(columns, rows))


def _pairs(given: Pairs, option: str) -> dict[str, str]:
    for one in given or []:
        if "=" not in one:
            raise UserError(f"{option} {one!r} is not of the form NAME=VALUE", hint="such as accuracy=1.0")
    return dict(one.split("=", 1) for one in given or [])


def _numbers(given: Pairs, option: str) -> list[tuple[str, float]]:
    found = []
    for name, value in _pairs(given, option).items():
        try:
            found.append((name, float(value)))
        except ValueError:
            raise UserError(f"{option} {name}={value}: {value!r} is no number", hint="such as accuracy=1.0") from None
    return found
