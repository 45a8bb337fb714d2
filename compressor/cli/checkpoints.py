"""`compressor inspect`, `predict`, `generate`, `layout` and `measure`: finished checkpoints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from compressor.cli.output import AsJson, megabytes, print_json, print_rich, table, write_file
from compressor.errors import UserError

if TYPE_CHECKING:
    from compressor.checkpoints.store import Checkpoint

Folder = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder.")]
Precision = Annotated[
    str | None, typer.Option(help="Which variant: fp32, fp16, w8a8-dynamic, ...; the last made where absent.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of one inference.")]


def inspect(
    checkpoint: Folder,
    *,
    verify: Annotated[bool, typer.Option(help="Hash every file against the manifest.")] = True,
    as_json: AsJson = False,
) -> None:
    """Show what a checkpoint is, how it came to be, and whether its files are whole.

    Example: compressor inspect runs/smoke/stages/int8-0123abcd
    """
    from compressor.checkpoints.store import open_checkpoint

    found = open_checkpoint(checkpoint, verify=verify)
    if as_json:
        print(found.manifest.model_dump_json(by_alias=True, indent=1))
    else:
        print_rich(*_checkpoint_tables(found, verified=verify))


def predict(
    checkpoint: Folder,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT...", help="Texts; else the lines of stdin.")
    ] = None,
    *,
    precision: Precision = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Ask a checkpoint about texts; a tab parts the two texts of a pair.

    Example: compressor predict runs/minilm-sentiment/stages/int8-0123abcd "A joy from start to end."
    """
    given = _given(texts)
    from compressor.runtime.load import load

    pairs = [tuple(text.split("\t", 1)) if "\t" in text else text for text in given]
    answers = load(checkpoint, precision=precision, threads=threads).predict(pairs)
    if as_json:
        named = ({"answers": answer} if isinstance(answer, list) else answer for answer in answers)
        print_json([{"text": text, **answer} for text, answer in zip(given, named, strict=True)])
    elif all(isinstance(answer, dict) and set(answer) == {"label", "score"} for answer in answers):
        rows = [
            (str(answer["label"]), f"{answer['score']:.4f}", text) for text, answer in zip(given, answers, strict=True)
        ]
        print_rich(table(["label", ">score", "text"], rows))
    else:
        told = [(json.dumps(answer, ensure_ascii=False), text) for text, answer in zip(given, answers, strict=True)]
        print_rich(table(["answer", "text"], told))


def generate(
    checkpoint: Folder,
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT...", help="Prompts; else the lines of stdin.")
    ] = None,
    *,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 64,
    precision: Precision = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Continue prompts with a language model.

    Example: compressor generate runs/smollm2-sotu/stages/int8-0123abcd "The state of the union is"
    """
    given = _given(prompts)
    from compressor.runtime.load import load

    answers = load(checkpoint, precision=precision, threads=threads).generate(given, max_new_tokens=max_new_tokens)
    if as_json:
        print_json([{"prompt": prompt, "text": text} for prompt, text in zip(given, answers, strict=True)])
        return
    for answer in answers:
        print(answer)


def export(
    checkpoint: Folder,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder.")],
    stock: Annotated[
        bool, typer.Option("--stock", help="A folder for plain from_pretrained: removed parts padded with zeros.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a pruned checkpoint as a stock Hugging Face model with equal answers.

    Example: compressor export runs/a/stages/pruned-0123abcd --stock --out pruned-stock
    """
    if not stock:
        raise UserError(
            "compressor export writes stock Hugging Face folders only",
            hint="add --stock; an ONNX graph is what a pipeline's stage `export` leaves",
        )
    from compressor.checkpoints.store import open_checkpoint
    from compressor.runtime.stock import write_stock

    before, after = write_stock(open_checkpoint(checkpoint), out)
    if as_json:
        print_json({"folder": str(out), "parameters": after, "parameters_pruned": before})
        return
    padding = "no padding" if after == before else f"{after - before:,} of them zeros that stock shapes need"
    print_rich(f"{out}: {after:,} parameters ({padding}); opens with plain from_pretrained")


def measure(
    folders: Annotated[
        list[str], typer.Argument(metavar="CHECKPOINT...", help="Checkpoints, model folders or hub names.")
    ],
    *,
    data: Annotated[Path, typer.Option(metavar="FILE", help="Rows to judge on: CSV, JSONL, Parquet or text.")],
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="TASK=FILE", help="Where names differ: --column text=sentence"),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows in one batch.")] = 8,
    input_tokens: Annotated[
        int | None, typer.Option(min=1, help="Measure cost on texts of this length instead of rows as they are.")
    ] = None,
    output_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to generate, for language models.")] = None,
    threads: Threads = None,
    profile: Annotated[
        Literal["smoke", "quick", "standard", "publish"], typer.Option(help="How long to measure.")
    ] = "quick",
    baseline: Annotated[
        str | None, typer.Option(metavar="ID", help="Candidate to hold the others against; the first where absent.")
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Measure quality, speed and energy of models on the same rows.

    Example: compressor measure runs/a/stages/onnx-0123abcd other-model --data rows.jsonl
    """
    from compressor.cli.progress import watching
    from compressor.cli.runs import show_report
    from compressor.measurement.folders import measure as measure_folders
    from compressor.spec.evaluation import Target, Workload

    if input_tokens is None:
        workload = Workload(id="rows", batch=batch, from_data=True, output_tokens=output_tokens)
    else:
        workload = Workload(id="texts", batch=batch, input_tokens=input_tokens, output_tokens=output_tokens)
    with watching(quiet=quiet) as on_event:
        report = measure_folders(
            folders,
            data=str(data),
            columns=_pairs(columns or []),
            workloads=[workload],
            target=Target(threads=threads),
            profile=profile,
            baseline=baseline,
            on_event=on_event,
        )
    show_report(report, as_json=as_json)


def layout(
    checkpoint: Folder,
    *,
    door: Annotated[
        Literal["tei", "transformersjs", "fastembed", "triton", "sentence-transformers", "openvino"],
        typer.Option("--for", help="Which runtime shall open it."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder.")],
    precision: Precision = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the doors table as Markdown.")] = None,
    as_json: AsJson = False,
) -> None:
    """Copy and rename a checkpoint's files as another runtime looks for them.

    Example: compressor layout runs/minilm-sentiment/stages/int8-0123abcd --for transformersjs --out web/model
    """
    from compressor.integrations.layout import lay_out
    from compressor.integrations.layout import markdown as as_markdown

    rows = lay_out(checkpoint, door, out, precision=precision)
    if markdown is not None:
        write_file(markdown, as_markdown(rows))
    if as_json:
        print_json([row.to_json() for row in rows])
        return
    cells = [
        (
            row.door,
            row.file,
            row.variant,
            "yes" if row.opened else "laid out only",
            "-" if row.difference is None else f"{row.difference:.1e} in {row.compared_in}",
            row.note,
        )
        for row in rows
    ]
    print_rich(table(["door", "file", "variant", "opened here", "difference", "note"], cells))


def _pairs(columns: list[str]) -> dict[str, str]:
    for column in columns:
        if "=" not in column:
            raise UserError(f"--column {column!r} is not of the form TASK=FILE", hint="such as --column text=sentence")
    return dict(column.split("=", 1) for column in columns)


def _given(texts: list[str] | None) -> list[str]:
    if texts:
        return texts
    if sys.stdin.isatty():
        raise UserError("no text was given", hint='write it after the checkpoint in quotes: "A joy from start to end."')
    lines = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not lines:
        raise UserError("no text was given: stdin is empty", hint="give texts as arguments, or one a line on stdin")
    return lines


def _checkpoint_tables(found: Checkpoint, *, verified: bool) -> list[object]:
    content, record = found.content, found.record
    made = f"{record.stage} ({record.kind}), {record.created}, {record.wall_s:.0f} s, {record.cpu_s:.0f} CPU-seconds"
    rows = [
        ("folder", str(found.path)),
        ("digest", found.digest),
        ("files", f"{len(content.files)}, {'all as the manifest says' if verified else 'not verified'}"),
        ("model", f"{content.architecture} ({content.model_type}), {content.task}"),
        ("labels", ", ".join(content.labels) if content.labels else "-"),
        ("structure", "stock" if content.structure is None else "pruned, not a stock shape"),
        ("made by", made),
        ("from", ", ".join(f"{role} {digest[:12]}" for role, digest in record.inputs.items()) or "-"),
    ]
    variants = [
        (v.id, v.runtime, v.scheme, f"{v.parameters:,}", megabytes(v.size_bytes), v.stage, v.path)
        for v in content.variants
    ]
    columns = ["variant", "runtime", "scheme", ">parameters", ">size", "stage", "file"]
    return [table(["", ""], rows), "", table(columns, variants)]
