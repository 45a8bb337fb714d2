"""Every format that results can be exported to, by name. Each is a pure function of the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from compressor.errors import UserError
from compressor.integrations.boamps import boamps_inference, boamps_training
from compressor.integrations.bom import cyclonedx, spdx
from compressor.integrations.prometheus import prometheus
from compressor.integrations.sci import sci_inputs
from compressor.schema.report import Report


def _as_json(export: Callable[[Report], dict[str, Any]]) -> Callable[[Report], str]:
    return lambda report: json.dumps(export(report), indent=1, ensure_ascii=False) + "\n"


FORMATS: Mapping[str, Callable[[Report], str]] = {
    "boamps": _as_json(boamps_inference),
    "boamps-training": _as_json(boamps_training),
    "cyclonedx": _as_json(cyclonedx),
    "spdx": _as_json(spdx),
    "sci": _as_json(sci_inputs),
    "prometheus": prometheus,
}


def export_results(report: Report, format_: str) -> str:
    """The results of a run in the words of another tool or standard; no claim of compliance with anything.

    Raises:
        UserError: an unknown format, or a report with nothing to export.
    """
    if format_ not in FORMATS:
        raise UserError(f"there is no format {format_!r}", hint=f"one of: {', '.join(FORMATS)}")
    return FORMATS[format_](report)
