"""Sampling and beam search: transformers' `GenerationMixin` over any decoder runner, ONNX Runtime's included."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from compressor.runtime.runners import Array, DecoderRunner, State
from compressor.runtime.torch_models import quiet_transformers


class GeneratingRunner(GenerationMixin):
    """A decoder runner in the dress that `GenerationMixin` wants: `generate(**inputs, num_beams=4)` and the like.

    The cache goes through as `past_key_values` without being looked at; beams reorder it through the runner.
    """

    main_input_name = "input_ids"
    base_model_prefix = ""
    _is_stateful = False

    def __init__(self, runner: DecoderRunner, config: PreTrainedConfig, generation_config: GenerationConfig) -> None:
        self.runner = runner
        self.config = config
        self.generation_config = generation_config
        self.device = torch.device("cpu")
        self.dtype = torch.float32

    @classmethod
    def can_generate(cls) -> bool:
        return True

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the cache is the runner's own

    def __call__(self, *args: Any, **kwargs: Any) -> CausalLMOutputWithPast:
        return self.forward(*args, **kwargs)

    def forward(
        self,
        input_ids: Tensor,  # (B, T): the prompt, or the last token
        attention_mask: Tensor | None = None,  # (B, P + T); transformers leaves out one that is all ones
        past_key_values: State | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        ids = input_ids.numpy()
        if past_key_values is None:
            mask = np.ones_like(ids) if attention_mask is None else attention_mask.numpy()
            logits, state = self.runner.prefill(ids, mask)
        else:
            logits, state = self.runner.decode(ids, past_key_values.state)
        past: Any = _Past(state)  # no `Cache`, and nobody asks
        return CausalLMOutputWithPast(logits=torch.from_numpy(logits[:, None]), past_key_values=past)  # (B, 1, V)

    def get_experts_implementation(self) -> None:
        return None  # no experts to switch while decoding

    def prepare_inputs_for_generation(  # type: ignore[override]  # of its arguments only these are used
        self,
        input_ids: Tensor,
        past_key_values: State | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        ids = input_ids if past_key_values is None else input_ids[:, -1:]
        return {"input_ids": ids, "attention_mask": attention_mask, "past_key_values": past_key_values}

    def _reorder_cache(self, past_key_values: State, beam_idx: Tensor) -> State:
        return _Past(self.runner.reorder(past_key_values.state, beam_idx.numpy()))


class _Past:
    """A state that is no tuple: transformers takes tuples apart."""

    def __init__(self, state: State) -> None:
        self.state = state


def generate_with_transformers(
    runner: DecoderRunner,
    ids: Array,
    mask: Array,
    *,
    config: PreTrainedConfig,
    settings: dict[str, Any],
    seed: int | None = None,
    streamer: Any = None,
) -> Array:
    """New token ids, (B, N), with any setting of `transformers.GenerationConfig`.

    Args:
        runner: a decoder.
        ids: prompts, padded on the left, (B, T).
        mask: 1 where a prompt's token is real, (B, T).
        config: the model's config.
        settings: what to set in the `GenerationConfig`, such as `num_beams` or `do_sample` and `temperature`.
        seed: makes sampling repeatable; torch's generator is left as it was.
        streamer: a `transformers.TextStreamer` or the like; not with beams.

    Raises:
        UserError: a setting that transformers does not have, or refuses.
    """
    with quiet_transformers():
        generation_config = GenerationConfig(**settings)  # type: ignore[no-untyped-call]
    model: Any = GeneratingRunner(runner, config, generation_config)
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    with torch.random.fork_rng(enabled=seed is not None), quiet_transformers():
        if seed is not None:
            torch.manual_seed(seed)
        sequences = model.generate(**inputs, generation_config=generation_config, streamer=streamer)
    tokens: Array = np.asarray(sequences[:, ids.shape[1] :])
    return tokens
