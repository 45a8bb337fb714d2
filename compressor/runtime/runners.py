"""The waist: whatever runs a model takes numpy arrays and gives numpy arrays.

Quality, speed and energy are written once, above these two protocols. A decoder's key/value cache is a value that the
caller holds and passes on; a runner remembers nothing between calls, so beams and chunks are only indexing.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from compressor.checkpoints.manifest import Variant
from compressor.checkpoints.store import Checkpoint
from compressor.energy.processor import instruction_set, read_cpu_flags
from compressor.errors import MissingPackageError
from compressor.runtime.settings import runner_settings
from compressor.spec.tasks import TASKS, Task

if TYPE_CHECKING:
    from torch import nn

Array: TypeAlias = npt.NDArray[Any]
State: TypeAlias = Any
"""A decoder's cache after some tokens: made by a runner, understood by that runner alone, never changed in place."""


@runtime_checkable
class Runner(Protocol):
    """Something that runs a model once over a batch."""

    def forward(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One pass without a cache.

        Args:
            inputs: `input_ids` and `attention_mask` (B, T), and others by name; names that the model does not take
                are left out.

        Returns:
            The task's outputs by name: `logits`, (B, C) or (B, T, V), and those of other tasks.
        """
        ...


@runtime_checkable
class DecoderRunner(Runner, Protocol):
    """A runner that can go on where it was."""

    def prefill(self, ids: Array, mask: Array) -> tuple[Array, State]:
        """Read prompts, padded on the left where they differ in length.

        Args:
            ids: token ids, (B, T).
            mask: 1 where a token is real, (B, T).

        Returns:
            Logits of the last position, (B, V), and the cache.
        """
        ...

    def decode(self, ids: Array, state: State) -> tuple[Array, State]:
        """Read the next tokens, (B, T); logits of the last position, (B, V), and the cache after them."""
        ...

    def reorder(self, state: State, index: Array) -> State:
        """The cache whose row i is row `index[i]` of this one: beams that live on, rows that repeat."""
        ...


def open_runner(
    checkpoint: Checkpoint,
    variant_id: str,
    *,
    threads: int | None = None,
    provider: str = "CPUExecutionProvider",
    settings: Mapping[str, Any] | None = None,
) -> Runner:
    """Open one variant of a checkpoint; a `DecoderRunner` for decoders.

    Args:
        checkpoint: an open checkpoint.
        variant_id: which of its variants.
        threads: threads of one inference; the variant's tuned number, or all cores, where absent.
        provider: ONNX Runtime execution provider; torch runs on the GPU for `CUDAExecutionProvider`.
        settings: runtime settings that win over those tuned for the variant.

    Raises:
        CheckpointError: no such variant, or a file that cannot be opened.
        UnsupportedError: a provider that is not there.
        UserError: a setting that does not exist.
        MissingPackageError: a torch variant without torch.
    """
    variant = checkpoint.variant(variant_id)
    task = TASKS[checkpoint.content.task]  # type: ignore[index]  # a wrong name in a manifest fails its digest first
    merged = {**variant.settings, **(settings or {})}
    threads = threads or merged.get("threads") or n_cores()
    merged = runner_settings(merged, variant.runtime)
    _warn_of_another_processor(variant)
    if variant.runtime == "onnxruntime":
        from compressor.runtime.onnx_runner import open_onnx

        return open_onnx(
            checkpoint.path / variant.path,
            is_decoder=task.is_decoder,
            threads=threads,
            provider=provider,
            settings=merged,
        )
    require_torch(f"the variant {variant_id!r}")
    from compressor.runtime.torch_models import load_module, with_head

    return open_torch(
        with_head(load_module(checkpoint), checkpoint.path, task),
        task,
        threads=threads,
        provider=provider,
        settings=merged,
    )


def _warn_of_another_processor(variant: Variant) -> None:
    tuned, here = variant.facts.get("instruction_set"), instruction_set(read_cpu_flags())
    if tuned is not None and tuned != here:
        warnings.warn(
            f"{variant.id!r} was tuned on a processor with {tuned}, and this one has {here}: its 8-bit products may "
            "be less exact or slower here; quantise again on this machine, or check quality on it",
            stacklevel=3,
        )


def open_torch(
    module: nn.Module,
    task: Task,
    *,
    threads: int | None = None,
    provider: str = "CPUExecutionProvider",
    settings: Mapping[str, Any] | None = None,
) -> Runner:
    """A runner over a live module.

    Args:
        module: a transformers model, with its head (`torch_models.with_head`).
        task: says whether it generates, and what it gives.
        threads: threads of one inference; all cores where absent.
        provider: `CUDAExecutionProvider` for the GPU; torch runs on the CPU for any other.
        settings: of `settings.TORCH_SETTINGS`.

    Raises:
        UnsupportedError: CUDA is asked for and torch sees none, or `compile` where torch cannot compile.
        UserError: a setting that does not exist.
    """
    from compressor.runtime.torch_runner import TorchDecoderRunner, TorchRunner

    chosen = runner_settings(settings or {}, "torch")
    device = "cuda" if provider == "CUDAExecutionProvider" else "cpu"
    kind = TorchDecoderRunner if task.is_decoder else TorchRunner
    return kind(
        module,
        threads=threads or n_cores(),
        outputs=task.outputs,
        device=device,
        compiled=bool(chosen.get("compile", False)),
    )


def require_torch(needed_for: str) -> None:
    """Say which extra is missing rather than fail in an import.

    Raises:
        MissingPackageError: torch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingPackageError("torch", extra="torch", needed_for=needed_for)


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def position_ids(mask: Array) -> Array:
    """Positions that count real tokens only, (B, T) -> (B, T): a prompt padded on the left starts at 0 all the same."""
    positions: Array = np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int64)
    return positions
