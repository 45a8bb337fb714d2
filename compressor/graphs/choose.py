"""Which INT8 arithmetic fits this machine: decided by calibration error, not by rule.

Without VNNI, unsigned activations times signed weights are summed in 16 bits and may saturate; how much that costs
depends on the data. The same file can be right on one CPU and wrong on another.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from compressor.errors import DataError
from compressor.graphs.parity import ParityReport, compare_logits
from compressor.graphs.quantise import Feed, quantise_dynamic


@dataclass(frozen=True)
class Int8Option:
    """One way to compute in INT8, and how far it is off here.

    Attributes:
        name: ``u8s8``, ``u8s8-reduced`` (7-bit weights), ``u8u8`` or ``u8s8-precise`` (the same file as ``u8s8``, run
            with ``session.x64quantprecision=1``); per channel except ``u8s8-per-tensor``.
        per_channel, reduce_range, weight_type: arguments of ``quantise_dynamic``.
        session_config: entries for the session, to travel with the file.
        relative_error: root mean square of the output difference, relative to that of the output.
        parity: logits against those of the fp32 graph.
        size_bytes: of the file.
    """

    name: str
    per_channel: bool
    reduce_range: bool
    weight_type: Literal["int8", "uint8"]
    session_config: dict[str, str]
    relative_error: float
    parity: ParityReport
    size_bytes: int


_PRECISE = {"session.x64quantprecision": "1"}
_OPTIONS: tuple[tuple[str, bool, bool, Literal["int8", "uint8"], dict[str, str]], ...] = (
    ("u8s8", True, False, "int8", {}),
    ("u8s8-precise", True, False, "int8", _PRECISE),
    ("u8s8-reduced", True, True, "int8", {}),
    ("u8u8", True, False, "uint8", {}),
    ("u8s8-per-tensor", False, False, "int8", {}),
)


def choose_int8_options(path: str | Path, feeds: Sequence[Feed]) -> tuple[Int8Option, ...]:
    """Quantise ``path`` each way, run it on this machine, and report the errors, least first.

    Speed is not judged here: it needs a process per candidate.

    Args:
        path: an fp32 graph whose first output is compared.
        feeds: calibration inputs by name; padding is masked out where the output is per token.

    Raises:
        DataError: no feed.
        UnsupportedError: the graph is already quantised.
    """
    if not feeds:
        raise DataError("no calibration feed", hint="give at least a few dozen texts of the training split")
    expected = _first_outputs(path, feeds, {})
    options = []
    with tempfile.TemporaryDirectory(prefix="int8-options-") as folder:
        for name, per_channel, reduce_range, weight_type, session_config in _OPTIONS:
            file = Path(folder) / "candidate.onnx"
            facts = quantise_dynamic(
                path, file, per_channel=per_channel, reduce_range=reduce_range, weight_type=weight_type
            )
            actual = _first_outputs(file, feeds, session_config)
            options.append(
                Int8Option(
                    name=name,
                    per_channel=per_channel,
                    reduce_range=reduce_range,
                    weight_type=weight_type,
                    session_config=dict(session_config),
                    relative_error=_relative_error(expected, actual),
                    parity=compare_logits(expected, actual),
                    size_bytes=facts.size_bytes,
                )
            )
    return tuple(sorted(options, key=lambda option: option.relative_error))


def _first_outputs(path: str | Path, feeds: Sequence[Feed], config: dict[str, str]) -> NDArray[np.floating]:
    """First output on all feeds as rows (N, V): a row per text, or per real token."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    rows = []
    for feed in feeds:
        output = session.run(None, {name: feed[name] for name in names})[0]
        if output.ndim == 3:  # (B, T, V)
            output = output[feed["attention_mask"][:, -output.shape[1] :] != 0]
        rows.append(output)
    return np.concatenate(rows)


def _relative_error(expected: NDArray[np.floating], actual: NDArray[np.floating]) -> float:
    wide = expected.astype(np.float64)
    return float(np.linalg.norm(wide - actual) / np.linalg.norm(wide))
