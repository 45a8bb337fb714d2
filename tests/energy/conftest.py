"""Settings of this room's property tests."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)  # the machine is shared: no test may depend on time
settings.load_profile("no deadline")
