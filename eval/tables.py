"""Turn committed reports into the tables that people read.

    python eval/tables.py            write them
    python eval/tables.py --check    exit 1 when one is out of date

Every `eval/results/<run>/report.json` becomes a `report.md` beside it, and a README block

    <!-- table: <run> <workload> <phase> --> ... <!-- end -->

is filled with that one cost table and its conditions. A report with a selected candidate also becomes the model card
`model_cards/<run>.md`. No figure in any of them is typed by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from compressor.render.card import model_card
from compressor.render.markdown import markdown, markdown_table
from compressor.render.tables import cost_tables
from compressor.schema.report import read_report

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "eval" / "results"
CARDS = ROOT / "model_cards"
BLOCK = re.compile(r"(<!-- table: (\S+) (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def block(run: str, workload: str, phase: str) -> str:
    """One cost table of a committed report; below it what holds for all rows (the rest is in the report)."""
    report = read_report(RESULTS / run / "report.json")
    for table in cost_tables(report):
        if table.title == f"{workload}, {phase}":
            ids = {candidate.id for candidate in report.candidates}
            shared = [note for note in table.notes if not ids & set(note.partition(":")[0].split(", "))]
            conditions = "\n".join(f"- {note}" for note in shared)
            source = f"[eval/results/{run}/report.json](eval/results/{run}/report.json)"
            return f"\n{markdown_table(table)}\n\n{conditions}\n- from {source}, {report.created}\n\n"
    raise SystemExit(f"{run}: the report has no table for {workload}, {phase}")


def generated() -> dict[Path, str]:
    """Every generated text, by file."""
    reports = {path: read_report(path) for path in sorted(RESULTS.glob("*/report.json"))}
    texts = {path.with_suffix(".md"): markdown(report) for path, report in reports.items()}
    for path, report in reports.items():
        if report.selected is not None and report.pipeline.get("stages"):
            texts[CARDS / f"{path.parent.name}.md"] = model_card(report)
    readme = ROOT / "README.md"
    texts[readme] = BLOCK.sub(lambda m: m[1] + block(m[2], m[3], m[4]) + m[5], readme.read_text())
    return texts


def orphans(texts: dict[Path, str]) -> list[Path]:
    """Cards whose report is gone."""
    return [path for path in sorted(CARDS.glob("*.md")) if path not in texts and path.name != "README.md"]


def main() -> int:
    """Write the tables, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a table is out of date")
    check = parser.parse_args().check
    texts = generated()
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'out of date; run python eval/tables.py' if check else 'written'}")
        if not check:
            path.write_text(texts[path])
    lost = orphans(texts)
    for path in lost:
        print(f"{path.relative_to(ROOT)}: its report is gone; delete it")
    return 1 if lost or (check and stale) else 0


if __name__ == "__main__":
    sys.exit(main())
