"""Round a small language model by neural-compressor, store what it decided as ONNX, and say how near the two are.

    python round.py METHOD FOLDER    # awq or autoround; FOLDER takes the files

Runs in an environment of its own, with this repository on PYTHONPATH. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import transformers as hf

from compressor.graphs.export import export_decoder
from compressor.graphs.quantise import quantise_weights
from compressor.methods.rounding import find_grid
from compressor.stages.neural_compressor import round_module
from compressor.stages.rounding import stored_weights


def main(method: str, folder: Path) -> None:
    """Round, export, quantise, run."""
    config = hf.LlamaConfig(
        vocab_size=150, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    module = hf.LlamaForCausalLM(config).eval()
    batches = [{"input_ids": torch.randint(0, 150, (4, 32))} for _ in range(4)]
    ids = batches[0]["input_ids"]
    with torch.no_grad():
        before = module(ids).logits
        rounded = round_module(module, batches, method=method, bits=4, block_size=32)  # type: ignore[arg-type]
        after = rounded(ids).logits
    export_decoder(rounded, folder / "rounded.onnx")
    weights = stored_weights(folder / "rounded.onnx", include_lm_head=False)
    found = {node: find_grid(weight, bits=4, block_size=32) for node, weight in weights.items()}
    grids = {node: grid for node, grid in found.items() if grid is not None}
    facts = quantise_weights(folder / "rounded.onnx", folder / "q4.onnx", bits=4, include_lm_head=False, grids=grids)
    session = onnxruntime.InferenceSession(str(folder / "q4.onnx"))
    feed = {
        "input_ids": ids.numpy(),
        "attention_mask": np.ones((4, 32), np.int64),
        "position_ids": np.arange(32)[None].repeat(4, 0),
    }
    for value in session.get_inputs():
        if value.name.startswith("past_key_values."):
            feed[value.name] = np.zeros((4, value.shape[1], 0, value.shape[3]), np.float32)
    logits = session.run(["logits"], feed)[0]
    print(
        json.dumps(
            {
                "operators": facts.quantised_op_counts,
                "on_a_grid": len(grids),
                "moved_by_rounding": float((after - before).abs().max()),
                "onnx_from_rounded": float(np.abs(logits - after.numpy()).max()),
                "largest_logit": float(after.abs().max()),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
