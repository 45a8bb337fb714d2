"""ONNX Runtime: any ONNX file, through the runner of this toolkit (for all files alike), with a session's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from protocol import Arrays, serve

from compressor.runtime.onnx_runner import OnnxDecoderRunner, open_onnx


class OrtModel:
    """One ONNX file."""

    def __init__(self, job: Arrays) -> None:
        settings = dict(job["settings"])
        self.runner = open_onnx(
            Path(job["path"]),
            is_decoder=job["decoder"],
            threads=settings.pop("threads", job["threads"]),
            provider="CPUExecutionProvider",
            settings=settings,
        )
        self.version = f"onnxruntime {onnxruntime.__version__}"
        self.state: Any = None

    def forward(self, inputs: Arrays) -> Any:
        return self.runner.forward(inputs)["logits"]

    def prefill(self, ids: Any) -> Any:
        assert isinstance(self.runner, OnnxDecoderRunner)
        logits, self.state = self.runner.prefill(ids, np.ones_like(ids))
        return logits

    def decode(self, ids: Any) -> Any:
        assert isinstance(self.runner, OnnxDecoderRunner)
        logits, self.state = self.runner.decode(ids, self.state)
        return logits


serve(OrtModel)
