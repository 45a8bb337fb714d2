"""`auto` takes bfloat16 only where the processor multiplies it."""

from __future__ import annotations

import pytest

from compressor.stages.fitting import choose_precision


@pytest.mark.parametrize(
    ("asked", "flags", "taken"),
    [
        ("fp32", {"avx512_bf16"}, "fp32"),
        ("bf16", set(), "bf16"),
        ("auto", {"avx2", "avx512f"}, "fp32"),
        ("auto", {"avx512_bf16"}, "bf16"),
        ("auto", {"amx_bf16"}, "bf16"),
        ("auto", set(), "fp32"),
    ],
)
def test_precision_on_a_cpu(asked: str, flags: set[str], taken: str) -> None:
    assert choose_precision(asked, "cpu", frozenset(flags)) == taken  # type: ignore[arg-type]
