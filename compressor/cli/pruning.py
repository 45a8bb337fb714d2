"""`compressor prune`: a model to a budget, from a folder and some text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from compressor.cli.output import AsJson, print_json, print_rich, say, table
from compressor.errors import UserError

if TYPE_CHECKING:
    from compressor.pipeline.quick_prune import Pruned
    from compressor.spec.budgets import PruneBudget


def prune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, checkpoint or hub name.")],
    *,
    budget: Annotated[
        list[str],
        typer.Option(
            metavar="BUDGET",
            help="What a token may cost: 0.6x of the dense model's CPU-seconds, or KEY=VALUE with joules_per_token, "
            "cpu_s_per_token, latency_s, size_bytes, macs or parameters; may be repeated.",
        ),
    ],
    data: Annotated[
        Path, typer.Option(metavar="FILE", help="Text as the model sees it in use, without labels: a line or row each.")
    ],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to make; MODEL-pruned where absent.")] = None,
    column: Annotated[str, typer.Option(help="Column of the text, where FILE has columns.")] = "text",
    batch: Annotated[int | None, typer.Option(min=1, help="Rows in one measured batch.")] = None,
    input_tokens: Annotated[
        int | None, typer.Option(min=1, help="Measure on texts of this length instead of rows as they are.")
    ] = None,
    output_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to generate, for language models.")] = None,
    phase: Annotated[
        Literal["forward", "prefill", "decode"] | None, typer.Option(help="Count only this phase.")
    ] = None,
    precision: Annotated[Literal["fp32", "int8"], typer.Option(help="What ships.")] = "fp32",
    granule: Annotated[
        int | None, typer.Option(min=1, help="Neurons kept are a multiple of this; this device's own where absent.")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows or windows of text to use.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of a row or window.")] = None,
    swaps: Annotated[int, typer.Option(min=0, help="Moves tried on the true loss.")] = 40,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of one inference.")] = None,
    cost_table: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A cost table to use; measured and kept where absent.")
    ] = None,
    accept_other_device: Annotated[
        bool, typer.Option("--accept-other-device", help="Believe a cost table of another device.")
    ] = False,
    accept_estimates: Annotated[
        bool, typer.Option("--accept-estimates", help="Let a budget in joules be held on estimates.")
    ] = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Prune heads and neurons until a token costs what you say, in minutes and without labels.

    The structure is chosen by costs measured on this machine, exported to ONNX, and measured again.

    Example: compressor prune sentence-transformers/all-MiniLM-L6-v2 --budget 0.6x --data texts.txt
    """
    from compressor.cli.progress import watching
    from compressor.pipeline.quick_prune import prune_folder
    from compressor.spec.budgets import Search
    from compressor.spec.evaluation import Workload

    limits = read_budget(budget, phase)
    workloads = []
    if input_tokens is not None or output_tokens is not None:
        workloads = [
            Workload(id="calls", batch=batch or 1, input_tokens=input_tokens or 128, output_tokens=output_tokens)
        ]
    elif batch is not None:
        workloads = [Workload(id="rows", batch=batch, from_data=True)]
    with watching(quiet=quiet) as on_event:
        made = prune_folder(
            model,
            budget=limits,
            data=data,
            out=out if out is not None else Path(f"{Path(model).name}-pruned"),
            columns={"text": column} if column != "text" else {},
            workloads=workloads,
            search=Search(
                swaps=swaps,
                precision=precision,
                cost_table=None if cost_table is None else str(cost_table),
                accept_other_device=accept_other_device,
            ),
            granule=granule,
            rows=rows,
            max_tokens=max_tokens,
            threads=threads,
            accept_estimates=accept_estimates,
            on_event=on_event,
        )
    _show(made, as_json=as_json)


def read_budget(texts: list[str], phase: str | None) -> PruneBudget:
    """`0.6x` (of CPU-seconds a token), or `key=value`, once or several times.

    Raises:
        UserError: a key that does not exist, a value that is no budget, or a key given twice.
    """
    from pydantic import ValidationError

    from compressor.spec.budgets import COUNTED, MEASURED, PruneBudget

    given: dict[str, Any] = {} if phase is None else {"phase": phase}
    for text in texts:
        key, _, value = text.rpartition("=")
        key = key or "cpu_s_per_token"
        if key not in (*MEASURED, *COUNTED):
            raise UserError(
                f"there is no budget {key!r}", where="--budget", hint="one of: " + ", ".join((*MEASURED, *COUNTED))
            )
        if key in given:
            raise UserError(f"the budget {key} is given twice", where="--budget")
        given[key] = value
    try:
        return PruneBudget.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(
            str(first.get("ctx", {}).get("error", first["msg"])), where="--budget", hint="such as --budget 0.6x"
        ) from None


def _show(made: Pruned, *, as_json: bool) -> None:
    if as_json:
        final = None if made.final is None else made.final.to_json()
        print_json(
            {
                "path": str(made.checkpoint.path),
                "structure": made.structure,
                "choice": made.choice,
                "final": final,
                "tolerance": made.tolerance,
            }
        )
        return
    print_rich(table(["layer", ">heads", ">neurons"], _layers(made.structure)), "", table(["", ""], _facts(made)))
    say(f"made: {made.checkpoint.path}")


def _layers(structure: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    most = max((layer["ffn_width"] for layer in structure["layers"]), default=0)
    return [
        (str(number), f"{layer['n_heads']}  {'■' * layer['n_heads']}", f"{layer['ffn_width']}  {_bar(layer, most)}")
        for number, layer in enumerate(structure["layers"])
    ]


def _bar(layer: Mapping[str, Any], most: int) -> str:
    return "▇" * round(12 * layer["ffn_width"] / most) if most else ""


def _facts(made: Pruned) -> list[tuple[str, str]]:
    choice = made.choice
    rows = [
        ("budget", ", ".join(f"{name} {limit}" for name, limit in choice["budget"].items())),
        ("predicted", f"{choice['predicted_cost_ratio']:.3f} of dense"),
        ("loss on held-out rows", f"{choice['loss']:.4g}, before swaps {choice['loss_before_swaps']:.4g}"),
    ]
    final = made.final
    if final is None or made.tolerance is None:
        return rows
    low, high = final.ratio_ci95 or (final.ratio, final.ratio)
    rows += [
        ("measured CPU-seconds a token", f"{final.ratio:.3f} of dense (95 % interval {low:.3f} to {high:.3f})"),
        ("the dense model against itself", f"within {final.aa_bound:.1%} in this session (A/A)"),
        ("the budget may be missed by", f"{made.tolerance:.1%}: 2 %, or the A/A interval where that is wider"),
        ("latency of a call", f"{final.latency_s * 1e3:.2f} ms, dense {final.dense_latency_s * 1e3:.2f} ms"),
        ("size", f"{final.size_bytes / 1e6:.1f} MB, dense {final.dense_size_bytes / 1e6:.1f} MB"),
    ]
    if final.energy_j is not None:
        mark = "" if final.energy_kind == "measured" else "~"
        rows.append(("joules a token", f"{mark}{final.energy_j:.3g} ({final.energy_kind})"))
    return rows
