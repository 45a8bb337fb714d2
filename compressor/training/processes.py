"""One training in one process or in several: who writes, who waits, and what they spent together.

Each function does the plain thing where there is one process, so that the code that calls them is the same for both.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from accelerate import PartialState
from torch import distributed

TIMEOUT = dt.timedelta(hours=24)
"""The others wait while the first asks a teacher about every row, which may take long."""


def join_processes(device: Literal["cpu", "cuda"]) -> None:
    """Meet the other processes that a launcher started; nothing where it started one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        is_cpu = device == "cpu"
        PartialState(cpu=is_cpu, backend="gloo" if is_cpu else "nccl", timeout=TIMEOUT)


def is_first_process() -> bool:
    """Whether this is the one that writes and tells."""
    return os.environ.get("RANK", "0") == "0"


def process_number() -> int:
    """From 0."""
    return distributed.get_rank() if _is_joined() else 0


def n_processes() -> int:
    """How many train together."""
    return distributed.get_world_size() if _is_joined() else 1


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if _is_joined():
        distributed.barrier()


@contextmanager
def first_one_first() -> Iterator[None]:
    """The first process does the block before the others do."""
    if not is_first_process():
        wait_for_all()
    yield
    if is_first_process():
        wait_for_all()


def cpu_s_of_others() -> float:
    """CPU-seconds that the other processes have used so far; each process has to ask."""
    if not _is_joined():
        return 0.0
    times = os.times()
    own = times.user + times.system
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    summed = torch.tensor([own], dtype=torch.float64, device=device)
    distributed.all_reduce(summed)
    return float(summed.item()) - own


def _is_joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()
