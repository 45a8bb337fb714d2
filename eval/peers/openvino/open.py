"""Open a laid-out graph in OpenVINO: reads inputs as npz, writes outputs as npz. One job as JSON in argv[1]."""

import json
import sys

import numpy as np
import openvino

job = json.loads(sys.argv[1])
answers = {}
with np.load(job["inputs"]) as file:
    feeds = dict(file)
core = openvino.Core()
core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
compiled = core.compile_model(job["file"], "CPU")
names = {name for port in compiled.inputs for name in port.get_names()}
found = compiled({name: array for name, array in feeds.items() if name in names})
np.savez(job["out"], **{name: np.asarray(found[name]) for name in job["outputs"]})
print(json.dumps({"version": f"OpenVINO {openvino.get_version().split('-')[0]}"}))
