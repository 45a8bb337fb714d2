"""Reports made up by hand: a teacher and what came of it, with the figures a test asks for."""

from __future__ import annotations

from typing import Any

from compressor.schema.report import (
    Candidate,
    EnergyFigure,
    Interval,
    Measurement,
    Paired,
    Quality,
    Ratio,
    Report,
)

SESSION = "s/rows"


def interval(bounds: tuple[float, float] | None) -> Interval | None:
    return None if bounds is None else Interval(low=bounds[0], high=bounds[1])


def ratio(value: float, ci95: tuple[float, float] | None, against: str = "teacher") -> Ratio:
    return Ratio(against=against, value=value, ci95=interval(ci95))


def accuracy(value: float, delta_ci: tuple[float, float] | None = None, base: float = 0.865) -> Quality:
    paired = None
    if delta_ci is not None:
        ci95 = Interval(low=delta_ci[0], high=delta_ci[1])
        paired = Paired(against="teacher", delta=value - base, ci95=ci95, test="mcnemar", p_value=0.5)
    return Quality(metric="accuracy", dataset="d", split="test", value=value, ci95=None, n=1000, paired=paired)


def measured(
    cpu: Ratio | None = None,
    *,
    source: Ratio | None = None,
    workload: str = "rows",
    phase: str = "forward",
    kind: str = "estimated",
    **parts: Any,
) -> Measurement:
    values: dict[str, Any] = {
        "workload": workload,
        "phase": phase,
        "session": SESSION,
        "profile": "quick",
        "batch": 8,
        "threads": 2,
        "rounds": 5,
        "tokens": 1000,
        "requests": 32,
        "padding_ratio": 0.1,
        "latency_s_p50": 0.01,
        "latency_s_p95": 0.02,
        "tokens_per_s": 1000.0,
        "cpu_s_per_token": 1e-3,
        "cpu_s_per_token_ci95": None,
        "cpu_s_per_token_ratio": cpu,
        "latency_ratio": cpu,
        "cpu_s_per_token_ratio_to_source": source,
        "peak_memory_bytes": None,
        "energy": EnergyFigure(result={"kind": kind}, reason=None),
        "valid": True,
    }
    return Measurement.model_validate({**values, **parts})


def candidate(id_: str, *, scheme: str = "fp32", scratch: bool = False, **parts: Any) -> Candidate:
    values: dict[str, Any] = {
        "id": id_,
        "stage": id_,
        "checkpoint": "c",
        "digest": "d",
        "variant": "v",
        "runtime": "torch" if id_ == "teacher" else "onnxruntime",
        "scheme": scheme,
        "scratch": scratch,
        "parameters": 1000,
        "size_bytes": 4000,
    }
    return Candidate.model_validate({**values, **parts})


TEACHER = candidate("teacher", quality=(accuracy(0.865),), measurements=(measured(),))


def report(*candidates: Candidate, resolution: float | None = 1.02, **parts: Any) -> Report:
    values: dict[str, Any] = {
        "name": "made-up",
        "created": "2026-01-01T00:00:00+00:00",
        "metadata": {},
        "pipeline": {"workloads": [{"id": "rows"}], "goals": []},
        "environment": {
            "cpu_flags": ["avx2"],
            "sessions": {SESSION: {"aa": {"forward": {"resolution": resolution}}}},
        },
        "data": {},
        "model": "m",
        "baseline": "teacher",
        "selected": None,
        "selected_reason": "",
        "candidates": (TEACHER, *candidates),
        "goals": (),
        "verdicts": (),
        "stage_costs": (),
        "failures": (),
    }
    return Report.model_validate({**values, **parts})
