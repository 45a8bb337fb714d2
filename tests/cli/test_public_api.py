"""`import compressor`: quick, free of torch, sorted and complete."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import compressor
from compressor import errors

SOURCE = Path(compressor.__file__)


def test_all_is_sorted_and_without_repetition() -> None:
    assert sorted(set(compressor.__all__), key=lambda name: (not name[0].isupper(), name)) == compressor.__all__


def test_what_type_checkers_see_is_what_is_imported() -> None:
    block = next(node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }  # fmt: skip
    assert seen.pop("energy") == "compressor"
    assert seen == compressor._HOME
    assert {*seen, "energy"} == set(compressor.__all__)


def test_every_error_is_public() -> None:
    tree = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.CompressorError)
    }
    assert len(tree) == 14 and tree <= set(compressor.__all__)


@pytest.mark.parametrize("name", compressor.__all__)
def test_every_name_leads_somewhere(name: str) -> None:
    assert getattr(compressor, name) is getattr(compressor, name)
    assert name in dir(compressor)


def test_no_module_has_the_name_of_a_public_function() -> None:
    """A module `compressor.run` would take the function's place as soon as somebody imported it."""
    modules = {path.stem for path in SOURCE.parent.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert modules & set(compressor.__all__) == {"energy"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'compressor' has no attribute 'frobnicate'"):
        _ = compressor.frobnicate


def test_importing_the_package_imports_nothing_else() -> None:
    program = (
        "import sys; before = set(sys.modules); import compressor; dir(compressor); own = sys.stdlib_module_names;"
        "print(*sorted(name for name in set(sys.modules) - before if name.split('.')[0] not in own))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["compressor"]


def test_pipelines_and_energy_need_no_torch() -> None:
    program = (
        "import sys, compressor; compressor.load_pipeline, compressor.Report, compressor.open_checkpoint, "
        "compressor.energy.measure, compressor.GoalError; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_running_without_torch_names_the_command_that_installs_it() -> None:
    program = (
        "import sys, importlib.util as u; find = u.find_spec;"
        "u.find_spec = lambda name, package=None: None if name == 'torch' else find(name, package);"
        "from compressor.cli import main; sys.argv = ['compressor', 'run', 'pipelines/smoke.yaml']; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=SOURCE.parent.parent)
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        "running a pipeline needs the package 'torch', which is not installed\n"
        "  -> pip install 'joule-compressor[torch]'\n"
    )
