"""Running a checkpoint: torch or ONNX Runtime behind one narrow interface with numpy at the waist.

torch is imported by the `torch_*` files only, so an ONNX variant predicts and generates without it.
"""
