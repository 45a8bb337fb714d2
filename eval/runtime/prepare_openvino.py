"""NNCF's INT8, in OpenVINO's environment: full static quantisation of an encoder, weights of a decoder.

    python eval/runtime/prepare_openvino.py encoder MODEL.onnx CALIBRATION.npz OUT.xml
    python eval/runtime/prepare_openvino.py decoder MODEL.onnx - OUT.xml

The first is what sentence-transformers' OpenVINO door does (`nncf.quantize`, calibrated), the second what OpenVINO does
for language models (`nncf.compress_weights`, INT8 with a zero point).
"""

from __future__ import annotations

import sys

import nncf
import openvino
from protocol import read_batches

kind, source, calibration, out = sys.argv[1:]
model = openvino.Core().read_model(source)
if kind == "encoder":
    rows = read_batches(calibration)
    names = {name for port in model.inputs for name in port.get_names()}
    data = nncf.Dataset([{name: array for name, array in row.items() if name in names} for row in rows])
    model = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
else:
    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
openvino.save_model(model, out, compress_to_fp16=False)
print(f"nncf {nncf.__version__}")
