"""Run the tests of integrations, each tool in an environment of its own, since their pins conflict.

    python eval/integrations/check.py              # all of them
    python eval/integrations/check.py dvc prefect  # some

An environment under .cache/envs/ holds what `requirements-<tool>.txt` names, over this project's own environment. It is
made once, and again when the file changes.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TESTS = {
    "mlflow": "test_mlflow.py",
    "wandb": "test_mlflow.py",
    "lm-eval": "test_lm_eval.py",
    "prefect": "test_workflows.py",
    "airflow": "test_workflows.py",
    "kubeflow": "test_workflows.py",
    "dvc": "test_workflows.py",
}


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


def main(names: list[str]) -> int:
    """0 where every tool's tests pass."""
    failed = []
    for name in names or list(TESTS):
        print(f"== {name}", flush=True)
        command = [environment(name), "-m", "pytest", "-q", "-rs", f"tests/integrations/{TESTS[name]}"]
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
