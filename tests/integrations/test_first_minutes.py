"""`doctor` and `init`: findings with a remedy each, and pipelines that can be started from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from compressor.errors import CompressorError, UserError
from compressor.integrations import doctor
from compressor.integrations.shipped import copy_pipeline, find_shipped, pinned_versions, shipped_pipelines
from compressor.spec.load import load_pipeline


def cli(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "compressor.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def absent(name: str) -> str:
    raise PackageNotFoundError(name)


def test_a_version_other_than_the_tested_one_is_told_with_both() -> None:
    tested = pinned_versions()["scipy"]
    assert doctor.packages(("scipy",), None, lambda _: tested)[0].status == "ok"
    assert doctor.packages(("scipy",), None, lambda _: f"{tested}+local")[0].status == "ok"
    [finding] = doctor.packages(("scipy",), None, lambda _: "1.0")
    assert (finding.status, finding.text) == ("warn", f"1.0; tested with {tested}")
    assert finding.remedy == f"pip install 'scipy=={tested}'"


def test_without_torch_the_extra_is_named() -> None:
    [finding] = doctor.packages(("torch",), "torch", absent)
    assert finding.text == "not installed: only ONNX checkpoints can be used without it"
    assert finding.remedy == "pip install 'joule-compressor[torch]'"


def test_every_package_that_is_looked_at_has_a_tested_version() -> None:
    assert set(doctor.REQUIRED + doctor.TORCH_EXTRA) <= set(pinned_versions())


def test_int8_on_a_processor_that_cannot() -> None:
    assert doctor.processor_int8(frozenset({"avx512_vnni", "avx2"})).text == "avx512_vnni"
    plain = doctor.processor_int8(frozenset({"avx2"}))
    assert plain.status == "warn" and plain.text.startswith("none (there are: avx2)")
    assert plain.remedy == "set arithmetic: auto on w8a8-dynamic stages, and measure"
    assert doctor.processor_int8(frozenset()).text == "the system lists no CPU flags"
    assert doctor.processor_bf16(frozenset({"avx2"})).status == "warn"


def test_the_machine(tmp_path: Path) -> None:
    assert doctor.python_version((3, 10)).remedy == "Python 3.11 or newer"
    assert doctor.system("Darwin", "arm64").text == "Darwin arm64: it runs here, but energy is metered on Linux only"
    assert doctor.cores(0.0, 8).status == "ok"
    assert doctor.cores(4.0, 8).text == "8, load 4.0: others are at work"
    assert doctor.cores(None, 8).text == "8, load unknown"
    assert doctor.network({"HF_HUB_OFFLINE": "1"}).text.startswith("not used")
    assert doctor.model_cache({"HF_HOME": str(tmp_path / "hub")}).text.endswith("hub (not there yet)")


def test_a_machine_without_meters_only_estimates(tmp_path: Path) -> None:
    finding = doctor.energy_meters(tmp_path)
    assert (finding.status, finding.remedy) == ("warn", "compressor meters")
    assert "estimate" in finding.text


def test_doctor_as_a_command_imports_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from compressor.integrations.doctor import examine; examine();"
        "print(sorted({'torch', 'transformers', 'onnxruntime', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    findings = json.loads(cli("doctor", "--json", cwd=tmp_path).stdout)
    assert {finding["status"] for finding in findings} <= {"ok", "warn"}
    assert all(finding["remedy"] for finding in findings if finding["status"] == "warn")


def test_init_lists_and_copies(tmp_path: Path) -> None:
    listed = json.loads(cli("init", "--json", cwd=tmp_path).stdout)
    assert {"smoke", "minilm-sentiment"} <= {one["name"] for one in listed}
    assert all(one["about"].endswith(".") for one in listed)
    done = cli("init", "smoke", "--out", "mine.yaml", cwd=tmp_path)
    assert done.stdout == "written: mine.yaml\nnext: compressor run mine.yaml --dry-run\n"
    assert load_pipeline(tmp_path / "mine.yaml").name == "smoke"
    assert cli("init", "smoke", "--out", "mine.yaml", cwd=tmp_path).returncode == 2


def test_copying_never_overwrites_and_says_where_it_cannot(tmp_path: Path) -> None:
    assert copy_pipeline("smoke.yaml", tmp_path) == tmp_path / "smoke.yaml"
    with pytest.raises(UserError, match="there is a file already, and it may be yours"):
        copy_pipeline("smoke", tmp_path)
    with pytest.raises(UserError, match="no such folder\n  -> mkdir -p"):
        copy_pipeline("smoke", tmp_path / "a" / "b.yaml")
    with pytest.raises(UserError, match="there is no shipped pipeline 'smok'\n  -> one of: bert-base-mnli-distilbert"):
        copy_pipeline("smok", tmp_path)


def test_a_wheel_has_them_inside_the_package(tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "compressor"
    (package / "_shipped" / "pipelines").mkdir(parents=True)
    assert find_shipped("pipelines", package) == package / "_shipped" / "pipelines"
    with pytest.raises(CompressorError, match=r"constraints\.txt is not part of this installation"):
        find_shipped("constraints.txt", package)


def test_the_wheel_is_told_to_take_them(tmp_path: Path) -> None:
    import tomllib

    root = Path(__file__).resolve().parents[2]
    included = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert included["force-include"] == {
        "pipelines": "compressor/_shipped/pipelines",
        "constraints.txt": "compressor/_shipped/constraints.txt",
    }
    assert {one.path.parent for one in shipped_pipelines()} == {root / "pipelines"}
    assert os.path.basename(find_shipped("constraints.txt")) == "constraints.txt"
