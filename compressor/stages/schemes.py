"""Schemes as files: where each is written, which providers run it, and the quantiser that makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from compressor.errors import UnsupportedError
from compressor.graphs.choose import ARITHMETICS
from compressor.graphs.facts import GraphFacts
from compressor.graphs.quantise import (
    Feed,
    convert_fp16,
    quantise_dynamic,
    quantise_static,
    quantise_weights,
    store_bf16,
)
from compressor.methods.rounding import BlockGrid
from compressor.spec.stages import Quantize, Scheme

GRAPHS: dict[Scheme, str] = {
    "fp16": "onnx/model_fp16.onnx",
    "bf16": "onnx/model_bf16.onnx",
    "w8a8-dynamic": "onnx/model_int8.onnx",
    "w8a8-static": "onnx/model_quantized.onnx",
    "w8": "onnx/model_w8.onnx",
    "w4": "onnx/model_q4.onnx",
}
"""File names as Optimum and Transformers.js look for them."""
EVERYWHERE = (
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
    "OpenVINOExecutionProvider",
)
PROVIDERS: dict[Scheme, tuple[str, ...]] = {
    "fp16": EVERYWHERE,
    "bf16": EVERYWHERE,
    "w8a8-dynamic": ("CPUExecutionProvider",),
    "w8a8-static": ("CPUExecutionProvider", "TensorrtExecutionProvider", "OpenVINOExecutionProvider"),
    "w8": ("CPUExecutionProvider", "CUDAExecutionProvider"),
    "w4": ("CPUExecutionProvider", "CUDAExecutionProvider"),
}
"""Execution providers with kernels for what a scheme writes."""


@dataclass(frozen=True)
class Decision:
    """What is left open in the pipeline and was decided by measuring, beside what it says itself.

    Attributes:
        arithmetic: of `ARITHMETICS`.
        exclude: nodes in fp32.
        widen: nodes in 8 bits where the others have 4.
        feeds: calibration inputs, where the scheme needs them.
        grids: scheme -> node -> weights rounded beforehand.
    """

    arithmetic: str = "u8s8"
    exclude: tuple[str, ...] = ()
    widen: tuple[str, ...] = ()
    feeds: Sequence[Feed] = ()
    grids: Mapping[str, Mapping[str, BlockGrid]] | None = None

    def rounded(self, scheme: Scheme) -> dict[str, BlockGrid]:
        """Weights rounded beforehand: of the scheme, and of 8 bits for the nodes that are widened."""
        grids = self.grids or {}
        wide = {name: grid for name, grid in grids.get("w8", {}).items() if name in self.widen}
        return {**grids.get(scheme, {}), **wide}


def check_settings(config: Quantize, provider: str) -> None:
    """Refuse, before any work, what cannot run or would do nothing.

    Raises:
        UnsupportedError: a scheme that the provider has no kernels for, or a setting that the scheme would ignore.
    """
    if provider not in PROVIDERS[config.scheme]:
        able = [name for name, providers in PROVIDERS.items() if provider in providers]
        raise UnsupportedError(
            f"{provider} has no kernels for {config.scheme}",
            where="target.provider",
            hint=f"it runs: {', '.join(able)}" if able else "use CPUExecutionProvider",
        )
    # a setting that does nothing would be believed
    set_for_nothing = {"embeddings": config.embeddings, "lm_head": not config.lm_head, "exclude": bool(config.exclude)}
    names = [name for name, is_set in set_for_nothing.items() if is_set]
    if config.scheme in ("fp16", "bf16") and names:
        raise UnsupportedError(
            f"{config.scheme} converts the entire model and takes no {', '.join(names)}",
            where=f"stages.{config.id}",
            hint="remove it, or choose another scheme",
        )


def write_scheme(
    scheme: Scheme, config: Quantize, graph: Path, out: Path, decision: Decision, *, embeddings: bool
) -> GraphFacts:
    """One file of a graph in a scheme; raises as the quantisers do."""
    match scheme:
        case "fp16":
            return convert_fp16(graph, out)
        case "bf16":
            return store_bf16(graph, out)
        case "w8a8-dynamic":
            arithmetic = ARITHMETICS[decision.arithmetic]
            return quantise_dynamic(
                graph,
                out,
                per_channel=config.per_channel,
                reduce_range=arithmetic.reduce_range,
                weight_type=arithmetic.weight_type,
                include_lm_head=config.lm_head,
                include_embeddings=embeddings,
                exclude=decision.exclude,
            )
        case "w8" | "w4":
            return quantise_weights(
                graph,
                out,
                bits=8 if scheme == "w8" else 4,
                include_lm_head=config.lm_head,
                include_embeddings=embeddings,
                exclude=decision.exclude,
                widen=decision.widen if scheme == "w4" else (),
                grids=decision.rounded(scheme),
            )
        case "w8a8-static":
            return quantise_static(
                graph,
                out,
                feeds=decision.feeds,
                method=config.calibration_method,
                per_channel=config.per_channel,
                include_lm_head=config.lm_head,
                include_embeddings=embeddings,
                exclude=decision.exclude,
            )
        case _:
            assert_never(scheme)
