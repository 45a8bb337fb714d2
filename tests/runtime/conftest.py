"""Small checkpoints with every variant, made by the rooms that make them in earnest.

Their imports stand inside the functions: pytest may read this file before the network is cut, and the hub's client
looks at its settings once, when it is imported.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_checkpoints import make_checkpoint

from compressor.methods.structure import LayerStructure, Structure

if TYPE_CHECKING:
    from compressor.checkpoints.store import Checkpoint

UNEVEN = Structure(
    layers_kept=(0, 2, 3),
    layers=(
        LayerStructure((0, 1), (0,), tuple(range(10))),
        LayerStructure((0, 1, 2, 3), (0, 1), tuple(range(3, 40))),
        LayerStructure((2, 3), (1,), ()),
    ),
)
"""Three of four layers, each of another shape; grouped-query attention keeps whole groups."""


def without_groups(structure: Structure) -> Structure:
    """The same where each head has its own keys and values."""
    layers = (LayerStructure(layer.heads_kept, layer.heads_kept, layer.ffn_kept) for layer in structure.layers)
    return Structure(structure.layers_kept, tuple(layers))


@pytest.fixture(scope="session")
def bert(tiny_bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tiny_bert_dir, tmp_path_factory.mktemp("bert") / "c")


@pytest.fixture(scope="session")
def gpt2(tiny_gpt2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tiny_gpt2_dir, tmp_path_factory.mktemp("gpt2") / "c")


@pytest.fixture(scope="session")
def llama(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tiny_llama_dir, tmp_path_factory.mktemp("llama") / "c")


@pytest.fixture(scope="session")
def pruned_llama(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tiny_llama_dir, tmp_path_factory.mktemp("pruned-llama") / "c", structure=UNEVEN)


@pytest.fixture(scope="session")
def pruned_gpt2(tiny_gpt2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("pruned-gpt2") / "c"
    return make_checkpoint(tiny_gpt2_dir, folder, structure=without_groups(UNEVEN), with_onnx=False)


@pytest.fixture(scope="session")
def pruned_bert(tiny_bert_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("pruned-bert") / "c"
    return make_checkpoint(tiny_bert_dir, folder, structure=without_groups(UNEVEN), with_onnx=False)


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Checkpoint], Path]:
    """A copy of a checkpoint's folder that a test may spoil."""

    def copy(checkpoint: Checkpoint) -> Path:
        return Path(shutil.copytree(checkpoint.path, tmp_path / "copy"))

    return copy


@pytest.fixture(scope="session")
def run_dir(bert: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose selected candidate is the INT8 file of a real checkpoint."""
    run: Path = tmp_path_factory.mktemp("pushed") / "run"
    folder = run / "stages" / "int8-01234567"
    shutil.copytree(bert.path, folder)
    report = json.loads((Path(__file__).parents[1] / "render" / "smoke_report.json").read_text())
    report["candidates"] = [one for one in report["candidates"] if not one["scratch"]]
    for one in report["candidates"]:
        if one["id"] == "int8":
            one |= {"checkpoint": "stages/int8-01234567", "digest": bert.digest, "variant": "onnx-w8a8-dynamic"}
    (run / "report.json").write_text(json.dumps(report))
    state = {"schema": "compressor-run/1", "name": "smoke", "steps": [], "pipeline": {}, "created": ""}
    (run / "run.json").write_text(json.dumps({**state, "status": "finished", "report": "report.json"}))
    return run
