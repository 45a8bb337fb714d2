"""One graph that holds every node in several precisions, with a switch for each: what does quantising this one cost?

A session for every node and every combination would be loaded hundreds of times. Here all precisions of a product are
computed and an input picks one of them, so any mixture is one more run of the same session. Set to 0 everywhere, it
gives the fp32 graph's outputs to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import StageError
from compressor.graphs.files import load_onnx, save_onnx
from compressor.graphs.prepare import prepare

SWITCHES = "quantisation_levels"
"""The extra input, (n_nodes,) int64: 0 for fp32, 1 for the first quantised file, ..."""

Feed = Mapping[str, NDArray[np.generic]]


def merge_precisions(
    path: str | Path, quantised: Sequence[str | Path], out: str | Path, *, include_lm_head: bool
) -> tuple[tuple[str, int], ...]:
    """Write the graph with switches.

    Args:
        path: the fp32 graph.
        quantised: files that our quantisers made of it, each a level of its own, embeddings left alone.
        out: the file to write.
        include_lm_head: as the quantised files have it.

    Returns:
        The nodes in the order of the switches, and how many weights each has.

    Raises:
        StageError: the files have no quantised node in common with the graph.
    """
    base = prepare(path, include_lm_head=include_lm_head, exclude=())
    graph, levels = base.graph, [load_onnx(file) for file in quantised]
    stored = {tensor.name: tensor for tensor in graph.initializer}
    known = {output for node in graph.node for output in node.output} | set(stored)
    known |= {value.name for value in graph.input}
    parts = [_Part(level.graph, known, f"/level{number}") for number, level in enumerate(levels, 1)]
    switched, nodes = list[tuple[str, int]](), list[onnx.NodeProto]()
    numbers = [numpy_helper.from_array(np.array(n, np.int64), f"{SWITCHES}/{n}") for n in range(1, len(parts) + 1)]
    indices = []
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in stored or not all(part.changes(node) for part in parts):
            nodes.append(node)
            continue
        output, index = node.output[0], f"{SWITCHES}/index{len(switched)}"
        indices.append(numpy_helper.from_array(np.array(len(switched), np.int64), index))
        switched.append((node.name, int(np.prod(stored[node.input[1]].dims))))
        node.output[0] = chosen = f"{output}/fp32"
        nodes += [node, helper.make_node("Gather", [SWITCHES, index], [f"{output}/switch"], axis=0)]
        for number, part in enumerate(parts, 1):
            nodes += part.take(output)
            is_set, picked = f"{output}/is{number}", output if number == len(parts) else f"{output}/picked{number}"
            nodes.append(helper.make_node("Equal", [f"{output}/switch", f"{SWITCHES}/{number}"], [is_set]))
            nodes.append(helper.make_node("Where", [is_set, f"{output}{part.suffix}", chosen], [picked]))
            chosen = picked
    if not switched:
        raise StageError("quantised no node that the fp32 graph has too", where=str(path))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # they go with the old list
    del graph.node[:]
    graph.node.extend(copies)
    graph.initializer.extend([*numbers, *indices, *(tensor for part in parts for tensor in part.initializers)])
    graph.input.append(helper.make_tensor_value_info(SWITCHES, TensorProto.INT64, [len(switched)]))
    domains = {entry.domain for entry in base.opset_import}
    base.opset_import.extend(e for level in levels for e in level.opset_import if e.domain not in domains)
    save_onnx(base, out)
    return tuple(switched)


class _Part:
    """The quantised nodes of one level, renamed so that several levels fit into one graph."""

    def __init__(self, graph: onnx.GraphProto, known: set[str], suffix: str) -> None:
        self.suffix, self._known = suffix, known
        self._producers = {output: node for node in graph.node for output in node.output}
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._taken: set[str] = set()
        self.initializers: list[onnx.TensorProto] = []

    def changes(self, node: onnx.NodeProto) -> bool:
        """Whether this level computes the node's output from other weights."""
        made = self._producers.get(node.output[0])
        return made is not None and (made.op_type != "MatMul" or made.input[1] not in self._known)

    def take(self, output: str) -> list[onnx.NodeProto]:
        """The nodes behind `output` up to values that the fp32 graph has, in order, those taken before left out."""
        if output in self._taken:
            return []
        self._taken.add(output)
        node = onnx.NodeProto.FromString(self._producers[output].SerializeToString())
        before: list[onnx.NodeProto] = []
        for position, name in enumerate(node.input):
            if not name or name in self._known:
                continue
            if name in self._producers:
                before += self.take(name)
            elif name not in self._taken:
                self._taken.add(name)
                tensor = TensorProto.FromString(self._stored[name].SerializeToString())
                tensor.name = name + self.suffix
                self.initializers.append(tensor)
            node.input[position] = name + self.suffix
        for position, name in enumerate(node.output):
            node.output[position] = name + self.suffix if name else ""
            self._taken.add(name)
        node.name += self.suffix
        return [*before, node]


class Switchboard:
    """A session over a graph with switches.

    Args:
        path: the file of `merge_precisions`.
        nodes: what it returned.
        threads: of a run.
        is_precise: with ``session.x64quantprecision``.
    """

    def __init__(
        self, path: str | Path, nodes: Sequence[tuple[str, int]], *, threads: int, is_precise: bool = False
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if is_precise:
            options.add_session_config_entry("session.x64quantprecision", "1")
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = [value.name for value in self._session.get_inputs() if value.name != SWITCHES]
        self.nodes = tuple(nodes)

    def run(self, feed: Feed, levels: Mapping[str, int], output: str) -> NDArray[np.floating]:
        """One output of the graph, its nodes at these levels (fp32 where a node is not named)."""
        switches = np.array([levels.get(name, 0) for name, _ in self.nodes], np.int64)
        inputs = {name: feed[name] for name in self._names}
        result: NDArray[np.floating] = self._session.run([output], {**inputs, SWITCHES: switches})[0]
        return result
