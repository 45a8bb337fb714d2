"""The structure as data: what is written is read back, and contradictions are found."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import CheckpointError
from compressor.methods.structure import LayerStructure, Structure, full_layer, read_ranges, write_ranges

indices = st.sets(st.integers(0, 200)).map(lambda found: tuple(sorted(found)))


def test_ranges_by_hand() -> None:
    assert write_ranges((0, 1, 2, 7, 9, 10)) == "0-2,7,9-10"
    assert write_ranges(()) == "" and read_ranges("") == ()


@given(indices)
def test_ranges_round_trip(kept: tuple[int, ...]) -> None:
    assert read_ranges(write_ranges(kept)) == kept


@given(st.lists(st.tuples(indices, indices), min_size=1, max_size=4))
def test_json_round_trips(parts: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    layers = tuple(LayerStructure(heads, heads, ffn) for heads, ffn in parts)
    structure = Structure(tuple(range(0, 2 * len(layers), 2)), layers)
    assert Structure.from_json(json.loads(json.dumps(structure.to_json()))) == structure


def test_skip_follows_from_what_is_kept() -> None:
    assert LayerStructure((), (), (1,)).skip == {"attention"}
    assert LayerStructure((0,), (0,), ()).skip == {"ffn"}
    assert full_layer(2, 1, 3).skip == frozenset()


def test_later_structures_count_within_earlier_ones() -> None:
    first = Structure((1, 4), (LayerStructure((0, 2), (0, 2), (5, 7, 9)), full_layer(3, 3, 2)))
    later = Structure((1,), (LayerStructure((0, 2), (0, 2), (1,)),))
    assert first.then(later) == Structure((4,), (LayerStructure((0, 2), (0, 2), (1,)),))
    assert first.then(first.reload()) == first


def test_contradictions_are_found() -> None:
    value = Structure((0,), (full_layer(2, 2, 4),)).to_json()
    value["layers"][0]["ffn_width"] = 5
    with pytest.raises(
        CheckpointError, match=r"contradicts itself at layer 0: counts \(2, 2, 5\), indices \(2, 2, 4\)"
    ):
        Structure.from_json(value)
    with pytest.raises(CheckpointError, match="the structure in the manifest cannot be read: KeyError"):
        Structure.from_json({"layers": []})
    with pytest.raises(ValueError, match="2 layers kept but 1 described"):
        Structure((0, 1), (full_layer(1, 1, 1),))
