"""Gates against numbers that cannot be: a wrong unit, a missed wrap, energy booked to the wrong work.

References are figures that others published or that follow from a roofline. A figure outside ten times its reference
range is worth a warning, outside a hundred times it is refused. They say nothing of which of two models is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compressor.energy.counter import CounterFault, idle_powers
from compressor.energy.domain import CounterWindow
from compressor.energy.types import MeasuredEnergy
from compressor.errors import EnergyError

Verdict = Literal["ok", "warn", "fail"]
WARN_FACTOR = 10.0
FAIL_FACTOR = 100.0
# 32-bit to 8-bit weights move a quarter of the bytes; decoding is bound by those.
MAX_INT8_DECODE_SAVING = 4.0
POWER_RATE_TOLERANCE = 0.01


@dataclass(frozen=True)
class Reference:
    """A published range.

    Attributes:
        key: ``j_per_generated_token`` or ``j_per_request``.
        low: joules.
        high: joules.
        what: model, hardware and scope.
        source: where from.
    """

    key: str
    low: float
    high: float
    what: str
    source: str


REFERENCES = {
    "llama-3.1-8b-h100": Reference(
        "j_per_generated_token", 0.070, 0.455, "Llama-3.1-8B, one H100, concurrency 512 to 8, GPU scope", "ML.ENERGY"
    ),
    "tinyllama-1.1b-batch1": Reference(
        "j_per_generated_token", 1.7, 4.3, "TinyLlama-1.1B, batch 1", "published measurements"
    ),
    "distilbert-gpu": Reference("j_per_request", 0.22, 0.22, "DistilBERT class, GPU scope", "published measurements"),
    "bert-base-2vcpu": Reference("j_per_request", 0.8, 1.4, "BERT-base, 128 tokens, two Zen 3 vCPUs", "roofline"),
    "gpt2-fp32-2vcpu": Reference(
        "j_per_generated_token", 0.1, 0.2, "GPT-2 124M FP32 decode, two Zen 3 vCPUs", "roofline"
    ),
}


# Below this size, what a call costs besides multiplying decides, and no reference says anything.
SMALLEST_SCALED = 10_000_000
_SCALED_FROM = {
    # Phase -> reference, its parameters, and tokens behind one of its units.
    "forward": ("bert-base-2vcpu", 110_000_000, 128),
    "prefill": ("bert-base-2vcpu", 110_000_000, 128),
    "decode": ("gpt2-fp32-2vcpu", 124_000_000, 1),
}


def reference_for_token(phase: Literal["forward", "prefill", "decode"], parameters: int) -> Reference | None:
    """The roofline of a model of this size on a CPU, for one token; None where the model is too small for one.

    The work of a token grows with the parameters, so BERT-base (inputs) and GPT-2 (decoding) serve for other sizes.
    """
    if parameters < SMALLEST_SCALED:
        return None
    name, of_parameters, n_tokens = _SCALED_FROM[phase]
    base = REFERENCES[name]
    scale = parameters / of_parameters / n_tokens
    key = "j_per_generated_token" if phase == "decode" else "j_per_input_token"
    what = f"{base.what}, scaled to {parameters / 1e6:.0f}M parameters"
    return Reference(key, base.low * scale, base.high * scale, what, base.source)


def check_against(reference: Reference, value_j: float) -> Verdict:
    """Compare a figure with a published range: `warn` outside ten times it, `fail` outside a hundred times."""
    if reference.low / FAIL_FACTOR <= value_j <= reference.high * FAIL_FACTOR:
        within = reference.low / WARN_FACTOR <= value_j <= reference.high * WARN_FACTOR
        return "ok" if within else "warn"
    return "fail"


def check_mean_power(mean_w: float, *, idle_w: float, ceiling_w: float) -> None:
    """Mean power lies between idle and the ceiling.

    Raises:
        EnergyError: it does not.
    """
    if not idle_w <= mean_w <= ceiling_w:
        raise EnergyError(f"a mean power of {mean_w:.4g} W is not between idle ({idle_w:.4g} W) and {ceiling_w:.4g} W")


def check_reading(reading: MeasuredEnergy, *, n_tokens: float, wall_s: float) -> None:
    """Hold a reading against its own log, and against the clock of the work that it is booked to.

    Args:
        reading: of a window or of several.
        n_tokens: done in it.
        wall_s: seconds that the work took by its own clock.

    Raises:
        EnergyError: a mean power below idle or above the domains' ceilings, or a reading over another time than the
            work's.
    """
    idle_j = sum(_least_idle_w(window) * window.wall_s for window in reading.windows)
    most_j = sum(_ceiling_w(window) * window.wall_s for window in reading.windows)
    check_mean_power(reading.mean_power_w, idle_w=idle_j / reading.wall_s, ceiling_w=most_j / reading.wall_s)
    check_rate(reading.energy_gross_j / n_tokens, n_tokens / wall_s, reading.mean_power_w)


def _least_idle_w(window: CounterWindow) -> float:
    """The lower of the idles before and after; 0 W, which nothing undercuts, where they say nothing."""
    try:
        return float(min(idle_powers(window)))
    except CounterFault:
        return 0.0


def _ceiling_w(window: CounterWindow) -> float:
    return sum(log.domain.ceiling_w for log in window.logs if log.domain.checks is None)


def check_rate(j_per_token: float, tokens_per_s: float, mean_w: float) -> None:
    """Joules per token times tokens per second is the mean power, within 1 %.

    Raises:
        EnergyError: energy and speed do not come from the same window.
    """
    implied_w = j_per_token * tokens_per_s
    if abs(implied_w - mean_w) > POWER_RATE_TOLERANCE * mean_w:
        raise EnergyError(
            f"{j_per_token:.4g} J/token x {tokens_per_s:.4g} tokens/s is {implied_w:.4g} W, but the mean power was "
            f"{mean_w:.4g} W; energy and speed were not taken over the same work"
        )


def check_int8_saving(fp32_j_per_token: float, int8_j_per_token: float) -> None:
    """INT8 weights cut decode energy to a quarter at best.

    Raises:
        EnergyError: a larger saving, which is a bug in the measurement.
    """
    if int8_j_per_token * MAX_INT8_DECODE_SAVING < fp32_j_per_token:
        raise EnergyError(
            f"INT8 decode at {int8_j_per_token:.4g} J/token against FP32 at {fp32_j_per_token:.4g} J/token saves more "
            f"than a factor of {MAX_INT8_DECODE_SAVING:g}, which the weights' size does not allow"
        )
