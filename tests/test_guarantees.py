"""What is promised is tested: every test that the guarantees name exists, and no guarantee is without one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GUARANTEES = ROOT / "docs" / "reference" / "guarantees.md"
DOCUMENTS = (GUARANTEES, ROOT / "SECURITY.md")
NAMED = re.compile(r"`(test_\w+)`")
WITHOUT_TESTS = "## Figures"  # and what follows it: what is not promised


def existing_tests() -> set[str]:
    """The names of all test functions, found without importing them."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py"))
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_test_that_a_document_names_is_there() -> None:
    named = {name for document in DOCUMENTS for name in NAMED.findall(document.read_text())}
    assert len(named) > 50
    assert sorted(named - existing_tests()) == []


def test_no_guarantee_is_without_a_test() -> None:
    promised = GUARANTEES.read_text().split(WITHOUT_TESTS)[0]
    items = re.split(r"^- ", promised, flags=re.M)[1:]
    assert len(items) > 30
    assert [item.splitlines()[0] for item in items if not NAMED.search(item)] == []
