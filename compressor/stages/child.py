"""`python -m compressor.stages.child JOB.json`: one stage, in a process of its own or in several. See `job`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TextIO

from compressor.errors import CompressorError
from compressor.schema.events import Event, to_json
from compressor.stages.dispatch import run_here
from compressor.stages.job import failure_line, read_job
from compressor.training.processes import is_first_process, join_processes


def main(job_path: str) -> int:
    """Do the job; 0 when the folder is sealed, 1 when it failed and said why."""
    events = _keep_output_clean()
    _end_with_parent()

    def emit(event: Event) -> None:
        if is_first_process():
            print(to_json(event), file=events, flush=True)

    try:
        job = read_job(Path(job_path), emit)
        join_processes(job.ctx.target.device)
        run_here(job.config, job.inputs, job.out_dir, job.ctx)
    except CompressorError as error:
        print(failure_line(error), file=events, flush=True)
        return 1
    return 0


def _keep_output_clean() -> TextIO:
    """The real standard output for events alone; whatever libraries print goes to the log with standard error."""
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return events


def _end_with_parent() -> None:
    """End this process when the parent is gone: its end of our standard input closes, whatever killed it."""

    def wait_for_end() -> None:
        while os.read(0, 1):
            pass
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=wait_for_end, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
