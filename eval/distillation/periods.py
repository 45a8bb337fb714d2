"""A harder task than binary sentiment: from which 20 years does a sentence of a State of the Union address come?

    python eval/distillation/periods.py [--archives FOLDER]

Twelve classes, 1790 to 2021. Sentences of 8 to 64 words that state no year, each once, whole addresses to a split, so
that no sentence of a test address was ever trained on; rows are spread evenly over each split's addresses. The same
archive, hash-checked, as `python eval/fetch.py sotu`; written to `.cache/data/periods`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "eval"))

import fetch  # noqa: E402

FIRST_YEAR, YEARS = 1790, 20
LABELS = tuple(f"{year} to {year + YEARS - 1}" for year in range(FIRST_YEAR, 2021, YEARS))
ROWS = {"train": 7000, "validation": 1000, "test": 2000}
FOLDER = ROOT / ".cache" / "data" / "periods"


def rows_of(archive: Path) -> dict[str, list[dict[str, object]]]:
    """Labelled sentences by split."""
    found: dict[str, list[dict[str, object]]] = {split: [] for split in ROWS}
    seen: set[str] = set()
    with tarfile.open(archive) as package:
        names = sorted(name for name in package.getnames() if re.fullmatch(r"package/data/\d{4}_\w+\.json", name))
        for name in names:
            file = package.extractfile(name)
            assert file is not None  # the archive's hash has been checked
            entry = json.load(file)
            label = (int(entry["year"]) - FIRST_YEAR) // YEARS
            for text in fetch.sentences(" ".join(entry["text"].split())):
                key = fetch.text_key(text)
                if key in seen or not 8 <= len(text.split()) <= 64 or re.search(r"\b(1[5-9]|20)\d\d\b", text):
                    continue
                seen.add(key)
                found[fetch.split_by_hash(Path(name).stem)].append({"text": text, "label": label})
    return {split: fetch.evenly(rows, ROWS[split]) for split, rows in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archives", type=Path, help="folder that holds the archive already")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        archive = fetch.obtain(fetch.TARGETS["sotu"].archive, Path(scratch), arguments.archives)
        rows = rows_of(archive)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for split, entries in rows.items():
        fetch.write_rows(FOLDER / f"{split}.jsonl", entries)
        counts = [sum(entry["label"] == label for entry in entries) for label in range(len(LABELS))]
        print(f"{split}: {len(entries)} rows, by class {counts}")


if __name__ == "__main__":
    main()
