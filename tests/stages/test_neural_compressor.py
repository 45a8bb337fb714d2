"""neural-compressor's rounding reaches the ONNX file, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".cache/envs/neural-compressor/bin/python"


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.is_file(), reason="python eval/peers/environments.py neural-compressor")
@pytest.mark.parametrize("method", ["awq", "autoround"])
def test_what_neural_compressor_decided_is_in_the_onnx_file(method: str, tmp_path: Path) -> None:
    script = ROOT / "eval/peers/neural-compressor/round.py"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(PYTHON), str(script), method, str(tmp_path)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["on_a_grid"] == 14 and found["operators"] == {"MatMulNBits": 14}  # all but lm_head
    assert found["moved_by_rounding"] > 0.01 * found["largest_logit"]
    # the kernel rounds activations too, block by block, so the two differ a little; another grid would differ a lot
    assert found["onnx_from_rounded"] < 0.15 * found["moved_by_rounding"] + 0.01 * found["largest_logit"]
