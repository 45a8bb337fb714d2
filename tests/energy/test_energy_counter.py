"""The integer maths against the true integral, and every way in which a log must be refused."""

from __future__ import annotations

from fractions import Fraction

import pytest
from fake_machine import RANGE_UJ, domain, log
from hypothesis import assume, given
from hypothesis import strategies as st

from compressor.energy import Domain, Provenance, Quantity, Scope
from compressor.energy.counter import (
    CounterFault,
    cross_check,
    gross,
    minimum_window_s,
    net,
    refuse_short_window,
    total,
)
from compressor.energy.domain import CounterWindow, DomainLog
from compressor.errors import EnergyError

MS = 1_000_000  # ns


@st.composite
def counter_logs(draw: st.DrawFn) -> tuple[DomainLog, Fraction]:
    """A counter that watched a random power trace through any number of wraps, and the trace's true energy."""
    unit = Fraction(1, draw(st.sampled_from([16_384, 65_536, 1_000_000])))
    modulus = draw(st.integers(5_000, 200_000))
    ceiling_w = draw(st.integers(10, 1000))
    half_wrap_ms = int(modulus * unit * 1000 / (2 * ceiling_w))
    assume(half_wrap_ms >= 1)
    steps_ms = draw(st.lists(st.integers(1, half_wrap_ms), min_size=1, max_size=60))
    powers_w = draw(st.lists(st.integers(1, ceiling_w), min_size=len(steps_ms), max_size=len(steps_ms)))
    start = draw(st.integers(0, modulus - 1))
    energy, t_ms = Fraction(start) * unit, 0
    samples = [(0, start)]
    for step_ms, power_w in zip(steps_ms, powers_w, strict=True):
        energy += Fraction(power_w * step_ms, 1000)
        t_ms += step_ms
        samples.append((t_ms * MS, int(energy / unit) % modulus))
    watched = domain(unit=unit, modulus=modulus, ceiling_w=float(ceiling_w))
    return DomainLog(watched, tuple(samples)), energy - start * unit


@given(counter_logs())
def test_counter_energy_is_the_true_integral_within_one_unit(case: tuple[DomainLog, Fraction]) -> None:
    watched, true_j = case
    assert abs(total(watched) - true_j) <= watched.domain.unit


@given(counter_logs())
def test_leaving_samples_out_does_not_change_the_energy(case: tuple[DomainLog, Fraction]) -> None:
    """As long as no gap exceeds half a wrap, it does not matter where the counter was looked at."""
    watched, _ = case
    thinned = DomainLog(watched.domain, watched.samples[::2] + watched.samples[-1:])
    try:
        assert total(thinned) == total(watched)
    except CounterFault as fault:
        assert "between two samples" in fault.message


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 200_000)), min_size=2, max_size=50))
def test_power_energy_is_the_true_integral_of_a_piecewise_linear_trace(points: list[tuple[int, int]]) -> None:
    sensor = domain(quantity=Quantity.POWER, unit=Fraction(1, 1000), modulus=None, period_s=0.1)
    samples, t_ns, true_j = [], 0, Fraction(0)
    for i, (step_ms, power_mw) in enumerate(points):
        if i:
            true_j += Fraction(power_mw + points[i - 1][1], 2000) * Fraction(step_ms, 1000)
            t_ns += step_ms * MS
        samples.append((t_ns, power_mw))
    assert total(DomainLog(sensor, tuple(samples))) == true_j


def test_a_wrap_between_the_last_sample_and_the_end_is_an_ordinary_step() -> None:
    """A tool that corrects wraps in a second process reported -65,531 J for this window of 1.5 J."""
    edge = RANGE_UJ + 1
    watched = log(domain(), (0.0, edge - 1_200_000), (1.0, edge - 200_000), (1.5, 300_000))
    assert total(watched) == Fraction(3, 2)


def test_the_idle_window_after_a_wrap_is_not_charged_with_it() -> None:
    """The same tool then booked +65,533 J to the next, idle window."""
    assert total(log(domain(), (1.5, 300_000), (1.8, 330_000))) == Fraction(3, 100)


def test_a_reset_is_refused_and_not_taken_for_a_wrap() -> None:
    with pytest.raises(
        CounterFault, match=r"package-0: the counter fell from 90000000000 to 5: a reset or a backwards"
    ):
        total(log(domain(), (0, 90_000_000_000), (1, 5)))


def test_a_small_backwards_step_is_refused() -> None:
    with pytest.raises(CounterFault, match="fell from 5000 to 4999"):
        total(log(domain(), (0, 5000), (1, 4999)))


def test_a_counter_without_a_range_that_goes_backwards_is_refused() -> None:
    with pytest.raises(CounterFault, match=r"went backwards, from 10 to 3 \(a reset\?\)"):
        total(log(domain(modulus=None), (0, 10), (1, 3)))


def test_power_above_the_ceiling_is_refused() -> None:
    with pytest.raises(
        CounterFault, match=r"jumped; taken at its word that is 2000 J in 1\.000 s, above the ceiling of 1000 W"
    ):
        total(log(domain(), (0, 0), (1, 2_000_000_000)))


def test_a_frozen_counter_is_refused_and_not_zero() -> None:
    with pytest.raises(CounterFault, match=r"package-0: frozen, no change in 0\.40 s"):
        total(log(domain(), (0, 77), (0.4, 77)))


def test_a_counter_that_freezes_in_the_middle_is_refused() -> None:
    with pytest.raises(CounterFault, match=r"frozen, no change in 1\.00 s"):
        total(log(domain(), (0, 0), (1, 10_000_000), (2, 10_000_000), (3, 20_000_000)))


def test_a_gap_that_could_hide_a_wrap_is_refused() -> None:
    small = domain(modulus=65_536_000_000)  # 65.5 kJ: half a wrap at 1000 W is 32.8 s
    with pytest.raises(CounterFault, match=r"40\.00 s between two samples; the counter may have wrapped unseen"):
        total(log(small, (0, 0), (40, 5_000_000)))


def test_a_reading_outside_the_range_is_refused() -> None:
    with pytest.raises(CounterFault, match="outside the counter's range"):
        total(log(domain(), (0, 0), (1, RANGE_UJ + 2)))


def test_time_running_backwards_is_refused() -> None:
    with pytest.raises(CounterFault, match=r"the monotonic clock ran backwards by 0\.500 s"):
        total(log(domain(), (0, 0), (2, 100), (1.5, 200), (3, 300)))


@pytest.mark.parametrize("samples", [(), ((0.0, 5),), ((1.0, 5), (1.0, 9))])
def test_a_log_that_spans_no_time_is_refused(samples: tuple[tuple[float, int], ...]) -> None:
    with pytest.raises(CounterFault, match=r"two are needed|has no length"):
        total(log(domain(), *samples))


POWER = domain("gpu:power", Scope.GPU_BOARD, Provenance.DEVICE_POWER_INTEGRATED, Quantity.POWER, Fraction(1, 1000), 0.1)


@pytest.mark.parametrize(
    ("samples", "text"),
    [
        (((0, 0), (1, 0)), "frozen, the sensor read 0 W throughout"),
        (((0, 100), (1, -100), (2, 100)), "a negative power reading, -100"),
        (((0, 100), (1, 2_000_000)), "2000 W read, above the ceiling of 1000 W"),
        (((0, 100), (9, 100)), r"no power sample for 9\.00 s"),
    ],
)
def test_a_power_log_that_cannot_be_is_refused(samples: tuple[tuple[float, int], ...], text: str) -> None:
    with pytest.raises(CounterFault, match=text):
        total(log(POWER, *samples))


def test_domains_of_one_kind_add_up_and_their_uncertainties_too() -> None:
    logs = [log(domain(f"package-{i}"), (0, 0), (1, 2_000_000)) for i in range(2)]
    both, one = gross(logs), gross(logs[:1])
    assert both.energy == 4
    assert both.uncertainty == 2 * one.uncertainty == 2 * (Fraction(2, 1000) + Fraction(1, 1_000_000))


def test_psys_is_never_added_to_the_packages_it_covers() -> None:
    """One tool counts psys as a second CPU package and so reports about twice the joules."""
    psys = domain("psys", Scope.PLATFORM_PSYS, overlaps=("package-0",))
    with pytest.raises(
        CounterFault, match=r"package-0 \(cpu_package\) and psys \(platform_psys\) cover the same joules"
    ):
        gross([log(domain(), (0, 0), (1, 5)), log(psys, (0, 0), (1, 9))])


def test_a_checking_sensor_is_never_added_to_its_counter() -> None:
    counter = domain("gpu", Scope.GPU_BOARD, unit=Fraction(1, 1000), modulus=None, period_s=0.1)
    sensor = domain("gpu:power", Scope.GPU_BOARD, quantity=Quantity.POWER, unit=Fraction(1, 1000), checks="gpu")
    logs = [log(counter, (0, 0), (1, 100_000)), log(sensor, (0, 100_000), (1, 100_000))]
    assert gross(logs).energy == 100
    assert cross_check(logs) == []
    apart = [logs[0], log(sensor, (0, 80_000), (1, 80_000))]
    assert cross_check(apart) == [(apart[0], apart[1])]


def test_cpu_time_is_not_energy() -> None:
    with pytest.raises(CounterFault, match="counts CPU time, which is not energy"):
        gross([log(domain(quantity=Quantity.CPU_TIME), (0, 0), (1, 5))])


def window(work_w: int, before_w: int, after_w: int) -> CounterWindow:
    logs = {power_w: (log(domain(), (0, 0), (10, power_w * 10_000_000)),) for power_w in (work_w, before_w, after_w)}
    return CounterWindow(logs[work_w], logs[before_w], logs[after_w])


def test_net_is_gross_less_idle_power_over_the_window() -> None:
    assert net(window(100, 40, 42)) == 1000 - 41 * 10


@pytest.mark.parametrize(
    ("case", "text"),
    [
        (window(100, 40, 50), "idle power moved from 40 W to 50 W, more than 5 % of the dynamic 55 W"),
        (window(40, 40, 40), r"the work drew no more power \(40 W\) than idling \(40 W\)"),
        (CounterWindow(window(100, 40, 40).logs), "no idle power was measured before and after"),
    ],
)
def test_net_is_refused_where_idle_cannot_be_trusted(case: CounterWindow, text: str) -> None:
    with pytest.raises(CounterFault, match=text):
        net(case)


def test_a_window_shorter_than_200_periods_raises() -> None:
    assert minimum_window_s(domain(period_s=0.1)) == pytest.approx(20)
    with pytest.raises(EnergyError, match=r"lasted 5 s; package-0 updates every 0\.1 s and needs at least 20 s"):
        refuse_short_window([log(domain(period_s=0.1), (0, 0), (5, 9))])


@given(st.integers(1000, 10**12), st.integers(1, 4000))
def test_the_sampling_period_leaves_no_room_for_a_hidden_wrap(modulus: int, ceiling_w: int) -> None:
    watched: Domain = domain(modulus=modulus, ceiling_w=float(ceiling_w))
    assert watched.sampling_period_s <= min(1.0, float(modulus * watched.unit) / ceiling_w / 4 * (1 + 1e-12))
