"""Tiny models of every family, each exported and fused once per session."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers as hf
from graph_families import ENCODERS, Exported, Fused, build

from compressor.graphs.export import export_decoder, export_encoder
from compressor.graphs.fuse import fuse


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """`exported("bert")`: that tiny model and its ONNX file, made on the first call."""
    made: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in made:
            model = build(name)
            write = export_encoder if name.removesuffix("-uneven") in ENCODERS else export_decoder
            made[name] = Exported(model, write(model, tmp_path_factory.mktemp(name) / "model.onnx"))
        return made[name]

    return get


@pytest.fixture(scope="session")
def fused(exported: Callable[[str], Exported]) -> Callable[[str], Fused]:
    """`fused("bert")`: the fused file of that model beside the exported one, and what the fusion reported."""
    made: dict[str, Fused] = {}

    def get(name: str) -> Fused:
        if name not in made:
            source = exported(name).path
            path = source.with_name("fused.onnx")
            made[name] = Fused(path, fuse(source, path))
        return made[name]

    return get


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A one-layer llama whose tied embedding (2100 x 32) is large enough to be worth quantising."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=2100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = hf.LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("tied")
    result = export_decoder(model, folder / "model.onnx")
    fuse(result.path, folder / "fused.onnx")
    return Exported(model, result)
