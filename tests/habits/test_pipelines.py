"""Every pipeline that ships is one that the loader accepts."""

from __future__ import annotations

from pathlib import Path

from compressor.spec.load import load_pipeline

REPOSITORY = Path(__file__).resolve().parents[2]


def test_every_shipped_pipeline_validates() -> None:
    files = sorted(path for path in (REPOSITORY / "pipelines").rglob("*") if path.suffix in (".yaml", ".yml"))
    assert len(files) >= 4
    names = [load_pipeline(path).name for path in files]
    assert len(set(names)) == len(files)
