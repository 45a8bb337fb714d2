"""`compressor meters`, `energy verify` and `energy calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compressor.cli.output import AsJson, print_json, print_rich, table
from compressor.errors import UserError

Watts = float | None


def meters(*, as_json: AsJson = False) -> None:
    """Show every energy meter, whether it can be used here, and what would help.

    Example: compressor meters
    """
    from compressor.energy import all_meters

    probes = [(meter, meter.probe()) for meter in all_meters()]
    if as_json:
        print_json([{"name": meter.name, "label": meter.label, **vars(probe)} for meter, probe in probes])
        return
    rows = [(meter.label, probe.status, probe.reason, probe.remedy or "-") for meter, probe in probes]
    print_rich(table(["meter", "status", "reason", "what would help"], rows))


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JSON file with energy records, such as report.json.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Recompute the joules in a file from the raw counter log beside them.

    Example: compressor energy verify runs/minilm-sentiment/report.json
    """
    from compressor.energy import verify_file

    results = verify_file(file)
    if as_json:
        print_json([{"energy_gross_j": r.energy_gross_j, "wall_s": r.wall_s, "meter": r.meter} for r in results])
    else:
        print_rich(*(str(result) for result in results), f"{file}: {len(results)} records follow from their raw logs")


def calibrate(
    *,
    idle_w: Annotated[Watts, typer.Option(min=0, help="Plug reading with the machine idle, in watts.")] = None,
    half_w: Annotated[Watts, typer.Option(min=0, help="Plug reading with half of the threads busy.")] = None,
    full_w: Annotated[Watts, typer.Option(min=0, help="Plug reading with all threads busy.")] = None,
    out: Annotated[Path, typer.Option(help="Where to write the calibration.")] = Path("calibration.json"),
    as_json: AsJson = False,
) -> None:
    """Fit this machine's watts to one, two or three readings of a plug meter.

    Estimates made with it are still called estimates; their band is narrower.

    Example: compressor energy calibrate --idle-w 21.5 --full-w 64
    """
    from compressor.energy import PlugReading, identify_cpu, save_calibration
    from compressor.energy import calibrate as fit

    given = ((0.0, idle_w), (0.5, half_w), (1.0, full_w))
    readings = [PlugReading(load=load, power_w=power_w) for load, power_w in given if power_w is not None]
    if not readings:
        raise UserError("no reading was given", hint="compressor energy calibrate --idle-w 21.5 --full-w 64")
    fitted = fit(readings, cpu=identify_cpu())
    save_calibration(fitted, out)
    if as_json:
        print_json(vars(fitted))
    else:
        print_rich(
            f"{fitted.idle_w:.1f} W idle, {fitted.dynamic_w:.1f} W more at full load, +-{fitted.band:.0%}: {out}"
        )
