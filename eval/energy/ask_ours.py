"""What compressor.energy says of a made-up powercap tree, asked for measured energy."""

from __future__ import annotations

from fake_powercap import Tree, answer

import compressor.energy
from compressor.errors import CompressorError


def ask(tree: Tree) -> list[dict[str, object]]:
    said: list[dict[str, object]] = []
    try:
        with tree.idling():
            sources = compressor.energy.choose_sources(require="measured", root=tree.root)
    except CompressorError as error:
        return [{"refused": error.message, "hint": error.hint}]
    for window in tree.scenario.windows:
        with compressor.energy.Window(sources, root=tree.root) as reading:
            tree.play(window)
        record = compressor.energy.to_json(reading.result)
        del record["windows"]
        said.append({"text": str(reading.result), "record": record})
    return said


if __name__ == "__main__":
    answer(ask)
