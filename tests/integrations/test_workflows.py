"""Workflow tools: a Prefect flow really run, cancelled and resumed; the other examples read by their own parsers.

Each tool has pins of its own, so each has an environment of its own: `make test-integrations` makes them all.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from finished import finished
from stand_ins import install_prefect
from typer.main import get_command

import compressor
from compressor.cli.app import build
from compressor.errors import GoalError
from compressor.schema.events import Event, StageStarted
from compressor.schema.report import write_report

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "eval" / "integrations"
PATIENCE_S = 500
"""Prefect's own server takes most of a minute to start, and several on a busy machine."""
SHORT = {
    "stages": [
        {"id": "teacher", "stage": "finetune", "training": {"max_steps": 4, "batch_size": 8}},
        {"id": "second", "stage": "finetune", "training": {"epochs": 400, "learning_rate": 1e-4, "batch_size": 8}},
        {"id": "onnx", "stage": "export"},
        {"id": "int8", "stage": "quantize", "scheme": "w8a8-dynamic"},
    ],
    "workloads": [{"id": "one", "input_tokens": 16, "batch": 1}],
}


def needs(package: str, name: str) -> pytest.MarkDecorator:
    absent = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(absent, reason=f"make test-integrations: eval/integrations/requirements-{name}.txt")


def pipeline_file(folder: Path, epochs: float) -> Path:
    """The smoke pipeline with fewer stages, and a second one that takes as long as a test wants."""
    values = yaml.safe_load((ROOT / "pipelines" / "smoke.yaml").read_text(encoding="utf-8")) | SHORT
    values["stages"] = [dict(stage) for stage in SHORT["stages"]]
    values["stages"][1] = {**values["stages"][1], "training": {"epochs": epochs, "batch_size": 8}}
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.timeout(5 * PATIENCE_S)
@needs("prefect", "prefect")
def test_a_prefect_flow_is_cancelled_and_the_next_one_resumes(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log.txt"
    environment = {
        **os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(PATIENCE_S), "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }  # fmt: skip
    command = [sys.executable, str(EXAMPLES / "prefect_flow.py"), str(pipeline_file(tmp_path, 400)), str(run)]
    with log.open("w") as file:
        flow = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 2 * PATIENCE_S
            while not list(run.glob("stages/second-*.partial")):
                assert flow.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.3)
            time.sleep(3)
            flow.send_signal(signal.SIGTERM)  # how Prefect's workers cancel a flow
            assert flow.wait(timeout=PATIENCE_S) != 0
        finally:  # a flow that is stopped leaves its temporary server behind
            with contextlib.suppress(ProcessLookupError):
                os.killpg(flow.pid, signal.SIGKILL)
    state = json.loads((run / "run.json").read_text())
    assert state["status"] == "interrupted"
    assert {step["id"]: step["status"] for step in state["steps"]}["teacher"] == "finished"

    pipeline_file(tmp_path, 0.2)
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "int8"
    state = json.loads((run / "run.json").read_text())
    assert state["status"] == "finished"
    assert {step["id"]: step["status"] for step in state["steps"]}["teacher"] == "skipped"


def test_what_the_prefect_flow_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Prefect: the flow runs the pipeline into the folder, and its gate judges what lies there then."""

    def run(pipeline: str, *, out: str, on_event: Callable[[Event], None]) -> SimpleNamespace:
        on_event(StageStarted("int8", "quantize"))
        write_report(finished(), Path(out) / "report.json")
        return SimpleNamespace(report=finished())

    install_prefect(monkeypatch)
    monkeypatch.setitem(vars(compressor), "run", run)
    flow = runpy.run_path(str(EXAMPLES / "prefect_flow.py"))["compress_and_gate"]
    assert flow("pipeline.yaml", str(tmp_path), min_reduction=0.3) == "int8"
    with pytest.raises(GoalError, match="1 of 1 checks failed"):
        flow("pipeline.yaml", str(tmp_path), min_reduction=0.9)


@needs("airflow", "airflow")
def test_airflow_loads_the_dag(tmp_path: Path) -> None:
    program = (
        "import json, logging, sys; logging.disable(50)\n"
        "from airflow.dag_processing.dagbag import DagBag\n"
        "bag = DagBag(sys.argv[1], safe_mode=False)\n"
        "tasks = {t.task_id: sorted(t.downstream_task_ids) for t in bag.dags['compress'].tasks}\n"
        "print(json.dumps([bag.import_errors, tasks]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(EXAMPLES / "airflow_dag.py")],
        env={**os.environ, "AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [{}, {"run": ["gate"], "gate": ["push"], "push": []}]


@needs("kfp", "kubeflow")
def test_kubeflow_compiles_the_pipeline(tmp_path: Path) -> None:
    out = tmp_path / "compress.yaml"
    subprocess.run([sys.executable, str(EXAMPLES / "kubeflow_pipeline.py"), str(out)], check=True, capture_output=True)
    compiled = yaml.safe_load(out.read_text(encoding="utf-8"))
    tasks = compiled["root"]["dag"]["tasks"]
    assert set(tasks) == {"run", "gate"} and tasks["gate"]["dependentTasks"] == ["run"]


@needs("dvc", "dvc")
def test_dvc_reads_the_stages(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "dvc" / "dvc.yaml", tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    dvc = [sys.executable, "-m", "dvc", "--cd", str(tmp_path)]
    subprocess.run([*dvc, "init", "-q"], check=True)
    listed = subprocess.run([*dvc, "stage", "list", "--name-only"], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == ["compress", "gate"]


def arguments_of(source: str) -> list[list[str]]:
    """Lists of arguments that Python code gives to `compressor`, as `command=["compressor"], args=[...]`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "args" and isinstance(node.value, ast.List):
            found.append([one.value for one in node.value.elts if isinstance(one, ast.Constant)])
    return found


def test_the_commands_of_every_example_exist() -> None:
    """Examples rot where nobody looks: each command and option that they call is one of ours."""
    commands = get_command(build()).commands  # type: ignore[attr-defined]
    texts = [path.read_text(encoding="utf-8") for path in [*EXAMPLES.rglob("*.py"), *EXAMPLES.rglob("*.yaml")]]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "eval" / "ci").glob("*.yml")]
    seen = 0
    for text in texts:
        for name, rest in re.findall(r"compressor ([a-z][a-z-]+)((?: [^\n#`]*)?)", text):
            if name not in commands:
                continue
            seen += 1
            known = {option for parameter in commands[name].params for option in parameter.opts}
            assert set(re.findall(r"--[a-z][a-z-]+", rest)) <= known, f"compressor {name}{rest}"
    assert seen >= 10
    listed = arguments_of((EXAMPLES / "kubeflow_pipeline.py").read_text(encoding="utf-8"))
    assert [words[0] for words in listed] == ["run", "gate"]
    for name, *words in listed:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, f"compressor {name} {words}"


def test_what_the_examples_say_to_each_tool() -> None:
    """Without the tools: the order of the steps, and the exit codes and folders that they count on."""
    dvc = yaml.safe_load((EXAMPLES / "dvc" / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert list(dvc) == ["compress", "gate"] and dvc["compress"]["outs"] == [{"runs/dvc": {"persist": True}}]
    assert dvc["gate"]["deps"] == ["runs/dvc/report.json"]
    dag = (EXAMPLES / "airflow_dag.py").read_text(encoding="utf-8")
    assert "run >> gate >> push" in dag and "retries=0" in dag
