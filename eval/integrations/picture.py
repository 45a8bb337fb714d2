"""The README's picture: the report page of the committed main job, as headless Chromium draws it.

python eval/integrations/picture.py        # writes docs/report-page.png
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from compressor.render.page import page
from compressor.schema.report import read_report

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "eval" / "results" / "minilm-sentiment" / "report.json"
PICTURE = ROOT / "docs" / "report-page.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000")


def draw(source: Path, picture: Path, *, width: int = 1120, height: int = 1420) -> None:
    """A screenshot of a page's top.

    Raises:
        SystemExit: no Chromium here.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit("no Chromium here: apt-get install chromium")
    size = f"--window-size={width},{height}"
    subprocess.run([browser, *FLAGS, size, f"--screenshot={picture}", source.as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        html = Path(folder) / "report.html"
        html.write_text(page(read_report(REPORT)), encoding="utf-8")
        draw(html, PICTURE)
    print(f"{PICTURE.relative_to(ROOT)}: written")
