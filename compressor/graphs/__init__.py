"""ONNX files: exported from torch, fused, quantised, inspected and compared.

Plain functions from a module or a path to a file and a small frozen result; no config object and no checkpoint
comes down here.
"""
