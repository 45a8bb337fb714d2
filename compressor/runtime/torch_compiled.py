"""`torch.compile` behind the same call. Apart from `torch_runner`, since the compiler takes seconds to import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import InductorError

from compressor.errors import UnsupportedError


def compile_module(module: nn.Module) -> Callable[..., Any]:
    """The module's call, compiled at first use for any batch and length.

    Raises:
        UnsupportedError: when it is first called, where torch cannot compile (no C++ compiler, say).
    """
    compiled = torch.compile(module, dynamic=True)

    def call(**inputs: Any) -> Any:
        try:
            return compiled(**inputs)
        except (BackendCompilerFailed, InductorError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UnsupportedError(
                f"torch.compile cannot work here: {reason}",
                where="compile",
                hint="install a C++ compiler (g++), or leave the setting `compile` out",
            ) from error

    return call
