"""Budgets as a user writes them: shares and amounts, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from compressor.spec.budgets import Limit, PruneBudget
from compressor.spec.stages import Prune


@pytest.mark.parametrize(
    ("written", "limits"),
    [
        ({"macs": 0.6}, {"macs": Limit(ratio=0.6)}),
        ({"parameters": 2_000_000}, {"parameters": Limit(amount=2e6)}),
        ({"cpu_s_per_token": "0.6x"}, {"cpu_s_per_token": Limit(ratio=0.6)}),
        ({"cpu_s_per_token": " .6 x"}, {"cpu_s_per_token": Limit(ratio=0.6)}),
        ({"cpu_s_per_token": 7.9e-5}, {"cpu_s_per_token": Limit(amount=7.9e-5)}),
        ({"cpu_s_per_token": "7.9e-5"}, {"cpu_s_per_token": Limit(amount=7.9e-5)}),
        (
            {"latency_s": 0.02, "joules_per_token": "0.5x"},
            {"joules_per_token": Limit(ratio=0.5), "latency_s": Limit(amount=0.02)},
        ),
    ],
)
def test_shares_and_amounts(written: dict[str, Any], limits: dict[str, Limit]) -> None:
    found = PruneBudget.model_validate(written).limits
    assert found == limits and list(found) == list(limits)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ({"cpu_s_per_token": 0}, "a budget must be above 0, not 0"),
        ({"cpu_s_per_token": -2}, "a budget must be above 0, not -2"),
        ({"cpu_s_per_token": "0x"}, "a budget must leave something and take something away: between 0x and 1x, not 0x"),
        ({"joules_per_token": "1x"}, "between 0x and 1x, not 1x"),
        ({"macs": 1.0}, "between 0x and 1x, not 1.0x"),
        ({"macs": "-0.5x"}, "a budget is a share of the dense model, such as 0.6x, or a positive number; not '-0.5x'"),
        ({"latency_s": "fast"}, "such as 0.6x, or a positive number; not 'fast'"),
        ({"size_bytes": True}, "a budget is a share of the dense model, such as 0.6x, or a positive number"),
        ({"phase": "decode"}, "give at least one of: joules_per_token, cpu_s_per_token, latency_s, size_bytes, macs"),
        ({"macs": 0.5, "phase": "decode"}, "`workload` and `phase` go with what is measured"),
    ],
)
def test_what_is_no_budget(written: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PruneBudget.model_validate(written)
    assert text in str(caught.value)


def test_a_limit_is_a_share_of_dense_or_itself() -> None:
    assert Limit(ratio=0.6).of(10.0) == 6.0 and Limit(amount=3.0).of(10.0) == 3.0
    assert str(Limit(ratio=0.6)) == "0.6x" and str(Limit(amount=7.9e-5)) == "7.9e-05"


def test_search_goes_with_a_budget() -> None:
    with pytest.raises(ValidationError, match="`search` goes with `budget`"):
        Prune.model_validate({"id": "p", "stage": "prune", "keep": {"ffn": 0.5}, "search": {"swaps": 3}})
    assert PruneBudget(macs=0.5).is_measured is False and PruneBudget(latency_s="0.5x").is_measured is True
