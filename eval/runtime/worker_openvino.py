"""OpenVINO: an ONNX or IR file. A decoder's cache becomes a state inside the model, as OpenVINO's own users have it."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
from openvino._offline_transformations import apply_make_stateful_transformation
from protocol import Arrays, serve


class OpenVinoModel:
    """One compiled model; decoders for one batch size."""

    def __init__(self, job: Arrays) -> None:
        core = openvino.Core()
        model = core.read_model(job["path"])
        self.is_decoder = job["decoder"]
        if self.is_decoder:
            past = {name: name.replace("past_key_values.", "present.") for name in _names(model.inputs, "past_key")}
            shapes = {port: port.partial_shape for port in model.inputs}
            for port, shape in shapes.items():
                shape[0] = job["batch"]  # the state starts empty, and must know its rows
                if any(name in past for name in port.get_names()):
                    shape[2] = openvino.Dimension(-1)
            model.reshape({port.get_any_name(): shape for port, shape in shapes.items()})
            apply_make_stateful_transformation(model, past)
        settings = {"INFERENCE_NUM_THREADS": job["threads"], "PERFORMANCE_HINT": "LATENCY"}
        if "precision" in job["settings"]:
            settings["INFERENCE_PRECISION_HINT"] = job["settings"]["precision"]
        compiled = core.compile_model(model, "CPU", settings)
        self.request = compiled.create_infer_request()
        self.inputs = {name for port in compiled.inputs for name in port.get_names()}
        computes_in = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.version = f"openvino {openvino.get_version().split('-')[0]}, {computes_in} between"
        self.n_past = 0

    def forward(self, inputs: Arrays) -> Any:
        found = self.request.infer({name: array for name, array in inputs.items() if name in self.inputs})
        return found["logits"]

    def prefill(self, ids: Any) -> Any:
        self.request.reset_state()
        self.n_past = 0
        return self.decode(ids)

    def decode(self, ids: Any) -> Any:
        n_rows, n_new = ids.shape
        positions = np.arange(self.n_past, self.n_past + n_new, dtype=np.int64)
        self.n_past += n_new
        found = self.forward(
            {
                "input_ids": np.ascontiguousarray(ids),
                "attention_mask": np.ones((n_rows, self.n_past), np.int64),
                "position_ids": np.tile(positions, (n_rows, 1)),
            }
        )
        return found[:, -1]


def _names(ports: Any, start: str) -> list[str]:
    return [name for port in ports for name in port.get_names() if name.startswith(start)]


serve(OpenVinoModel)
