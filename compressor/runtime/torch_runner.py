"""torch behind the waist, eager or compiled."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from compressor.errors import UnsupportedError
from compressor.runtime.runners import Array, position_ids


class TorchRunner:
    """A live module in evaluation mode.

    Args:
        module: a transformers model.
        outputs: names of what its output holds and is wanted.
        threads: threads inside an operator; a setting of the whole process.
        device: `cpu` or `cuda`.
        compiled: run it through `torch.compile`, for any batch and length; the first calls take long.

    Raises:
        UnsupportedError: CUDA is asked for and torch sees none; at the first call, `torch.compile` cannot work here.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        threads: int,
        outputs: Sequence[str] = ("logits",),
        device: str = "cpu",
        compiled: bool = False,
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise UnsupportedError("torch sees no CUDA device here", where="target.device", hint="use device: cpu")
        torch.set_num_threads(threads)
        self.module = module.to(device).eval()
        self.outputs = tuple(outputs)
        self.device = device
        self.takes = set(inspect.signature(module.forward).parameters)
        self._run: Callable[..., Any] = self.module
        if compiled:
            from compressor.runtime.torch_compiled import compile_module

            self._run = compile_module(self.module)

    def forward(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One pass without a cache; see `Runner.forward`."""
        given: dict[str, Any] = {name: self._tensor(array) for name, array in inputs.items() if name in self.takes}
        if "use_cache" in self.takes:
            if "position_ids" in self.takes and "position_ids" not in given:
                given["position_ids"] = self._tensor(position_ids(inputs["attention_mask"]))
            given["use_cache"] = False
        found = self._call(**given)
        return {name: getattr(found, name).float().cpu().numpy() for name in self.outputs}

    def _call(self, **inputs: Any) -> Any:
        with torch.inference_mode():
            return self._run(**inputs)

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


@dataclass(frozen=True)
class TorchState:
    """A cache: keys and values of each layer, (B, H_kv, P, d), and the mask of what was read, (B, P)."""

    past: tuple[tuple[Tensor, Tensor], ...]
    mask: Array


class TorchDecoderRunner(TorchRunner):
    """A causal language model with a key/value cache.

    A `DynamicCache` changes as it is used, so each step gets a new one around the same tensors; a step concatenates
    into new tensors and leaves the old state as it was.
    """

    def prefill(self, ids: Array, mask: Array) -> tuple[Array, TorchState]:
        """Read prompts; see `DecoderRunner.prefill`."""
        return self._step(ids, TorchState((), mask[:, :0]), mask)

    def decode(self, ids: Array, state: TorchState) -> tuple[Array, TorchState]:
        """Read the next tokens; see `DecoderRunner.decode`."""
        return self._step(ids, state, np.ones_like(ids))

    def reorder(self, state: TorchState, index: Array) -> TorchState:
        """Rows of a cache in another order; see `DecoderRunner.reorder`."""
        rows = self._tensor(index)
        past = tuple((keys.index_select(0, rows), values.index_select(0, rows)) for keys, values in state.past)
        return TorchState(past, state.mask[index])

    def _step(self, ids: Array, state: TorchState, new_mask: Array) -> tuple[Array, TorchState]:
        mask = np.concatenate([state.mask, new_mask], axis=1).astype(np.int64)  # (B, P + T)
        inputs = {
            "input_ids": self._tensor(ids),
            "attention_mask": self._tensor(mask),
            "position_ids": self._tensor(position_ids(mask)[:, -ids.shape[1] :]),
        }
        optional = {"logits_to_keep": 1} if "logits_to_keep" in self.takes else {}
        outputs = self._call(
            **{name: tensor for name, tensor in inputs.items() if name in self.takes},
            **optional,
            past_key_values=_cache(state.past),
            use_cache=True,
        )
        past = tuple((layer.keys, layer.values) for layer in outputs.past_key_values.layers)
        return outputs.logits[:, -1].float().cpu().numpy(), TorchState(past, mask)  # (B, V)


def _cache(past: tuple[tuple[Tensor, Tensor], ...]) -> DynamicCache:
    cache = DynamicCache()
    for keys, values in past:
        layer = DynamicLayer()  # type: ignore[no-untyped-call]
        layer.lazy_initialization(keys, values)  # dtype and device
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache
