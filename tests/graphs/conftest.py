"""Tiny models of every family, each exported once per session."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from graph_families import ENCODERS, Exported, build

from compressor.graphs.export import export_decoder, export_encoder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """`exported("bert")`: that tiny model and its ONNX file, made on the first call."""
    made: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in made:
            model = build(name)
            write = export_encoder if name in ENCODERS else export_decoder
            made[name] = Exported(model, write(model, tmp_path_factory.mktemp(name) / "model.onnx"))
        return made[name]

    return get
