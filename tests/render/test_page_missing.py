"""Without plotly the page names the extra that brings it."""

from __future__ import annotations

import sys

import pytest

from compressor.errors import MissingPackageError


def test_without_plotly_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compressor.render.page", "compressor.render.page_parts", "compressor.render.page_figures"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(MissingPackageError) as caught:
        import compressor.render.page  # noqa: F401
    assert "the report page needs the package 'plotly'" in str(caught.value)
    assert "pip install 'joule-compressor[page]'" in str(caught.value)
