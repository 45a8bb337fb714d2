"""CodeCarbon's running total, where that package is installed: kept as a log, and never taken for a measurement.

CodeCarbon adds what it reads from a counter to what it makes up from a table (memory always, the CPU where it finds
no counter), and its record does not say which. The sum is as good as its worst part, so it is `model_estimated`, and
since CodeCarbon gives no band there is no number either: the result says so and carries the log.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from compressor.energy.domain import Domain, Probe, Provenance, Quantity, Sample, Scope
from compressor.energy.meter import now_ns
from compressor.errors import EnergyError

# Every read makes it measure; it averages the load of the CPU since the read before.
PERIOD_S = 0.1
CEILING_W = 10_000.0
_MJ_PER_KWH = 3.6e9


class CodeCarbonMeter:
    """An offline tracker that never asks the network; read only where it is passed to `measure`.

    Args:
        make_tracker: makes a tracker that has not been started; CodeCarbon's own when None.
    """

    name = "codecarbon"
    label = "CodeCarbon"

    def __init__(self, make_tracker: Callable[[], Any] | None = None) -> None:
        self._make_tracker = make_tracker
        self._tracker: Any = None

    def probe(self) -> Probe:
        """Whether the package is installed; nothing is started."""
        if self._make_tracker is None and importlib.util.find_spec("codecarbon") is None:
            return Probe("absent", "the package codecarbon is not installed", "pip install codecarbon")
        return Probe("ok", "a log without a number: CodeCarbon gives no band and does not say what it measured")

    def domains(self) -> tuple[Domain, ...]:
        """One total over everything it counts; nothing may be added to it."""
        return (
            Domain(
                id="codecarbon",
                scope=Scope.NODE_DC,
                provenance=Provenance.MODEL_ESTIMATED,
                quantity=Quantity.ENERGY,
                unit=Fraction(1, 1000),
                period_s=PERIOD_S,
                ceiling_w=CEILING_W,
            ),
        )

    def read(self) -> tuple[Sample, ...]:
        """Whole millijoules since the first read."""
        if self._tracker is None:
            self._tracker = (self._make_tracker or _offline_tracker)()
            self._tracker.start()
        self._tracker.flush()
        total = getattr(self._tracker, "_total_energy", None)
        if total is None:
            raise EnergyError("this codecarbon keeps no running total", hint="pip install codecarbon==3.3.2")
        return (Sample("codecarbon", now_ns(), round(total.kWh * _MJ_PER_KWH)),)


def _offline_tracker() -> Any:
    try:
        codecarbon = importlib.import_module("codecarbon")
    except ImportError as error:
        raise EnergyError(f"CodeCarbon cannot be used: {error}", hint="pip install codecarbon") from error
    # Its carbon figure is not read, so the country is of no account. No PUE: a reading is stored as read.
    return codecarbon.OfflineEmissionsTracker(
        country_iso_code="USA", save_to_file=False, log_level="error", allow_multiple_runs=True, pue=1.0
    )
