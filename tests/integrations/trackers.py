"""A finished run on disk for trackers: the made-up report, and a real ONNX checkpoint for its selected candidate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finished import values

from compressor.checkpoints.manifest import Record, Variant
from compressor.checkpoints.store import seal


def onnx_file(path: Path) -> None:
    """A graph that adds one to its input."""
    from onnx import TensorProto, helper, save

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    graph = helper.make_graph([helper.make_node("Add", ["x", "one"], ["y"])], "g", [value], [out], [one])
    path.parent.mkdir(parents=True, exist_ok=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))


def finished_run(run: Path) -> dict[str, Any]:
    """RUN/report.json and the folder of `int8`; returns the report as plain values."""
    report = values()
    chosen = next(one for one in report["candidates"] if one["id"] == report["selected"])
    folder = run / "stages" / "int8-01234567"
    onnx_file(folder / "onnx" / "model_int8.onnx")
    (folder / "config.json").write_text("{}")
    record = Record(
        stage="int8", kind="quantize", fingerprint="", config={}, inputs={}, data={}, seed=0, versions={}, realised={},
        wall_s=0.0, cpu_s=0.0, energy=None, energy_reason="a test", host={}, created="2026-01-01T00:00:00Z",
    )  # fmt: skip
    variant = Variant(
        id="onnx-w8a8-dynamic", path="onnx/model_int8.onnx", runtime="onnxruntime", scheme="w8a8-dynamic", stage="int8",
        parameters=1, size_bytes=1,
    )  # fmt: skip
    sealed = seal(
        folder, task="sequence-classification", model_type="bert", architecture="", labels=None, variants=[variant],
        structure=None, record=record,
    )  # fmt: skip
    chosen |= {"checkpoint": "stages/int8-01234567", "variant": variant.id, "digest": sealed.digest}
    for one in report["candidates"]:
        if one is not chosen:
            one["checkpoint"] = f"stages/{one['id']}-gone"
    (run / "report.json").write_text(json.dumps(report))
    return report
