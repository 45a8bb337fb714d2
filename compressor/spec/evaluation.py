"""On what, how and against which goals the candidates are judged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from compressor.spec.base import Fraction, Part, PositiveFloat, PositiveInt, Slug


class Target(Part):
    """Where the compressed model will run."""

    device: Literal["cpu", "cuda"] = "cpu"
    provider: str = "CPUExecutionProvider"
    """ONNX Runtime execution provider."""
    threads: PositiveInt | None = None
    """Threads of one inference; all cores where absent. The number used is recorded."""


class Workload(Part):
    """One shape of use, on which latency, CPU-seconds and energy are measured.

    Encoders run the phase `forward`; decoders `prefill` and, with `output_tokens`, `decode`.
    """

    id: Slug
    batch: PositiveInt = 1
    from_data: bool = False
    """Rows of the test split, padded to the longest of their batch."""
    input_tokens: PositiveInt | None = None
    """Text of the test split cut to exactly this many tokens, no padding."""
    output_tokens: PositiveInt | None = None
    """Tokens generated after the prompt (decoders); the longest of the lengths that the slope is fitted over."""
    rows: PositiveInt = 256
    """With `from_data`: how many rows, from the start of the file."""
    order: Literal["file", "length"] = "file"
    """With `from_data`: rows as they stand, or sorted by length."""
    threads: PositiveInt | None = None
    """Where it differs from `target.threads`."""
    candidates: Literal["all", "ends"] = "all"
    """Who runs it: every candidate, or only the baseline and the last of each branch (a smaller session)."""
    weight: PositiveFloat = 1.0
    """Share in the mix that selects the winner."""

    @model_validator(mode="after")
    def _one_way(self) -> Workload:
        if self.from_data == (self.input_tokens is not None):
            raise ValueError("give exactly one of: from_data, input_tokens")
        for key in ("rows", "order"):
            if not self.from_data and key in self.model_fields_set:
                raise ValueError(f"`{key}` goes with `from_data: true`")
        return self


class Evaluate(Part):
    """What is measured on the test split."""

    metrics: tuple[str, ...] = ()
    """The task's own metrics where empty."""
    baseline: Slug | None = None
    """The candidate all others are held against: a stage or `model`. The first fine-tuned stage where absent."""
    rows: PositiveInt | None = None
    """Judge quality on the first rows only."""
    context: PositiveInt = 512
    """Tokens that a language model sees at once."""
    stride: PositiveInt = 256
    """Tokens by which its window moves; each token is predicted once."""
    intermediates: bool = True
    """Measure torch stages in ONNX Runtime as well, through a scratch export."""
    select: Slug | None = None
    """Name the winner instead of letting the goals choose."""
    max_label_drop_points: float | None = Field(default=None, ge=0)
    """Points of recall that each label may lose against the baseline for a candidate to be certified."""

    @model_validator(mode="after")
    def _covers_all(self) -> Evaluate:
        if self.stride > self.context:
            raise ValueError(f"stride {self.stride} is longer than context {self.context}: tokens would be left out")
        return self


class Carbon(Part):
    """Grams of CO2 equivalent for a kilowatt-hour, as somebody published them; nothing is looked up."""

    g_per_kwh: float = Field(ge=0)
    """Of the grid at the place of the run (location-based)."""
    region: str = "grid not named"
    year: int
    source: str
    kind: Literal["average", "marginal"] = "average"
    """Of all generation, or of the plant that one more kilowatt-hour calls on."""
    market_g_per_kwh: float | None = Field(default=None, ge=0)
    """Of the contracts bought (market-based), as a second figure."""
    market_source: str | None = None

    @model_validator(mode="after")
    def _sourced(self) -> Carbon:
        _go_together(self, "market_g_per_kwh", "market_source")
        return self


class Energy(Part):
    """How joules are read, and what is assumed to make of them those of a building, and carbon."""

    profile: Literal["smoke", "quick", "standard", "publish"] = "quick"
    """5 rounds of 3 s, 10 of 10 s, or 10 of 60 s; `smoke` (3 of 0.2 s) only shows that the path works."""
    accept: Literal["measured", "estimated"] = "measured"
    """Whether a goal in joules may be judged on an estimate."""
    calibration: str | None = None
    """File that `compressor energy calibrate` wrote on this machine: estimates use its watts, and stay estimates."""
    pue: float | None = Field(default=None, ge=1)
    """Power usage effectiveness: energy of the building over that of its machines."""
    pue_source: str | None = None
    cop: PositiveFloat | None = None
    """In place of `pue`: heat that the cooling removes per joule of its work."""
    cop_source: str | None = None
    heat_share: Fraction = 1.0
    """With `cop`: share of the heat that the cooling must remove."""
    carbon: Carbon | None = None

    @model_validator(mode="after")
    def _sourced(self) -> Energy:
        _go_together(self, "pue", "pue_source")
        _go_together(self, "cop", "cop_source")
        if self.pue is not None and self.cop is not None:
            raise ValueError("give one of: pue, cop")
        if self.cop is None and "heat_share" in self.model_fields_set:
            raise ValueError("`heat_share` goes with `cop`")
        return self


def _go_together(part: Part, number: str, source: str) -> None:
    if (getattr(part, number) is None) != (getattr(part, source) is None):
        raise ValueError(f"`{number}` and `{source}` go together: a factor needs its source, and a source its factor")


class Goal(Part):
    """One promise, checked on the selected candidate against the baseline."""

    metric: str
    """A quality metric, or `latency_s`, `cpu_s_per_token`, `j_per_token`, `size_bytes`, `parameters`."""
    workload: Slug | None = None
    """For costs: on which workload."""
    phase: Literal["forward", "prefill", "decode"] | None = None
    against: Literal["baseline"] = "baseline"
    min_retained: Fraction | None = None
    """At least this share of the baseline's value."""
    max_drop_points: float | None = Field(default=None, ge=0)
    """At most this many points (hundredths) below the baseline."""
    max_ratio: PositiveFloat | None = None
    """At most this multiple of the baseline's value."""

    @model_validator(mode="after")
    def _one_way(self) -> Goal:
        if sum(limit is not None for limit in (self.min_retained, self.max_drop_points, self.max_ratio)) != 1:
            raise ValueError("give exactly one of: min_retained, max_drop_points, max_ratio")
        return self
