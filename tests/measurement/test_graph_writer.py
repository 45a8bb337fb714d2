"""The second process that exports a table's graphs."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from transformers import PreTrainedModel

from compressor.measurement import graph_writer
from compressor.measurement.cost_graphs import Whole
from compressor.measurement.cost_rows import Timer, wanted_rows
from compressor.measurement.device import this_device
from compressor.measurement.graph_writer import FEWEST_GRAPHS, Order, write_ahead

DEVICE = this_device(threads=1, provider="CPUExecutionProvider")


def order_for(model: PreTrainedModel, folder: Path) -> Order:
    rows = tuple(wanted_rows(model, ["fp32"], 16))
    return Order(Timer(model, False, ("last_hidden_state",), graphs=folder), DEVICE, rows, (Whole(),))


def test_the_second_process_writes_its_half(
    tiny_encoder: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, told = order_for(tiny_encoder, tmp_path), []
    assert len(order) >= FEWEST_GRAPHS
    mine, theirs = order.halves()
    assert {*mine.rows, *theirs.rows} == {*order.rows} and {*mine.wholes, *theirs.wholes} == {*order.wholes}
    assert abs(len(mine) - len(theirs)) <= 1

    monkeypatch.setattr(graph_writer, "_has_room", lambda timer: True)
    monkeypatch.setattr(Order, "write", lambda self, on_graph: None)  # ours stay away, so what is there is theirs
    write_ahead(order, on_progress=lambda done, total: told.append((done, total)))
    names = {f"{kind}-{size}-{precision}.onnx" for kind, size, precision in theirs.rows} | {"dense-fp32.onnx"}
    assert {path.name for path in tmp_path.iterdir()} == names
    for path in tmp_path.iterdir():
        onnx.checker.check_model(onnx.load(path))
    assert told[0] == (0, len(order)) and told[-1] == (len(order), len(order))


def test_few_graphs_or_little_memory_start_no_process(
    tiny_encoder: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = order_for(tiny_encoder, tmp_path)
    monkeypatch.setattr(graph_writer, "_has_room", lambda timer: False)
    write_ahead(order, on_progress=lambda done, total: None)
    monkeypatch.setattr(graph_writer, "_has_room", lambda timer: True)
    few = Order(order.timer, DEVICE, order.rows[: FEWEST_GRAPHS - 1], ())
    write_ahead(few, on_progress=lambda done, total: None)
    assert list(tmp_path.iterdir()) == []
