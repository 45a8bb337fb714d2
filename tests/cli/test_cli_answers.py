"""What the cheap commands print, and that none of them loads torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.cli import app
from compressor.errors import GoalError, InterruptedRunError, PipelineError, StageError

REPOSITORY = Path(__file__).resolve().parents[2]
SMOKE = str(REPOSITORY / "pipelines" / "smoke.yaml")
Command = Callable[..., "subprocess.CompletedProcess[str]"]

HEAVY = {"torch", "transformers", "datasets", "onnxruntime", "onnx", "scipy"}
LOADED = """
import sys
from compressor.cli.app import main
sys.argv = ["compressor", *{arguments!r}]
try:
    main()
except SystemExit as leave:
    code = leave.code
print(code, *sorted({heavy!r} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["--version"], ["validate", SMOKE], ["schema"], ["meters", "--help"]],
    ids=lambda arguments: " ".join(Path(word).name for word in arguments),
)
def test_a_quick_command_loads_nothing_heavy(arguments: list[str]) -> None:
    program = LOADED.format(arguments=arguments, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "0"


def test_the_check_for_heavy_modules_can_fail() -> None:
    program = "import scipy\n" + LOADED.format(arguments=["--version"], heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "0 scipy"


def test_the_package_is_the_command_too(command: Command) -> None:
    done = subprocess.run([sys.executable, "-m", "compressor", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == command("--version").stdout


def test_validate_names_the_stages(command: Command) -> None:
    done = command("validate", SMOKE)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == f"{SMOKE}: valid, 7 stages: teacher, student, pruned, recovered, onnx, int8, fp16\n"


def test_validate_as_json(command: Command) -> None:
    done = command("validate", SMOKE, "--json", "--set", "name=other")
    stages = ["teacher", "student", "pruned", "recovered", "onnx", "int8", "fp16"]
    assert json.loads(done.stdout) == {"valid": True, "name": "other", "stages": stages}


def test_schema_prints_what_is_committed(command: Command) -> None:
    assert command("schema").stdout == (REPOSITORY / "compressor/spec/pipeline.schema.json").read_text()


def test_meters_lists_every_meter_with_its_status(command: Command) -> None:
    done = command("meters", "--json")
    meters = {meter["name"]: meter for meter in json.loads(done.stdout)}
    assert done.returncode == 0 and {"rapl", "spec_share"} <= set(meters)
    assert all(meter["status"] and meter["reason"] for meter in meters.values())
    assert "RAPL" in command("meters").stdout


def test_calibrate_writes_what_it_prints(command: Command, tmp_path: Path) -> None:
    done = command("energy", "calibrate", "--idle-w", "20", "--full-w", "60", "--out", "watts.json", "--json")
    if done.returncode:  # a guest, whose plug nobody can read, is refused by name
        assert done.returncode == 1 and done.stderr and "Traceback" not in done.stderr
        return
    printed = json.loads(done.stdout)
    assert printed["idle_w"] == 20 and printed["dynamic_w"] == 40
    assert printed.items() <= json.loads((tmp_path / "watts.json").read_text()).items()


@pytest.mark.parametrize(
    ("error", "code", "stderr"),
    [
        (StageError("diverged", where="student", hint="lower it"), 1, "student: diverged\n  -> lower it\n"),
        (PipelineError("job.yaml", []), 2, "\n"),
        (GoalError("1 of 2 goals not kept"), 3, "1 of 2 goals not kept\n"),
        (InterruptedRunError("stopped", hint="run it again"), 130, "stopped\n  -> run it again\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)  # fmt: skip
def test_errors_become_exit_codes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    stderr: str,
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(app, "COMMANDS", {"fail": fails})
    monkeypatch.setattr(sys, "argv", ["compressor", "fail"])
    with pytest.raises(SystemExit) as left:
        app.main()
    assert left.value.code == code
    assert capsys.readouterr() == ("", stderr)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(app, "COMMANDS", {"fail": fails})
    monkeypatch.setattr(sys, "argv", ["compressor", "fail"])
    with pytest.raises(ZeroDivisionError):
        app.main()
