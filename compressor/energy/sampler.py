"""A thread that reads one meter while the work runs.

It looks often enough that no wrap can pass unseen, and once more at each edge, from the caller's thread.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from compressor.energy.counter import CounterFault
from compressor.energy.domain import Domain, DomainLog, MeterLog
from compressor.energy.meter import Meter
from compressor.errors import EnergyError


class Sampler:
    """Reads the given domains of one meter from `start` to `stop`.

    A read that fails ends the sampling and becomes the log's fault; the work goes on undisturbed.
    """

    def __init__(self, meter: Meter, domains: Sequence[Domain]) -> None:
        self._meter = meter
        self._domains = tuple(domains)
        self._samples: dict[str, list[tuple[int, int]]] = {domain.id: [] for domain in domains}
        self._fault: str | None = None
        self._stopping = threading.Event()
        self._period_s = min(domain.sampling_period_s for domain in domains)
        self._thread = threading.Thread(target=self._run, name=f"energy-{meter.name}", daemon=True)

    def start(self) -> None:
        """Take the first edge, then go on in the background."""
        self._read()
        self._thread.start()

    def stop(self) -> MeterLog:
        """Take the last edge and return everything that was read."""
        self._stopping.set()
        self._thread.join()
        self._read()
        logs = tuple(DomainLog(domain, tuple(self._samples[domain.id])) for domain in self._domains)
        return MeterLog(self._meter.label, logs, self._fault)

    def _run(self) -> None:
        while self._fault is None and not self._stopping.wait(self._period_s):
            self._read()

    def _read(self) -> None:
        if self._fault is not None:
            return
        try:
            samples = self._meter.read()
            seen = {sample.domain for sample in samples}
            lost = [domain.id for domain in self._domains if domain.id not in seen]
            if lost:
                raise CounterFault(f"{self._meter.label} no longer reads {', '.join(lost)}")
        except EnergyError as error:
            self._fault = str(error)
            return
        for sample in samples:
            if sample.domain in self._samples:
                self._samples[sample.domain].append((sample.t_ns, sample.raw))
