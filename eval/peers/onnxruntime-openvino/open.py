"""Open a checkpoint with `compressor.load` over ONNX Runtime's OpenVINO provider. One job as JSON in argv[1]."""

import json
import sys

import numpy as np
import onnxruntime

import compressor

job = json.loads(sys.argv[1])
model = compressor.load(
    job["checkpoint"], precision=job["precision"], runtime="onnxruntime", device="openvino", threads=1
)
np.savez(job["out"], logits=model.logits(job["texts"]))
print(json.dumps({"version": f"onnxruntime-openvino {onnxruntime.__version__}"}))
