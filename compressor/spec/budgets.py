"""What a searched pruning may spend: shares of the dense model (`0.6x`) or absolute figures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from compressor.spec.base import Part, Slug

_RATIO = re.compile(r"(\d*\.?\d+)\s*x")

MEASURED = ("joules_per_token", "cpu_s_per_token", "latency_s", "size_bytes")
"""Limits that are read from a cost table of the target, and held against the exported model."""
COUNTED = ("macs", "parameters")


@dataclass(frozen=True)
class Limit:
    """One limit as it is understood: a share of the dense model, or an amount in the key's unit."""

    ratio: float | None = None
    amount: float | None = None

    def of(self, dense: float) -> float:
        """The limit in the unit of `dense`."""
        if self.ratio is not None:
            return self.ratio * dense
        assert self.amount is not None
        return self.amount

    def __str__(self) -> str:
        return f"{self.ratio:g}x" if self.ratio is not None else f"{self.amount:g}"


def read_limit(value: float | str) -> Limit:
    """`0.6x`, or a positive number.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, str):
        found = _RATIO.fullmatch(value.strip())
        if found is None:
            return read_limit(_number(value))
        ratio = float(found[1])
        if not 0.0 < ratio < 1.0:
            raise ValueError(f"a budget must leave something and take something away: between 0x and 1x, not {value}")
        return Limit(ratio=ratio)
    if value <= 0:
        raise ValueError(f"a budget must be above 0, not {value:g}")
    return Limit(amount=float(value))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"a budget is a share of the dense model, such as 0.6x, or a positive number; not {text!r}"
        ) from None


def _checked(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("a budget is a share of the dense model, such as 0.6x, or a positive number")
    read_limit(value)
    return value


def _checked_count(value: Any) -> Any:
    """Shares of what is counted may be written plainly: no model has one parameter or less."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1:
        value = f"{value}x"
    return _checked(value)


_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": r"^\s*\d*\.?\d+\s*x\s*$"}]}
)
Amount = Annotated[float | str, BeforeValidator(_checked), _SCHEMA]
"""`0.6x` of the dense model, or an absolute amount."""
Count = Annotated[float | str, BeforeValidator(_checked_count), _SCHEMA]
"""The same; a plain number up to 1 is a share."""


class PruneBudget(Part):
    """What a searched pruning may spend. Each is a share of the dense model (`0.6x`) or an absolute amount; the first
    that is given, in this order, decides, and the others are limits besides."""

    joules_per_token: Amount | None = None
    """Joules for each token of the workloads, where they are measured or `energy.accept` is `estimated`."""
    cpu_s_per_token: Amount | None = None
    """CPU-seconds for each token of the workloads, measured on the target."""
    latency_s: Amount | None = None
    """Seconds of one call (a batch, a prompt, or one step of decoding), measured on the target."""
    size_bytes: Amount | None = None
    """Bytes of the exported file."""
    macs: Count | None = None
    """Multiply-accumulates of the layers per token."""
    parameters: Count | None = None
    """Parameters of the layers."""
    workload: Slug | None = None
    """The workload whose calls are counted; all, by their weights, where absent."""
    phase: Literal["forward", "prefill", "decode"] | None = None
    """The phase that is counted; all, by their tokens, where absent."""

    @model_validator(mode="after")
    def _something(self) -> PruneBudget:
        if not self.limits:
            raise ValueError(f"give at least one of: {', '.join((*MEASURED, *COUNTED))}")
        if not self.is_measured and (self.workload is not None or self.phase is not None):
            raise ValueError("`workload` and `phase` go with what is measured: " + ", ".join(MEASURED))
        return self

    @property
    def limits(self) -> dict[str, Limit]:
        """Name -> limit, the deciding one first."""
        given = {name: getattr(self, name) for name in (*MEASURED, *COUNTED)}
        return {name: read_limit(value) for name, value in given.items() if value is not None}

    @property
    def is_measured(self) -> bool:
        """Whether a cost table is needed."""
        return any(name in MEASURED for name in self.limits)


Shipped = Literal["fp32", "int8", "mixed"]
"""What becomes of a model: all of it in one precision, or INT8 but for the sublayers that a search left in fp32."""


class Search(Part):
    """How a budget is spent."""

    swaps: Annotated[int, Field(ge=0)] = 40
    """Moves tried on the true loss after the search on summed scores; each trades a level of one sublayer for one of
    another."""
    levels: Annotated[int, Field(ge=2)] = 7
    """Sizes scored for each sublayer, from nothing to everything."""
    score_rows: Annotated[int, Field(gt=0)] = 64
    """Calibration rows (windows for decoders) on which options are scored; the others rank and refit."""
    precision: Shipped = "fp32"
    """What will ship: `int8` takes costs and scores of `w8a8-dynamic` weights; `mixed` chooses size and precision of
    every sublayer together, for `scheme: w8a8-dynamic` with `exclude: searched` after the export."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """How far from the budget the exported model may be, or as far as the dense model is from itself (A/A)."""
    rescale: Annotated[int, Field(ge=0)] = 3
    """Times that the budget is corrected by what the exported model measured."""
    cost_table: str | None = None
    """A table to use in place of one measured here."""
    accept_other_device: bool = False
    """Believe a `cost_table` of another device."""
