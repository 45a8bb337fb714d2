"""How long a session measures. The name stands in every record."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """Rounds and windows of a cost session.

    Attributes:
        name: as in the pipeline's ``energy.profile``.
        rounds: complete blocks; every candidate runs once in each, in a random order.
        ends_rounds: the same for a workload that only the ends of a pipeline run: a smaller session.
        window_s: a candidate's timed window in a round; whole passes over the workload until it is full.
        settle_s: untimed work after waking up, since caches are cold and clocks low after a pause.
        warm_up_period_s: length of one warm-up period; warm-up ends when the last three agree.
        max_warm_up_periods: after these a candidate is measured although it is not steady, and the record says so.
    """

    name: str
    rounds: int
    ends_rounds: int
    window_s: float
    settle_s: float
    warm_up_period_s: float
    max_warm_up_periods: int


PROFILES = {
    "smoke": Profile("smoke", 3, 3, 0.2, 0.02, 0.05, 5),
    "quick": Profile("quick", 5, 3, 3.0, 0.2, 0.4, 10),
    "standard": Profile("standard", 10, 10, 10.0, 0.5, 1.0, 20),
    "publish": Profile("publish", 10, 10, 60.0, 1.0, 2.0, 30),
}
"""`smoke` only shows that the path works, `quick` serves CPU-seconds and estimates; the 60 s of `publish` are the
shortest window of MLPerf Power."""

STEADY_WITHIN = 0.02
"""Warm-up ends when the last three periods agree within this share of their mean."""
