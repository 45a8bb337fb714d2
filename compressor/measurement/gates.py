"""Gates before a figure enters a report: ten times off a reference is remarked upon, a hundred times is refused."""

from __future__ import annotations

from dataclasses import replace

from compressor import energy
from compressor.energy import sanity
from compressor.errors import EnergyError
from compressor.measurement.inputs import PreparedWorkload
from compressor.measurement.session import Session, Turn
from compressor.schema.report import EnergyFigure, Measurement

EIGHT_BIT = ("w8a8-dynamic", "w8a8-static", "w8")


def hold_readings(session: Session) -> Session:
    """The same session; a turn's joules are invalid, with the reason, where its mean power cannot be.

    Held turn by turn, before anything is made of them, so that figures, ratios and break-even all lose them.
    """
    runs = {
        id_: replace(
            run,
            turns={
                phase: [[_hold_reading(turn, session.prepared) for turn in taken] for taken in rounds]
                for phase, rounds in run.turns.items()
            },
        )
        for id_, run in session.runs.items()
    }
    return replace(session, runs=runs)


def _hold_reading(turn: Turn, prepared: PreparedWorkload) -> Turn:
    reading = turn.energy
    if not isinstance(reading, energy.MeasuredEnergy):
        return turn
    n_tokens = turn.passes * (turn.n_out * prepared.requests if turn.n_out > 1 else prepared.tokens)
    try:
        sanity.check_reading(reading, n_tokens=n_tokens, wall_s=turn.wall_s)
    except EnergyError as error:
        refused = energy.InvalidEnergy(error.message, reading.meter, reading.wall_s, reading.scopes, reading.windows)
        return replace(turn, energy=refused)
    return turn


def hold_to_gates(row: Measurement, *, scheme: str, parameters: int, on_cpu: bool) -> Measurement:
    """The same measurement; with a remark, or not valid, where it cannot be.

    Args:
        row: as it was measured.
        scheme: of the variant: how far its weights can help.
        parameters: of the variant: what a token costs on a processor.
        on_cpu: references exist for processors only.
    """
    return _hold_saving(_hold_joules(row, parameters, on_cpu=on_cpu), scheme)


def _hold_joules(row: Measurement, parameters: int, *, on_cpu: bool) -> Measurement:
    reference = sanity.reference_for_token(row.phase, parameters) if on_cpu else None
    if reference is None:
        return row
    figures = row.energy.figures
    value_j = figures.get(reference.key, figures.get(f"est_{reference.key}"))
    if value_j is None:
        return row
    verdict = sanity.check_against(reference, value_j)
    if verdict == "ok":
        return row
    estimated = "" if reference.key in figures else "estimated "
    unit = reference.key.removeprefix("j_per_").replace("_", " ")
    text = (
        f"{estimated}{value_j:.3g} J per {unit} lies more than {'100' if verdict == 'fail' else '10'} times off "
        f"{reference.low:.3g} to {reference.high:.3g} J ({reference.what}, {reference.source})"
    )
    if verdict == "warn":
        return row.model_copy(update={"remarks": (*row.remarks, text)})
    refused = EnergyFigure(result=None, reason=text)
    return row.model_copy(update={"energy": refused, "energy_ratio": None, "valid": False})


def _hold_saving(row: Measurement, scheme: str) -> Measurement:
    """8-bit weights are a quarter of 32-bit ones, so decoding can cost a quarter at best."""
    ratio = row.cpu_s_per_token_ratio_to_source
    if row.phase != "decode" or scheme not in EIGHT_BIT or ratio is None or ratio.ci95 is None:
        return row
    if ratio.ci95.high * sanity.MAX_INT8_DECODE_SAVING >= 1:
        return row
    text = (
        f"8-bit weights cannot cut the cost of decoding below a quarter, and {ratio.value:.3f} of that of "
        f"{ratio.against} was seen: an error of measurement, or not the same work"
    )
    return row.model_copy(update={"remarks": (*row.remarks, text), "valid": False})
