"""torch: eager, or with its own dynamic quantisation of every linear layer."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import transformers
from protocol import Arrays, serve


class TorchModel:
    """A stock transformers model."""

    def __init__(self, job: Arrays) -> None:
        torch.set_num_threads(job["threads"])
        kind = transformers.AutoModelForCausalLM if job["decoder"] else transformers.AutoModelForSequenceClassification
        self.module = kind.from_pretrained(job["path"], dtype=torch.float32).eval()
        self.version = f"torch {torch.__version__}"
        if job["quantised"]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.module = torch.ao.quantization.quantize_dynamic(self.module, {torch.nn.Linear}, torch.qint8)
            self.version += f", {torch.backends.quantized.engine}"
        self.past: Any = None

    @torch.inference_mode()
    def forward(self, inputs: Arrays) -> Any:
        return self.module(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy()

    def prefill(self, ids: Any) -> Any:
        self.past = None
        return self.decode(ids)

    @torch.inference_mode()
    def decode(self, ids: Any) -> Any:
        outputs = self.module(
            input_ids=torch.from_numpy(np.ascontiguousarray(ids)),
            past_key_values=self.past,
            use_cache=True,
            logits_to_keep=1,
        )
        self.past = outputs.past_key_values
        return outputs.logits[:, -1].numpy()


serve(TorchModel)
