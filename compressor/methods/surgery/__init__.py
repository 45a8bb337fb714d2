"""Taking heads, neurons and layers out of stock Hugging Face models, and putting zeros back in their place."""

from compressor.methods.surgery.adapters import ADAPTERS, Adapter, adapter_for, adapter_of_type, layers_of
from compressor.methods.surgery.apply import (
    apply_structure,
    drop_layers,
    head_dim_of,
    kv_cache_shapes,
    n_parameters,
    read_layer,
    read_structure,
    rebuild,
    require_change,
    resize_layer,
)
from compressor.methods.surgery.copying import copy_layers, spaced_layers
from compressor.methods.surgery.hidden import hidden_width
from compressor.methods.surgery.stock import StockFit, stock_fit, zero_pad_to_stock

__all__ = [
    "ADAPTERS",
    "Adapter",
    "StockFit",
    "adapter_for",
    "adapter_of_type",
    "apply_structure",
    "copy_layers",
    "drop_layers",
    "head_dim_of",
    "hidden_width",
    "kv_cache_shapes",
    "layers_of",
    "n_parameters",
    "read_layer",
    "read_structure",
    "rebuild",
    "require_change",
    "resize_layer",
    "spaced_layers",
    "stock_fit",
    "zero_pad_to_stock",
]
