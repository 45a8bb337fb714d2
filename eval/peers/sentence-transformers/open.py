"""Open a folder with sentence-transformers, whose code pools and normalises. One job as JSON in argv[1]."""

import json
import sys

import numpy as np
import sentence_transformers

job = json.loads(sys.argv[1])
chosen = {"file_name": job["file"]} if job["backend"] == "onnx" else {}
model = sentence_transformers.SentenceTransformer(
    job["folder"], backend=job["backend"], model_kwargs=chosen, local_files_only=True, device="cpu"
)
np.savez(job["out"], sentence_embedding=model.encode(job["texts"]))
print(json.dumps({"version": f"sentence-transformers {sentence_transformers.__version__}"}))
