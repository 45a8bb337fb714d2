"""A compression run as an Airflow DAG: the command line's exit codes are all that Airflow needs.

Exit code 3 (a gate that is not passed) fails the task without a retry; 130 (stopped) is retried and resumes.
"""

from __future__ import annotations

import pendulum
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import dag

RUN = "/data/runs/{{ dag.dag_id }}"


@dag(schedule=None, start_date=pendulum.datetime(2026, 1, 1), catchup=False, tags=["compression"])
def compress() -> None:
    """Run, gate, push."""
    run = BashOperator(
        task_id="run",
        bash_command=f"compressor run /data/pipeline.yaml --out {RUN} --quiet",
        retries=2,
    )
    gate = BashOperator(
        task_id="gate",
        bash_command=f"compressor gate {RUN} --max-accuracy-drop 0.01 --min-reduction 0.3 --json",
        retries=0,
    )
    push = BashOperator(task_id="push", bash_command=f"compressor push {RUN} my-org/my-model")
    run >> gate >> push


compress()
