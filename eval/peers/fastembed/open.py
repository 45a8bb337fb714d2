"""Open a laid-out folder with fastembed, as a cross-encoder or an embedder. One job as JSON in argv[1]."""

import json
import sys

import fastembed
import numpy as np
from fastembed.common.model_description import ModelSource, PoolingType
from fastembed.rerank.cross_encoder import TextCrossEncoder

job = json.loads(sys.argv[1])
source = ModelSource(hf="local/only")
if job["embeds"]:
    fastembed.TextEmbedding.add_custom_model(
        model="local/model",
        pooling=PoolingType.MEAN,
        normalization=job["normalise"],
        sources=source,
        dim=job["dim"],
        model_file="onnx/model.onnx",
    )
    model = fastembed.TextEmbedding("local/model", specific_model_path=job["folder"], threads=1)
    found = {"sentence_embedding": np.stack(list(model.embed(job["texts"])))}
else:
    TextCrossEncoder.add_custom_model(model="local/model", sources=source, model_file="onnx/model.onnx")
    model = TextCrossEncoder("local/model", specific_model_path=job["folder"], threads=1)
    found = {"logits": np.array([list(model.rerank(job["query"], job["texts"]))]).T}
np.savez(job["out"], **found)
print(json.dumps({"version": f"fastembed {fastembed.__version__}"}))
