"""Any runner as the object that `transformers.pipeline` wants in the place of a model, ONNX Runtime's included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import ModelOutput

from compressor.runtime.runners import DecoderRunner, Runner
from compressor.runtime.torch_generation import GeneratingRunner
from compressor.runtime.torch_models import quiet_transformers
from compressor.spec.tasks import Task


class RunnerModel:
    """A runner that is called with tensors and answers with a `ModelOutput`; for everything but generation."""

    base_model_prefix = ""
    input_modalities = ("text",)

    def __init__(self, runner: Runner, config: PreTrainedConfig, task: Task) -> None:
        self.runner = runner
        self.config = config
        self.task = task
        self.device = torch.device("cpu")
        self.dtype = torch.float32

    @classmethod
    def can_generate(cls) -> bool:
        return False

    def __call__(self, **inputs: Tensor) -> ModelOutput:
        return self.forward(**inputs)

    def forward(self, **inputs: Tensor) -> ModelOutput:
        """One pass: inputs (B, T) by the names that the tokenizer gives them."""
        arrays = {name: value.numpy() for name, value in inputs.items()}
        arrays.setdefault("attention_mask", np.ones_like(arrays["input_ids"]))
        found = self.runner.forward(arrays)
        return _output(self.task, {name: torch.from_numpy(np.array(found[name])) for name in self.task.outputs})


def _output(task: Task, tensors: dict[str, Tensor]) -> ModelOutput:
    match task.kind:
        case "token_class":
            return TokenClassifierOutput(**tensors)  # type: ignore[arg-type]
        case "span":
            return QuestionAnsweringModelOutput(**tensors)  # type: ignore[arg-type]
        case "masked_token":
            return MaskedLMOutput(**tensors)  # type: ignore[arg-type]
        case "embedding":
            return BaseModelOutput(last_hidden_state=tensors[task.outputs[0]])
        case _:
            return SequenceClassifierOutput(**tensors)  # type: ignore[arg-type]


def dressed(runner: Runner, config: PreTrainedConfig, task: Task, folder: Path) -> Any:
    """The object to hand to `transformers.pipeline(..., model=...)`.

    Its class has the name of the stock architecture, since a pipeline looks at nothing else before it complains.
    """
    name = (config.architectures or ["Compressed"])[0]
    if not isinstance(runner, DecoderRunner):
        return type(name, (RunnerModel,), {})(runner, config, task)
    with quiet_transformers():
        generation_config = (
            GenerationConfig.from_pretrained(folder, local_files_only=True)
            if (folder / "generation_config.json").is_file()
            else GenerationConfig.from_model_config(config)
        )
    return type(name, (GeneratingRunner,), {"input_modalities": ("text",)})(runner, config, generation_config)
