"""Which of a checkpoint's variants to run, and which of its files that needs. Imports no torch."""

from __future__ import annotations

import importlib.util
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

from compressor.checkpoints.manifest import Content, Variant
from compressor.checkpoints.sentence import MODULES
from compressor.errors import CheckpointError, MissingPackageError, UnsupportedError
from compressor.spec.tasks import TASKS, Task, TaskName

PRECISIONS = {
    "int8": ("w8a8-dynamic", "w8a8-static", "w8"),
    "int4": ("w4",),
}
"""Everyday words for schemes; a scheme's own name and a variant's id are understood too."""
INTEGER = ("w8a8-dynamic", "w8a8-static")
"""Schemes that compute in integers, for which ONNX Runtime has kernels on the CPU only."""
SUMS_EIGHT_BITS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""Any of these CPU flags: products of eight-bit numbers are summed without saturation."""


def choose_variant(
    content: Content,
    *,
    where: str,
    precision: str | None = None,
    runtime: str | None = None,
    device: str = "cpu",
    is_there: Callable[[str], bool] | None = None,
    saturates: bool | None = None,
) -> Variant:
    """The last variant that fits and that this machine can run well: what the last stage made, where it serves here.

    Left out are torch variants without torch, integer schemes on a GPU (ONNX Runtime computes them on the CPU only),
    and, where several fit, full-range INT8 on a processor whose eight-bit sums saturate. Whoever names a variant's id
    or its scheme gets it.

    Args:
        content: of the manifest.
        where: folder or repository, for the errors.
        precision: `fp32`, `fp16`, `int8`, `int4`, a scheme, or a variant's id.
        runtime: `torch` or `onnxruntime`.
        device: `cpu`, `cuda` or `openvino`.
        is_there: whether a package can be imported; asked of Python where absent.
        saturates: whether this processor saturates; asked of the system where absent.

    Raises:
        CheckpointError: none fits; the text names those that are there.
        MissingPackageError: all that fit need torch, which is not installed.
        UnsupportedError: all that fit compute in integers, and the device is a GPU.
    """
    is_there = is_there or (lambda name: importlib.util.find_spec(name) is not None)
    fits = _that_fit(content, where, precision, runtime)
    runnable = [one for one in fits if one.runtime != "torch" or is_there("torch")]
    if not runnable:
        raise MissingPackageError("torch", extra="torch", needed_for=f"the variant {fits[-1].id!r}")
    placed = [one for one in runnable if device != "cuda" or one.scheme not in INTEGER]
    if not placed:
        raise UnsupportedError(
            f"{runnable[-1].id} computes in integers, which ONNX Runtime does on the CPU only",
            where=where,
            hint='device="cpu", or precision="fp16"',
        )
    named = any(precision in (one.id, one.scheme) for one in placed)
    if not named and len(placed) > 1 and (eight_bit_sums_saturate() if saturates is None else saturates):
        placed = [one for one in placed if not may_saturate(one)] or placed
    return placed[-1]


def _that_fit(content: Content, where: str, precision: str | None, runtime: str | None) -> list[Variant]:
    schemes = PRECISIONS.get(precision or "", ())
    fits = [
        one
        for one in content.variants
        if runtime in (None, one.runtime) and (precision in (None, one.id, one.scheme) or one.scheme in schemes)
    ]
    if not fits:
        asked = (("precision", precision), ("runtime", runtime))
        wanted = " and ".join(f"{key} {value!r}" for key, value in asked if value)
        there = ", ".join(f"{one.id} ({one.scheme})" for one in content.variants)
        raise CheckpointError(f"no variant with {wanted} here; there are: {there or 'none'}", where=where)
    return fits


def files_of(content: Content, variant: Variant) -> list[str]:
    """The files that a variant needs: all but the weights and graphs of the others, with their external data."""
    others = {one.path for one in content.variants} - {variant.path}
    return [
        name
        for name in content.files
        if name.startswith(variant.path) or not any(name.startswith(other) for other in others)
    ]


def may_saturate(variant: Variant) -> bool:
    """Whether a file multiplies full-range eight-bit numbers, as far as its manifest tells."""
    return variant.scheme in INTEGER and variant.facts.get("arithmetic", "u8s8") == "u8s8"


def eight_bit_sums_saturate(root: Path = Path("/")) -> bool:
    """Whether this is an x86 processor that lists its flags and has none that sums eight-bit products exactly."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        text = (root / "proc" / "cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False  # nothing is known, so nothing is held against a file
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    flags = frozenset(line.partition(":")[2].split())
    return bool(flags) and not flags & SUMS_EIGHT_BITS


PLAIN_GRAPHS = {
    "fp32": ("model",),
    "fp16": ("model_fp16",),
    "int8": ("model_int8", "model_quantized", "model_uint8", "model_qint8_avx512_vnni", "model_qint8_avx512"),
    "int4": ("model_q4",),
}
"""Precision -> the names that Transformers.js, Optimum and sentence-transformers give its file, best first."""


def plain_graph(folder: Path, *, precision: str | None, runtime: str | None) -> str | None:
    """The ONNX file of a model that is not ours, where one is asked for or torch could not open the weights.

    Returns:
        A path below the folder; None where torch is to open the weights.

    Raises:
        CheckpointError: an ONNX file is asked for and there is none of the kind.
    """
    has_weights = (folder / "model.safetensors").is_file() or (folder / "model.safetensors.index.json").is_file()
    if runtime == "torch" and precision not in (None, "fp32"):
        raise CheckpointError(f"a plain model has no {precision} variant for torch", where=str(folder))
    if runtime == "torch" or (runtime is None and precision in (None, "fp32") and has_weights):
        return None
    wanted = precision or "fp32"
    for stem in PLAIN_GRAPHS.get(wanted, ()):
        for path in (f"onnx/{stem}.onnx", f"{stem}.onnx"):
            if (folder / path).is_file():
                return path
    if runtime is None and precision is None:
        return None
    there = ", ".join(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.onnx")))
    raise CheckpointError(
        f"a plain model without compressor.json, and no ONNX file in {wanted}; there are: {there or 'none'}",
        where=str(folder),
        hint="leave precision and runtime out, or make variants with a pipeline",
    )


def _by_head(folder: Path) -> TaskName:
    """What a sequence classifier is for, by what its config says of its head; one output is a number."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "sequence-classification"
    if config.get("problem_type") == "multi_label_classification":
        return "multi-label-classification"
    n_outputs = len(config.get("id2label") or ()) or config.get("num_labels", 2)
    return "regression" if n_outputs == 1 else "sequence-classification"


TASK_OF_ENDING: dict[str, TaskName] = {
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "masked-lm",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
}
"""How an architecture's name ends, in `config.json`."""


def task_of_architectures(names: Sequence[str], where: Path) -> Task:
    """The task that a plain model serves, by the architectures that its config names.

    Raises:
        UnsupportedError: none of ours.
    """
    if (where / MODULES).is_file():
        return TASKS["sentence-embedding"]
    for ending, task in TASK_OF_ENDING.items():
        if any(name.endswith(ending) for name in names):
            return TASKS[_by_head(where) if task == "sequence-classification" else task]
    raise UnsupportedError(
        f"the architecture {', '.join(names) or 'is not named and'} serves none of: {', '.join(TASKS)}",
        where=str(where / "config.json"),
        hint="fine-tune the model for one of these tasks first",
    )
