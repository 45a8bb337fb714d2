"""The record of integrations tested with the tools themselves: whole, current, and of tests that are still there."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECK: dict[str, Any] = runpy.run_path(str(ROOT / "eval" / "integrations" / "check.py"))
TOOLS = CHECK["TOOLS"]


def functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / "integrations" / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_was_run_as_it_is_pinned_now_and_all_its_tests_passed(name: str) -> None:
    row = CHECK["read_record"]().get(name)
    remedy = f"python eval/integrations/check.py {name}"
    assert row is not None and row.is_shown and row.package == TOOLS[name].package, remedy
    assert row.requirements == CHECK["requirements"](name), remedy
    wanted = set()
    for test in TOOLS[name].tests:
        file, _, function = test.partition("::")
        assert not function or function in functions(file), f"{file} has no {function} any more"
        wanted |= {function} if function else functions(file)
    assert set(row.outcomes) == wanted, remedy


def test_the_table_is_the_record() -> None:
    rows = CHECK["read_record"]()
    assert list(rows) == list(TOOLS)
    assert CHECK["RECORD"].with_suffix(".md").read_text(encoding="utf-8") == CHECK["markdown"](list(rows.values()))


def test_a_tool_whose_tests_are_skipped_or_gone_has_shown_nothing(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"

    def is_shown(cases: str) -> bool:
        junit.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>", encoding="utf-8")
        outcomes = CHECK["outcomes_of"](junit)
        return bool(CHECK["Checked"]("dvc", "dvc", "3", (), "3.11", outcomes, "2026-01-01").is_shown)

    passed, skipped = '<testcase name="a"/>', '<testcase name="b"><skipped message="no dvc"/></testcase>'
    assert is_shown(passed)
    assert not is_shown("") and not is_shown(skipped) and not is_shown(passed + skipped)
    assert not is_shown('<testcase name="a"><failure/></testcase>')
    assert not is_shown('<testcase name="a"><error/></testcase>')
