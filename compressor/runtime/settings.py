"""Runtime settings: how a variant is run, apart from what it is. They travel in the manifest's `variants[].settings`.

Three kinds: those of an ONNX Runtime session, those of torch, and those of a call (how texts become batches). A runner
applies the first two, `compressor.load` the third.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.errors import UserError

SESSION_SETTINGS = (
    "allow_spinning",
    "graph_optimisation",
    "io_binding",
    "memory_arena",
    "memory_pattern",
    "x64_quant_precision",
)
"""Of ONNX Runtime: booleans, and `graph_optimisation`, a level. Its own choice where one is absent.

`x64_quant_precision` adds 8-bit products up in 32 bits where a processor without VNNI would do so in 16 and clip."""
TORCH_SETTINGS = ("compile",)
"""Of torch: `compile` runs the module through `torch.compile`."""
CALL_SETTINGS = ("batch_size", "sort_by_length")
"""Of a call: texts in one batch, and whether texts of like length go together."""


def runner_settings(settings: Mapping[str, Any], runtime: str) -> dict[str, Any]:
    """The settings that a runner of this runtime applies; those of a call are left out, and `threads` too.

    Raises:
        UserError: a setting that this runtime does not have.
    """
    own = SESSION_SETTINGS if runtime == "onnxruntime" else TORCH_SETTINGS
    rest = {name: value for name, value in settings.items() if name not in (*CALL_SETTINGS, "threads")}
    unknown = sorted(set(rest) - set(own))
    if unknown:
        name = "ONNX Runtime" if runtime == "onnxruntime" else runtime
        raise UserError(
            f"{name} has no runtime setting {unknown[0]!r}; there are: {', '.join(own)}",
            where="settings",
            hint=f"and for any runtime: threads, {', '.join(CALL_SETTINGS)}",
        )
    return rest
