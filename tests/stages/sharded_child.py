"""A training child whose Accelerate takes the CPUs here for GPUs, since it shares weights out among these alone."""

from __future__ import annotations

import sys
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType

from compressor.stages.child import main

begin = PartialState.__init__


def begin_with_gpus(self: PartialState, *arguments: Any, **settings: Any) -> None:
    begin(self, *arguments, **settings)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


if __name__ == "__main__":
    PartialState.__init__ = begin_with_gpus
    sys.exit(main(sys.argv[1]))
