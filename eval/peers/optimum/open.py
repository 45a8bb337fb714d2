"""Open a checkpoint with Optimum's ORTModel classes, tokenizer included. One job as JSON in argv[1]."""

import json
import sys

import numpy as np
import optimum.onnxruntime
import optimum.version
import torch
import transformers

job = json.loads(sys.argv[1])
tokenizer = transformers.AutoTokenizer.from_pretrained(job["folder"], padding_side=job["side"])
model_class = getattr(optimum.onnxruntime, job["class"])
subfolder, _, file = job["file"].rpartition("/")
model = model_class.from_pretrained(job["folder"], subfolder=subfolder, file_name=file, use_io_binding=False)
inputs = tokenizer(job["texts"], padding=True, return_tensors="pt")
with torch.no_grad():
    if job["new_tokens"]:
        tokens = model.generate(**inputs, max_new_tokens=job["new_tokens"], do_sample=False)
        found = {"tokens": tokens[:, inputs["input_ids"].shape[1] :].numpy()}
    else:
        found = {"logits": model(**inputs).logits.numpy()}
np.savez(job["out"], **found)
version = f"optimum {optimum.version.__version__}, transformers {transformers.__version__}"
print(json.dumps({"version": version}))
