"""The energy section: every factor that turns joules into something else brings its source."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from compressor.spec.evaluation import Energy

CARBON = {"g_per_kwh": 56, "region": "FR", "year": 2024, "source": "grid operator"}


def test_factors_come_with_their_sources() -> None:
    energy = Energy.model_validate(
        {"pue": 1.2, "pue_source": "operator", "carbon": CARBON | {"market_g_per_kwh": 0, "market_source": "contract"}}
    )
    assert energy.carbon is not None
    assert (energy.pue, energy.carbon.market_g_per_kwh, energy.carbon.kind) == (1.2, 0.0, "average")


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"pue": 1.2}, "`pue` and `pue_source` go together: a factor needs its source"),
        ({"cop_source": "data sheet"}, "`cop` and `cop_source` go together"),
        ({"pue": 1.2, "pue_source": "a", "cop": 3, "cop_source": "b"}, "give one of: pue, cop"),
        ({"heat_share": 0.5}, "`heat_share` goes with `cop`"),
        ({"pue": 0.9, "pue_source": "a"}, "greater than or equal to 1"),
        ({"carbon": CARBON | {"market_g_per_kwh": 0}}, "`market_g_per_kwh` and `market_source` go together"),
        ({"carbon": {"g_per_kwh": 56, "year": 2024}}, "source"),
        ({"carbon": CARBON | {"g_per_kwh": -1}}, "greater than or equal to 0"),
    ],
)
def test_a_factor_without_its_source_is_refused(section: dict[str, object], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        Energy.model_validate(section)
