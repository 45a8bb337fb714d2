"""A compression run as a Prefect flow: run, gate, push. Cancel it, and the same flow goes on where it stopped.

    python eval/integrations/prefect_flow.py PIPELINE RUN

A run is resumed by its folder, so a retry, a new flow run or another machine with the same disk does no finished stage
twice. Prefect stops a flow with SIGTERM; the run then keeps its finished stages and says that it was stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path

from prefect import flow, get_run_logger, task

import compressor
from compressor.integrations.gate import check_gate, raise_if_failing
from compressor.schema.events import Event, Progress


@task(retries=1)
def compress(pipeline: str, run: str) -> str:
    """Every stage and the judging; events go to the flow's log."""
    log = get_run_logger()

    def tell(event: Event) -> None:
        if not isinstance(event, Progress):
            log.info("%s", event)

    result = compressor.run(pipeline, out=run, on_event=tell)
    assert result.report is not None
    return result.report.selected or ""


@task
def gate(run: str, min_reduction: float) -> None:
    """Fails the flow where the winner does not save enough."""
    report = compressor.read_report(Path(run) / "report.json")
    checks = check_gate(report, min_reduction=min_reduction, cost="size_bytes")
    for check in checks:
        get_run_logger().info("%s: %s", check.status, check.text)
    raise_if_failing(checks, strict=False)


@flow(name="compress")
def compress_and_gate(pipeline: str, run: str, min_reduction: float = 0.3) -> str:
    """Compress, then hold the winner to a limit."""
    selected = compress(pipeline, run)
    gate(run, min_reduction)
    return selected


if __name__ == "__main__":
    print(compress_and_gate(sys.argv[1], sys.argv[2]))
