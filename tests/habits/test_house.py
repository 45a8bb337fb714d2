"""The house keeps its own rules: what is tracked, how long code gets, what is caught and what is explained."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MAX_TRACKED_BYTES = 2**20
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80  # without its docstring
FOLDERS = {".ci", "compressor", "docs", "eval", "model_cards", "pipelines", "tests"}
FILES = {
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "NOTICE",
    "README.md",
    "constraints.txt",
    "pyproject.toml",
}
MACHINE_PATH = re.compile(rb"(?<![\w./~-])/(?:home|Users|root|work|tmp|scratch)/\w[\w./-]*|\b[A-Z]:\\Users\\\w+")


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Paths of the files under version control that are on disk."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout: nothing says which files are tracked")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    paths = [path for path in listing.stdout.split("\0") if path and (REPOSITORY / path).exists()]
    assert len(paths) >= 30
    return paths


def modules() -> list[Path]:
    paths = sorted((REPOSITORY / "compressor").rglob("*.py"))
    assert len(paths) >= 30
    return paths


def assert_none(found: Iterable[object]) -> None:
    """Fail with the whole list, one a line; pytest's own comparison would shorten it."""
    lines = [str(item) for item in found]
    assert not lines, "\n".join(["", *lines])


def walk() -> Iterator[tuple[str, ast.AST]]:
    """Every syntax node of the package with the file it stands in."""
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield str(path.relative_to(REPOSITORY)), node


def test_no_tracked_file_is_over_one_mebibyte(tracked: list[str]) -> None:
    sizes = {path: (REPOSITORY / path).stat().st_size for path in tracked}
    assert_none(f"{path}: {size} bytes" for path, size in sizes.items() if size > MAX_TRACKED_BYTES)


def test_no_tracked_file_names_a_path_of_somebodys_machine(tracked: list[str]) -> None:
    found = {path: MACHINE_PATH.findall((REPOSITORY / path).read_bytes()) for path in tracked}
    assert_none(f"{path}: {hits}" for path, hits in found.items() if hits)


@pytest.mark.parametrize("root", ["home", "Users", "root", "tmp"])
def test_a_machine_path_is_recognised(root: str) -> None:
    assert MACHINE_PATH.search(f'--out="/{root}/ada/x"'.encode())


@pytest.mark.parametrize("text", ["the home/work balance", "runs/tmp/x", "/sys/class/powercap", "https://a.org/home/x"])
def test_other_text_is_no_machine_path(text: str) -> None:
    assert not MACHINE_PATH.search(text.encode())


def test_the_top_level_is_the_architecture_and_nothing_else(tracked: list[str]) -> None:
    folders = {path.split("/")[0] for path in tracked if "/" in path}
    files = {path for path in tracked if "/" not in path}
    assert folders - FOLDERS == set()
    assert files == FILES


def test_no_except_catches_everything() -> None:
    broad = {"Exception", "BaseException"}

    def names(node: ast.expr | None) -> set[str]:
        if node is None:
            return {"BaseException"}  # a bare except
        return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}

    found = []
    for path, node in walk():
        if isinstance(node, ast.ExceptHandler) and names(node.type) & broad:
            found.append(f"{path}:{node.lineno} except")
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "suppress":
            found += [f"{path}:{node.lineno} suppress" for argument in node.args if names(argument) & broad]
    assert_none(found)


def test_no_file_is_too_long_to_read() -> None:
    lengths = {
        str(path.relative_to(REPOSITORY)): len(path.read_text(encoding="utf-8").splitlines()) for path in modules()
    }
    assert_none(f"{path}: {n_lines} lines" for path, n_lines in lengths.items() if n_lines > MAX_FILE_LINES)


def n_code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    n_lines = function.end_lineno - function.lineno + 1  # type: ignore[operator] - ast.parse sets it
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        n_lines -= docstring.end_lineno - docstring.lineno + 1  # type: ignore[operator]
    return n_lines


def test_no_function_is_too_long_to_read() -> None:
    functions = [(path, node) for path, node in walk() if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert len(functions) >= 100
    lengths = {f"{path}:{node.lineno} {node.name}": n_code_lines(node) for path, node in functions}
    assert_none(f"{where}: {n_lines} lines" for where, n_lines in lengths.items() if n_lines > MAX_FUNCTION_LINES)


def test_every_public_function_and_class_says_what_it_is_for() -> None:
    silent = []
    for path in modules():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            is_definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if is_definition and not node.name.startswith("_") and not ast.get_docstring(node):
                silent.append(f"{path.relative_to(REPOSITORY)}:{node.lineno} {node.name}")
    assert_none(silent)


def test_every_module_says_what_it_is_for() -> None:
    sources = {str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8") for path in modules()}
    silent = [path for path, source in sources.items() if source.strip() and not ast.get_docstring(ast.parse(source))]
    assert_none(silent)


def test_the_package_imports_nothing_from_the_evidence() -> None:
    """`eval/` holds scripts and results, no code to build on."""
    found = [
        f"{path}:{node.lineno}"
        for path, node in walk()
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "eval")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "eval" for alias in node.names))
    ]
    assert_none(found)
