"""Run the tests of integrations, each tool in an environment of its own, since their pins conflict.

    python eval/integrations/check.py              # all of them
    python eval/integrations/check.py dvc prefect  # some; the others keep their lines of the record

An environment under .cache/envs/ holds what `requirements-<tool>.txt` names, over this project's own environment. It is
made once, and again when the file changes. What was found goes to `eval/results/integrations.json` and `.md`. A test
that is skipped in its own tool's environment shows nothing, so it counts as failed.
"""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECORD = ROOT / "eval" / "results" / "integrations.json"
SCHEMA = "integrations/1"


@dataclass(frozen=True)
class Tool:
    """A tool's package, whose version is recorded, and the tests that need it, as pytest names them."""

    package: str
    tests: tuple[str, ...]


TRACKING, FLOWS = "test_tracking.py::test_", "test_workflows.py::test_"
TOOLS: Mapping[str, Tool] = {
    "mlflow": Tool(
        "mlflow-skinny", (f"{TRACKING}a_run_as_mlflow_has_it", f"{TRACKING}mlflow_takes_what_its_stand_in_takes")
    ),
    "wandb": Tool("wandb", (f"{TRACKING}a_run_as_wandb_has_it", f"{TRACKING}wandb_takes_what_its_stand_in_takes")),
    "lm-eval": Tool("lm-eval", ("test_lm_eval.py",)),
    "prefect": Tool("prefect", (f"{FLOWS}a_prefect_flow_is_cancelled_and_the_next_one_resumes",)),
    "airflow": Tool("apache-airflow", (f"{FLOWS}airflow_loads_the_dag",)),
    "kubeflow": Tool("kfp", (f"{FLOWS}kubeflow_compiles_the_pipeline",)),
    "dvc": Tool("dvc", (f"{FLOWS}dvc_reads_the_stages",)),
    "cyclonedx": Tool(
        "cyclonedx-python-lib", ("test_bom_schema.py::test_cyclonedx_takes_our_document_and_refuses_another",)
    ),
}


@dataclass(frozen=True)
class Checked:
    """One line of the record.

    Attributes:
        version: of `package`, as its environment has it.
        requirements: what the environment was made of.
        outcomes: of each test: `passed`, `failed` or `skipped`.
        date: UTC.
    """

    tool: str
    package: str
    version: str
    requirements: tuple[str, ...]
    python: str
    outcomes: Mapping[str, str]
    date: str

    def n(self, outcome: str) -> int:
        """How many tests ended so."""
        return list(self.outcomes.values()).count(outcome)

    @property
    def is_shown(self) -> bool:
        """Whether there were tests, and each of them ran and passed."""
        return 0 < len(self.outcomes) == self.n("passed")


def requirements(name: str) -> tuple[str, ...]:
    """What a tool's environment is made of."""
    return tuple((HERE / f"requirements-{name}.txt").read_text(encoding="utf-8").split())


def environment(name: str) -> Path:
    """The interpreter of a tool's environment."""
    folder = ROOT / ".cache" / "envs" / f"integration-{name}"
    wanted, marker = (HERE / f"requirements-{name}.txt").read_text(encoding="utf-8"), folder / "made.txt"
    python = folder / "bin" / "python"
    if not marker.is_file() or marker.read_text(encoding="utf-8") != wanted:
        venv.create(folder, with_pip=True, clear=True)
        site = next(folder.glob("lib/python*/site-packages"))
        (site / "house.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n", encoding="utf-8")
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", HERE / f"requirements-{name}.txt"], check=True)
        marker.write_text(wanted, encoding="utf-8")
    return python


def outcomes_of(junit: Path) -> dict[str, str]:
    """Test -> outcome, from pytest's JUnit file."""
    found = {}
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        parts = {part.tag for part in case}
        outcome = "failed" if parts & {"failure", "error"} else "skipped" if "skipped" in parts else "passed"
        found[str(case.get("name"))] = outcome
    return found


def check(name: str) -> Checked:
    """Run a tool's tests in its environment."""
    tool, python = TOOLS[name], environment(name)
    ask = f"from importlib.metadata import version; print(version({tool.package!r}))"
    version = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        tests = [f"tests/integrations/{test}" for test in tool.tests]
        subprocess.run([python, "-m", "pytest", "-q", "-rs", f"--junitxml={junit}", *tests], cwd=ROOT, check=False)
        outcomes = outcomes_of(junit) if junit.is_file() else {}
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return Checked(name, tool.package, version, requirements(name), platform.python_version(), outcomes, date)


def read_record() -> dict[str, Checked]:
    """The lines of the committed record, by tool."""
    if not RECORD.is_file():
        return {}
    rows = json.loads(RECORD.read_text(encoding="utf-8"))["rows"]
    return {row["tool"]: Checked(**{**row, "requirements": tuple(row["requirements"])}) for row in rows}


def markdown(rows: Sequence[Checked]) -> str:
    """The record as a table."""
    lines = [
        "# Integrations: our side of each tool, tested with the tool itself",
        "",
        "Made by `python eval/integrations/check.py`: each tool in an environment of its own. A test that is skipped",
        "in its tool's environment counts as failed.",
        "",
        "| tool | package | version | tests passed | failed | skipped | Python | date |",
        "| --- | --- | --- | ---: | ---: | ---: | --- | --- |",
    ]
    for row in rows:
        counts = " | ".join(str(row.n(outcome)) for outcome in ("passed", "failed", "skipped"))
        lines.append(f"| {row.tool} | {row.package} | {row.version} | {counts} | {row.python} | {row.date} |")
    return "\n".join(lines) + "\n"


def write_record(rows: Mapping[str, Checked]) -> None:
    """Both files, in the order of the tools above."""
    ordered = [rows[name] for name in TOOLS if name in rows]
    record = {"schema": SCHEMA, "rows": [asdict(row) for row in ordered]}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    RECORD.with_suffix(".md").write_text(markdown(ordered), encoding="utf-8")


def main(names: list[str]) -> int:
    """0 where every test of every tool ran and passed."""
    unknown = sorted(set(names) - set(TOOLS))
    if unknown:
        sys.exit(f"no tool {', '.join(unknown)}; there are: {', '.join(TOOLS)}")
    failed = []
    for name in names or list(TOOLS):
        print(f"== {name}", flush=True)
        row = check(name)
        write_record({**read_record(), name: row})
        if not row.is_shown:
            failed.append(name)
    print(f"failed or skipped: {', '.join(failed)}" if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
