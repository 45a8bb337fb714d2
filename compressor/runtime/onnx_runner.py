"""ONNX Runtime behind the waist. Imports no torch.

The cache of a decoder stays in ONNX Runtime's own values between steps: what one call gives is handed to the next as
it is, and only the last position's logits become numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from compressor.errors import CheckpointError, UnsupportedError, UserError
from compressor.runtime.runners import Array, position_ids
from compressor.runtime.settings import runner_settings

OPTIMISATION = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
TYPES = "token_type_ids"
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_OPEN_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


def open_onnx(path: Path, *, is_decoder: bool, threads: int, provider: str, settings: Mapping[str, Any]) -> OnnxRunner:
    """Open an ONNX file; an `OnnxDecoderRunner` when it is a decoder's and has a cache.

    Raises:
        CheckpointError: no such file, or not a graph that ONNX Runtime can open.
        UnsupportedError: the provider is not there, or an operator that it does not have.
        UserError: a setting that does not exist.
    """
    session = open_session(path, threads=threads, provider=provider, settings=settings)
    has_cache = any(value.name.startswith("past_key_values.") for value in session.get_inputs())
    kind = OnnxDecoderRunner if is_decoder and has_cache else OnnxRunner
    return kind(session, io_binding=bool(settings.get("io_binding", False)))


def open_session(path: Path, *, threads: int, provider: str, settings: Mapping[str, Any]) -> ort.InferenceSession:
    """A session with `threads` threads inside an operator and one across operators; raises as `open_onnx`."""
    if provider not in ort.get_available_providers():
        raise UnsupportedError(
            f"ONNX Runtime has no {provider} here; it has: {', '.join(ort.get_available_providers())}",
            where="target.provider",
            hint="choose one of these, or install the onnxruntime package that brings it",
        )
    if not path.is_file():
        raise CheckpointError("no such ONNX file", where=str(path))
    providers: list[Any] = [provider] if provider == "CPUExecutionProvider" else [provider, "CPUExecutionProvider"]
    if provider == "OpenVINOExecutionProvider":  # its threads are its own
        providers[0] = (provider, {"device_type": "CPU", "num_of_threads": str(threads)})
    try:
        session = ort.InferenceSession(str(path), session_options(threads, settings), providers=providers)
    except ort_errors.NotImplemented as error:
        raise UnsupportedError(f"{provider} cannot run it: {_first_line(error)}", where=str(path)) from error
    except _OPEN_ERRORS as error:
        raise CheckpointError(
            f"ONNX Runtime cannot open it: {_first_line(error)}", where=str(path), hint="export the model again"
        ) from error
    session.disable_fallback()
    if session.get_providers()[0] != provider:
        raise UnsupportedError(
            f"ONNX Runtime fell back from {provider} to {session.get_providers()[0]}",
            where="target.provider",
            hint="check the provider's driver and libraries",
        )
    return session


def session_options(threads: int, settings: Mapping[str, Any]) -> ort.SessionOptions:
    """Session options for a number of threads and the settings of `settings.SESSION_SETTINGS`.

    Raises:
        UserError: a setting that does not exist, or an unknown optimisation level.
    """
    settings = runner_settings(settings, "onnxruntime")
    level = settings.get("graph_optimisation", "all")
    if level not in OPTIMISATION:
        raise UserError(f"graph_optimisation is {level!r}; it can be: {', '.join(OPTIMISATION)}", where="settings")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = OPTIMISATION[level]
    options.log_severity_level = 3  # errors
    if "allow_spinning" in settings:
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(settings["allow_spinning"])))
    if "x64_quant_precision" in settings:
        options.add_session_config_entry("session.x64quantprecision", str(int(settings["x64_quant_precision"])))
    if "memory_arena" in settings:
        options.enable_cpu_mem_arena = bool(settings["memory_arena"])
    if "memory_pattern" in settings:
        options.enable_mem_pattern = bool(settings["memory_pattern"])
    return options


class OnnxRunner:
    """One session over one graph.

    Args:
        session: an open session.
        io_binding: hand inputs and outputs over as values of ONNX Runtime's own. On a GPU the cache of a decoder then
            stays there; on a CPU it saves little, and `stage: tune` finds out whether that is anything.
    """

    def __init__(self, session: ort.InferenceSession, *, io_binding: bool = False) -> None:
        self.session = session
        self.io_binding = io_binding
        self.input_names = [value.name for value in session.get_inputs()]
        self.output_names = [value.name for value in session.get_outputs() if not value.name.startswith("present.")]

    def forward(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One pass; see `Runner.forward`.

        Raises:
            UserError: an input that the graph wants is not given.
        """
        feeds = self.feeds(inputs)
        if not self.io_binding:
            return dict(zip(self.output_names, self.session.run(self.output_names, feeds), strict=True))
        binding = self.session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self.output_names:
            binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        return dict(zip(self.output_names, binding.copy_outputs_to_cpu(), strict=True))

    def feeds(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What the graph takes of these inputs; token types are zeros where no tokenizer gives them, as in torch."""
        if TYPES in self.input_names and TYPES not in inputs:
            inputs = {**inputs, TYPES: np.zeros_like(inputs["input_ids"])}
        missing = [name for name in self.input_names if name not in inputs]
        if missing:
            raise UserError(f"the graph wants the input {missing[0]!r}; given: {', '.join(inputs)}", where="inputs")
        return {name: inputs[name] for name in self.input_names}


@dataclass(frozen=True)
class OnnxState:
    """A cache: `past_key_values.{i}.key` and `.value` -> (B, H_kv, P, d), and the mask of what was read, (B, P)."""

    past: dict[str, ort.OrtValue]
    mask: Array


class OnnxDecoderRunner(OnnxRunner):
    """A graph with `past_key_values.{i}.key/value` in and `present.{i}.key/value` out.

    The number of key/value heads may differ from layer to layer; it is read from the graph.
    """

    def __init__(self, session: ort.InferenceSession, *, io_binding: bool = False) -> None:
        super().__init__(session, io_binding=io_binding)
        self.cache_device = "cuda" if session.get_providers()[0] == "CUDAExecutionProvider" else "cpu"
        self.past = {
            value.name: (value.shape, _DTYPES[value.type])
            for value in session.get_inputs()
            if value.name.startswith("past_key_values.")
        }
        self.present_names = [name.replace("past_key_values.", "present.") for name in self.past]

    def forward(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One pass over whole sequences, with an empty past; see `Runner.forward`."""
        given = dict(inputs)
        given.setdefault("position_ids", position_ids(inputs["attention_mask"]))
        n_rows = inputs["input_ids"].shape[0]
        return super().forward({**given, **{name: self._empty(name, n_rows) for name in self.past}})

    def prefill(self, ids: Array, mask: Array) -> tuple[Array, OnnxState]:
        """Read prompts; see `DecoderRunner.prefill`."""
        past = {name: ort.OrtValue.ortvalue_from_numpy(self._empty(name, len(ids))) for name in self.past}
        return self._step(ids, OnnxState(past, mask[:, :0]), mask)

    def decode(self, ids: Array, state: OnnxState) -> tuple[Array, OnnxState]:
        """Read the next tokens; see `DecoderRunner.decode`."""
        return self._step(ids, state, np.ones_like(ids))

    def reorder(self, state: OnnxState, index: Array) -> OnnxState:
        """Rows of a cache in another order; see `DecoderRunner.reorder`."""
        past = {name: ort.OrtValue.ortvalue_from_numpy(value.numpy()[index]) for name, value in state.past.items()}
        return OnnxState(past, state.mask[index])

    def _step(self, ids: Array, state: OnnxState, new_mask: Array) -> tuple[Array, OnnxState]:
        mask = np.concatenate([state.mask, new_mask], axis=1).astype(np.int64)  # (B, P + T)
        arrays = {
            "input_ids": ids.astype(np.int64, copy=False),
            "attention_mask": mask,
            "position_ids": np.ascontiguousarray(position_ids(mask)[:, -ids.shape[1] :]),
        }
        feeds = {
            name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items() if name in self.input_names
        }
        logits, *present = self._run_step({**feeds, **state.past})
        last = np.from_dlpack(logits)[:, -1].copy()  # (B, V); the rest of (B, T, V) is never copied
        return last, OnnxState(dict(zip(self.past, present, strict=True)), mask)

    def _run_step(self, feeds: dict[str, ort.OrtValue]) -> list[ort.OrtValue]:
        """Logits, on the CPU, and then the new cache."""
        if not self.io_binding:
            values: list[ort.OrtValue] = self.session.run_with_ort_values(["logits", *self.present_names], feeds)
            return values
        binding = self.session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits", "cpu")
        for name in self.present_names:
            binding.bind_output(name, self.cache_device)
        self.session.run_with_iobinding(binding)
        bound: list[ort.OrtValue] = binding.get_outputs()
        return bound

    def _empty(self, name: str, n_rows: int) -> Array:
        (_, n_heads, _, head_size), dtype = self.past[name]
        return np.zeros((n_rows, n_heads, 0, head_size), dtype)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
