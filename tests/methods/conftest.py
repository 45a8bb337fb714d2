"""One thread: the models are tiny and the machine is shared."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


settings.register_profile("no deadline", deadline=None)  # the machine is shared: no test may depend on time
settings.load_profile("no deadline")
