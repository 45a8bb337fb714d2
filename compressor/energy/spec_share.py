"""``spec_share/1``: energy estimated from busy CPU time, where there is no counter.

    E_gross = sigma * [ n_vcpu * w_idle * T + (w_max - w_idle) * k * C ]     [J]
    E_net   = sigma * (w_max - w_idle) * k * C                               [J]

T is wall time and C the busy vCPU-seconds. The watts per hardware thread are wall watts from published SPECpower
results of the CPU's family (memory and power supply are inside, so nothing is added for them). sigma is the number of
hardware threads behind one vCPU, k a factor for how hard the workload drives the CPU.

The value uses the medians, k = 1 and sigma = 1; the band is the 5 % and 95 % point of a Monte Carlo over all four,
with a fixed seed, so equal inputs give equal numbers. An estimated ratio of two candidates is their ratio of CPU time
and nothing more. There is no estimate for GPUs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from math import log
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.energy.domain import Provenance, Scope
from compressor.energy.host import Cpu, identify_cpu
from compressor.energy.types import EstimatedEnergy
from compressor.errors import EnergyError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

METHOD = "spec_share/1"
TABLE_FILE = Path(__file__).with_name("cpu_power_per_thread.json")
WORKLOAD_FACTOR = (0.85, 1.0, 1.4)  # k: 5 %, 50 %, 95 %
N_DRAWS = 20_000
SEED = 20260309
# Clock ticks and scheduling let the busy time exceed what fits by a little.
_BUSY_SLACK = 1.02
_BUSY_SLACK_S = 0.1
_Z95 = 1.6448536269514722


@dataclass(frozen=True)
class ThreadPower:
    """Wall watts per hardware thread, each as its 5 %, 50 % and 95 % point.

    Attributes:
        family: row of the table, or the words for an unknown one.
        idle_w: at idle.
        dynamic_w: at full load, less idle.
        known: whether the family was recognised.
    """

    family: str
    idle_w: tuple[float, float, float]
    dynamic_w: tuple[float, float, float]
    known: bool


@cache
def load_power_table() -> dict[str, ThreadPower]:
    """The shipped table of nine server CPU families; its source stands in the file."""
    document = json.loads(TABLE_FILE.read_text(encoding="utf-8"))
    return {
        family: ThreadPower(family, _three(row["idle_w"]), _three(row["max_minus_idle_w"]), known=True)
        for family, row in document["families"].items()
    }


def power_table_source() -> str:
    """Where the table comes from, for reports."""
    source: str = json.loads(TABLE_FILE.read_text(encoding="utf-8"))["source"]
    return source


def thread_power(family: str | None) -> ThreadPower:
    """The row of a family; where it is unknown, one that reaches over all rows, with the median of their medians.

    Raises:
        EnergyError: a name that the table does not have.
    """
    table = load_power_table()
    if family is not None:
        if family not in table:
            raise EnergyError(
                f"the power table has no CPU family {family!r}", hint=f"use None or one of: {', '.join(table)}"
            )
        return table[family]
    rows = list(table.values())
    return ThreadPower(
        "unknown (widest band)",
        _envelope([row.idle_w for row in rows]),
        _envelope([row.dynamic_w for row in rows]),
        known=False,
    )


def estimate_energy(
    *,
    cpu_s: float,
    wall_s: float,
    n_vcpu: int | None = None,
    cpu: Cpu | None = None,
    threads_per_vcpu: int | None = None,
) -> EstimatedEnergy:
    """Estimate the energy of a window from its busy CPU time.

    Args:
        cpu_s: busy CPU-seconds, all threads together.
        wall_s: length of the window.
        n_vcpu: processors whose idle power the work occupies; all that the host shows by default.
        cpu: the processor; this host's by default.
        threads_per_vcpu: sigma, where it is known (1 on bare metal); unknown in a guest, which widens the band.

    Raises:
        EnergyError: no length, negative or impossible CPU time, or a sigma other than 1 or 2.
    """
    cpu = identify_cpu() if cpu is None else cpu
    n_vcpu = cpu.n_vcpu if n_vcpu is None else n_vcpu
    _check_amounts(cpu_s, wall_s, n_vcpu)
    if threads_per_vcpu not in (None, 1, 2):
        raise EnergyError(f"threads_per_vcpu is {threads_per_vcpu}; it is 1 or 2, or None where it is unknown")
    if threads_per_vcpu is None and cpu.hypervisor is None:
        threads_per_vcpu = 1
    power = thread_power(cpu.family)
    sigma = float(threads_per_vcpu or 1)
    idle_j = sigma * n_vcpu * power.idle_w[1] * wall_s
    dynamic_j = sigma * power.dynamic_w[1] * WORKLOAD_FACTOR[1] * cpu_s
    rows = [power] if power.known else list(load_power_table().values())
    draws = [_draws(row, threads_per_vcpu) for row in rows]
    low_j, high_j = _edges([draw.idle_w * (n_vcpu * wall_s) + draw.dynamic_w * cpu_s for draw in draws])
    net_low_j, net_high_j = _edges([draw.dynamic_w * cpu_s for draw in draws])
    return EstimatedEnergy(
        est_energy_gross_j=idle_j + dynamic_j,
        est_energy_gross_low_j=low_j,
        est_energy_gross_high_j=high_j,
        est_energy_net_j=dynamic_j,
        est_energy_net_low_j=net_low_j,
        est_energy_net_high_j=net_high_j,
        wall_s=wall_s,
        provenance=Provenance.MODEL_ESTIMATED,
        scopes=(Scope.VM_SHARE if cpu.hypervisor else Scope.NODE_WALL_AC,),
        method=METHOD,
        inputs={
            "cpu_s": cpu_s,
            "wall_s": wall_s,
            "n_vcpu": n_vcpu,
            "cpu_family": power.family,
            "threads_per_vcpu": "unknown (1 or 2)" if threads_per_vcpu is None else threads_per_vcpu,
        },
        notes=_notes(cpu, power, threads_per_vcpu),
    )


def _check_amounts(cpu_s: float, wall_s: float, n_vcpu: int) -> None:
    if not wall_s > 0:
        raise EnergyError(f"the window has no length: wall_s is {wall_s}")
    if n_vcpu < 1:
        raise EnergyError(f"n_vcpu is {n_vcpu}; at least one processor is needed")
    if not cpu_s >= 0:
        raise EnergyError(f"cpu_s is {cpu_s}; busy CPU time cannot be negative")
    if cpu_s > n_vcpu * wall_s * _BUSY_SLACK + _BUSY_SLACK_S:
        raise EnergyError(f"{cpu_s:g} busy CPU-seconds do not fit into {wall_s:g} s on {n_vcpu} vCPU(s)")


def _notes(cpu: Cpu, power: ThreadPower, threads_per_vcpu: int | None) -> tuple[str, ...]:
    notes = []
    if not power.known:
        notes.append(f"CPU family unknown ({cpu.name}): the band spans every family in the table")
    if threads_per_vcpu is None:
        notes.append("in a guest: one vCPU may be one or two hardware threads, the band spans both")
    return tuple(notes)


@dataclass(frozen=True)
class _Draws:
    """Monte Carlo draws of watts, sigma and k already multiplied in; each ``(N_DRAWS,)``."""

    idle_w: NDArray[np.float64]
    dynamic_w: NDArray[np.float64]


@cache
def _draws(power: ThreadPower, threads_per_vcpu: int | None) -> _Draws:
    """Draws through the three points of each quantity; idle and dynamic watts come from one server, so they move
    together, which gives the wider band."""
    import numpy as np

    generator = np.random.Generator(np.random.PCG64(SEED))
    server, workload = generator.standard_normal((2, N_DRAWS))
    threads = generator.integers(1, 3, N_DRAWS) if threads_per_vcpu is None else np.full(N_DRAWS, threads_per_vcpu)
    k = _split_lognormal(WORKLOAD_FACTOR, workload)
    return _Draws(
        idle_w=threads * _split_lognormal(power.idle_w, server),
        dynamic_w=threads * k * _split_lognormal(power.dynamic_w, server),
    )


def _split_lognormal(points: tuple[float, float, float], z: NDArray[np.float64]) -> NDArray[np.float64]:
    """A positive quantity with the given 5 %, 50 % and 95 % points: log-normal with one width on each side."""
    import numpy as np

    low, middle, high = points
    width = np.where(z < 0, log(middle / low), log(high / middle)) / _Z95
    result: NDArray[np.float64] = middle * np.exp(z * width)
    return result


def _edges(joules: list[NDArray[np.float64]]) -> tuple[float, float]:
    """The band that holds the 5 % and 95 % points of every CPU family it might be."""
    import numpy as np

    points = np.quantile(joules, [0.05, 0.95], axis=1)  # (2, n_families)
    return float(points[0].min()), float(points[1].max())


def _three(points: list[float]) -> tuple[float, float, float]:
    low, middle, high = points
    return low, middle, high


def _envelope(rows: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    middles = sorted(row[1] for row in rows)
    return min(row[0] for row in rows), middles[len(middles) // 2], max(row[2] for row in rows)
