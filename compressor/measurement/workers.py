"""The parent's end of a measuring worker: start, stop in its own time, ask, and hear of its death."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar

from compressor.errors import CompressorError

LAST_WORDS = 2_000
"""Characters of standard error that a report keeps."""


class WorkerDied(CompressorError):
    """A worker ended before its time; the message is its own error, or the end of what it wrote."""


@dataclass(frozen=True)
class Job:
    """Which candidate a worker serves, and how.

    Attributes:
        candidate: id, for messages.
        checkpoint: folder of the checkpoint.
        variant: id of the variant in it.
        threads: threads of one inference.
        provider: ONNX Runtime execution provider.
        settings: runtime settings that travel with the variant.
    """

    candidate: str
    checkpoint: Path
    variant: str
    threads: int
    provider: str
    settings: dict[str, Any]

    MODULE: ClassVar[str] = "compressor.measurement.worker"

    def opening(self) -> dict[str, Any]:
        """The worker's first line of input."""
        return {
            "checkpoint": str(self.checkpoint.resolve()),
            "variant": self.variant,
            "threads": self.threads,
            "provider": self.provider,
            "settings": self.settings,
        }


@dataclass(frozen=True)
class GraphJob:
    """A worker that times whatever ONNX graphs it is told to open.

    Attributes:
        candidate: id, for messages.
        threads: threads of one inference.
        provider: ONNX Runtime execution provider.
        settings: runtime settings.
    """

    candidate: str
    threads: int
    provider: str
    settings: dict[str, Any]

    MODULE: ClassVar[str] = "compressor.measurement.table_worker"

    def opening(self) -> dict[str, Any]:
        """The worker's first line of input."""
        return {"threads": self.threads, "provider": self.provider, "settings": self.settings}


class WorkerProcess(AbstractContextManager["WorkerProcess"]):
    """A live worker. Stopped (SIGSTOP) after `pause`, running after `resume`; gone after `close`.

    Args:
        job: its candidate.
        log: file that takes its standard error.
    """

    def __init__(self, job: Job | GraphJob, log: Path) -> None:
        self.job = job
        self._log = log
        self._is_paused = False
        with log.open("wb") as stderr:
            # A session of its own: Ctrl-C in the terminal reaches the parent alone, which then ends its workers.
            self._process = subprocess.Popen(
                [sys.executable, "-m", job.MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=_environment(job.threads),
                start_new_session=True,
            )
        self._send(job.opening())

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Wait until the model is loaded.

        Raises:
            WorkerDied: it could not be.
        """
        self._receive()

    def ask(self, do: str, **order: str | int | float | Sequence[int]) -> dict[str, Any]:
        """Give an order and wait for the answer.

        Raises:
            WorkerDied: the worker ended, or refused with a named error.
        """
        self._send({"do": do, **order})
        return self._receive()

    def pause(self) -> None:
        """Stop the process, and wait until it has stopped: it uses no CPU until `resume`."""
        if self._is_paused:
            return
        self._process.send_signal(signal.SIGSTOP)
        seen = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        self._is_paused = True
        if seen is not None and seen.si_code == os.CLD_STOPPED:
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG)  # taken note of; an exit is left to Popen

    def resume(self) -> None:
        """Let the process go on."""
        if self._is_paused:
            self._process.send_signal(signal.SIGCONT)
            self._is_paused = False

    def close(self) -> None:
        """End the process, whatever state it is in."""
        self._process.kill()  # works on a stopped process too, and there is nothing to save
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                _close_quietly(pipe)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerDied(f"{answer['error']}: {answer['text']}", where=self.job.candidate)
        return answer

    def _death(self) -> WorkerDied:
        status = self._process.wait()
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        words = self._log.read_text(errors="replace").strip()[-LAST_WORDS:]
        return WorkerDied(f"the measuring worker {how}" + (f": {words}" if words else ""), where=self.job.candidate)


def _environment(threads: int) -> dict[str, str]:
    """The worker's environment: its thread pools fixed before any library reads them."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads)), "TOKENIZERS_PARALLELISM": "false"}


def _close_quietly(pipe: IO[str]) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        # The last order was never read; the worker is gone and that has been told already.
        return
