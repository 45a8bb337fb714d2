"""How much damage each node does alone, and the cheapest order in which to give nodes their precision back.

Damage is the mean KL divergence of the answers from those of the fp32 graph, on calibration rows, with one node
quantised and all others in fp32. It is not additive, so the order only proposes; quality on validation rows decides.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.errors import DataError
from compressor.graphs.parity import compare_logits
from compressor.graphs.switches import Feed, Switchboard

Levels = Mapping[str, int]
"""Node -> level of the switchboard; fp32 (0) where it is not named."""


@dataclass(frozen=True)
class NodeDamage:
    """One node, quantised alone.

    Attributes:
        node: its name in the fp32 graph.
        level: of the switchboard.
        n_weights: of its matrix.
        kl: mean KL divergence of the answers from fp32's, in nats.
    """

    node: str
    level: int
    n_weights: int
    kl: float


@dataclass(frozen=True)
class Raise:
    """One step of the order: from here on, `node` is at `level`."""

    node: str
    level: int


def measure_damage(
    board: Switchboard, feeds: Sequence[Feed], levels: Sequence[int], output: str
) -> tuple[NodeDamage, ...]:
    """Every node at every level, alone, most damage first.

    Args:
        board: the graph with switches.
        feeds: calibration inputs; padding is left out of what is compared.
        levels: those to measure.
        output: name of the logits.

    Raises:
        DataError: no feed.
    """
    if not feeds:
        raise DataError("no calibration feed", hint="give at least a few dozen texts of the training split")
    expected = _answers(board, feeds, {}, output)
    found = [
        NodeDamage(
            node=name,
            level=level,
            n_weights=n_weights,
            kl=compare_logits(expected, _answers(board, feeds, {name: level}, output)).kl_mean,
        )
        for name, n_weights in board.nodes
        for level in levels
    ]
    return tuple(sorted(found, key=lambda one: (-one.kl, one.node)))


def order_raises(damages: Sequence[NodeDamage], ladder: Sequence[int], bits: Mapping[int, int]) -> tuple[Raise, ...]:
    """Steps that give nodes their precision back, each time the one that mends most per byte it costs.

    Args:
        damages: of `measure_damage`.
        ladder: levels from the one that all nodes start at up to 0, fp32.
        bits: of a weight at each level.
    """
    kl = {(one.node, one.level): one.kl for one in damages}
    sizes = {one.node: one.n_weights for one in damages}

    def step(node: str, place: int) -> tuple[float, str, int]:
        here, above = ladder[place], ladder[place + 1]
        mended = kl[node, here] - kl.get((node, above), 0.0)
        return (-mended / (sizes[node] * (bits[above] - bits[here])), node, place)

    waiting = [step(node, 0) for node in sizes]
    heapq.heapify(waiting)
    order = []
    while waiting:
        _, node, place = heapq.heappop(waiting)
        order.append(Raise(node, ladder[place + 1]))
        if place + 2 < len(ladder):
            heapq.heappush(waiting, step(node, place + 1))
    return tuple(order)


def levels_after(order: Sequence[Raise], n_steps: int, nodes: Sequence[str], start: int) -> dict[str, int]:
    """Every node's level once the first `n_steps` are taken."""
    return dict.fromkeys(nodes, start) | {one.node: one.level for one in order[:n_steps]}


def fewest_steps(n_steps: int, keeps: Callable[[int], bool]) -> int:
    """The smallest number of steps that `keeps`, by bisection; quality is taken to grow with precision.

    `keeps(n_steps)`, everything in fp32, is never asked: it holds by definition.
    """
    low, high = 0, n_steps
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(middle) else (middle + 1, high)
    return low


def _answers(board: Switchboard, feeds: Sequence[Feed], levels: Levels, output: str) -> NDArray[np.floating]:
    """Answers on all feeds as rows (N, V): a row per text, or per real token."""
    rows = []
    for feed in feeds:
        answer = board.run(feed, levels, output)
        if answer.ndim == 3:  # (B, T, V)
            answer = answer[feed["attention_mask"][:, -answer.shape[1] :] != 0]
        rows.append(answer)
    return np.concatenate(rows)
