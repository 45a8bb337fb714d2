"""Which INT8 arithmetic fits this machine: files for each, and how far each is off, measured and not by rule.

Without VNNI, unsigned activations times signed weights are summed in 16 bits and may saturate; how much that costs
depends on the data. The same file can be right on one CPU and wrong on another.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from compressor.errors import DataError
from compressor.graphs.files import file_bytes
from compressor.graphs.parity import ParityReport, compare_logits
from compressor.graphs.quantise import Feed, quantise_dynamic


@dataclass(frozen=True)
class Arithmetic:
    """One way to multiply in INT8.

    Attributes:
        reduce_range: 7-bit weights.
        weight_type: of the stored weights.
        settings: runtime settings that belong to the file.
    """

    reduce_range: bool = False
    weight_type: Literal["int8", "uint8"] = "int8"
    settings: Mapping[str, bool] = field(default_factory=dict)


PRECISE = "x64_quant_precision"
"""The runtime setting for ONNX Runtime's ``session.x64quantprecision``: no sums in 16 bits on x86."""
ARITHMETICS: dict[str, Arithmetic] = {
    "u8s8": Arithmetic(),
    "u8s8-precise": Arithmetic(settings={PRECISE: True}),
    "u8s8-reduced": Arithmetic(reduce_range=True),
    "u8u8": Arithmetic(weight_type="uint8"),
}


@dataclass(frozen=True)
class Int8Option:
    """One arithmetic, and how far it is off on this machine.

    Attributes:
        name: of ``ARITHMETICS``.
        path: its file.
        relative_error: root mean square of the output difference, relative to that of the output.
        parity: logits against those of the fp32 graph.
        size_bytes: of the file.
    """

    name: str
    path: Path
    relative_error: float
    parity: ParityReport
    size_bytes: int


def write_int8_options(
    path: str | Path,
    folder: Path,
    feeds: Sequence[Feed],
    *,
    output: str,
    per_channel: bool = True,
    include_lm_head: bool = True,
    exclude: Collection[str] = (),
) -> tuple[Int8Option, ...]:
    """Quantise ``path`` each way into ``folder``, run it on this machine, and report the errors, least first.

    Speed is not judged here: it needs a process per candidate.

    Args:
        path: an fp32 graph.
        folder: takes the files; ``u8s8-precise`` is the file of ``u8s8``, run otherwise.
        feeds: calibration inputs by name; padding is masked out where the output is per token.
        output: name of the output that is compared.
        per_channel, include_lm_head, exclude: see ``quantise_dynamic``.

    Raises:
        DataError: no feed.
        UnsupportedError: the graph is already quantised.
    """
    if not feeds:
        raise DataError("no calibration feed", hint="give at least a few dozen texts of the training split")
    expected = _outputs(path, feeds, output, is_precise=False)
    options = []
    for name, one in ARITHMETICS.items():
        file = folder / f"{'u8s8' if name == 'u8s8-precise' else name}.onnx"
        if not file.exists():
            quantise_dynamic(
                path,
                file,
                per_channel=per_channel,
                reduce_range=one.reduce_range,
                weight_type=one.weight_type,
                include_lm_head=include_lm_head,
                exclude=exclude,
            )
        actual = _outputs(file, feeds, output, is_precise=PRECISE in one.settings)
        error, parity = _relative_error(expected, actual), compare_logits(expected, actual)
        options.append(Int8Option(name, file, error, parity, file_bytes(file)))
    return tuple(sorted(options, key=lambda option: option.relative_error))


def _outputs(path: str | Path, feeds: Sequence[Feed], output: str, *, is_precise: bool) -> NDArray[np.floating]:
    """One output on all feeds as rows (N, V): a row per text, or per real token."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if is_precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    rows = []
    for feed in feeds:
        answer = session.run([output], {name: feed[name] for name in names})[0]
        if answer.ndim == 3:  # (B, T, V)
            answer = answer[feed["attention_mask"][:, -answer.shape[1] :] != 0]
        rows.append(answer)
    return np.concatenate(rows)


def _relative_error(expected: NDArray[np.floating], actual: NDArray[np.floating]) -> float:
    wide = expected.astype(np.float64)
    return float(np.linalg.norm(wide - actual) / np.linalg.norm(wide))
