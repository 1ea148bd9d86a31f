"""The laws of the house, held by reading the sources: who imports whom, how long files are, what lies where."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("common", "phase1_dump", "phase2_merge")
TOP_LEVEL = {
    "pyproject.toml", "phase1_dump", "phase2_merge", "common", "tests", "Makefile", "README.md", "CHANGELOG.md",
    "CONTRIBUTING.md", "LICENSE", "docs",
}  # fmt: skip
ONLY_IN = {
    "torch": "phase1_dump",
    "megatron": "phase1_dump",
    "transformer_engine": "phase1_dump",
    "transformer_engine_torch": "phase1_dump",
    "modelopt": "phase1_dump",
    "pyarrow": "phase2_merge",
}
COMMON_MAY_IMPORT = {"click", "xxhash", "shardmerge.common"}
MAX_LINES = 400
MAX_FUNCTION_LINES = 50
TEXT = {".py", ".md", ".toml", ".json", ".txt", ".sh", ".typed", ""}
BUILD_MACHINE = re.compile(r"/(?:work|root|home|tmp/w)/[a-z.]")


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of every import in a file, lazy ones too; `from . import x` made absolute."""
    package = ["shardmerge", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            parents = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, parents
            yield from ((node.lineno, f"{parents}.{alias.name}") for alias in node.names)


def is_inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def offences(folder: str, forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in modules(folder)
        for line, module in imports(path)
        if any(is_inside(module, name) for name in forbidden)
    ]


def test_phase_one_never_imports_phase_two() -> None:
    assert offences("phase1_dump", {"shardmerge.phase2_merge", "phase2_merge"}) == []


def test_phase_two_never_imports_phase_one() -> None:
    assert offences("phase2_merge", {"shardmerge.phase1_dump", "phase1_dump"}) == []


@pytest.mark.parametrize("folder", PACKAGES)
def test_heavy_libraries_are_imported_only_where_they_belong(folder: str) -> None:
    assert offences(folder, {library for library, home in ONLY_IN.items() if home != folder}) == []


def test_common_imports_only_the_standard_library_click_xxhash_and_itself() -> None:
    allowed = COMMON_MAY_IMPORT | set(sys.stdlib_module_names)
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in modules("common")
        for line, module in imports(path)
        if not any(is_inside(module, name) for name in allowed) and module != "shardmerge"
    ]
    assert found == []


def test_the_law_of_imports_notices_a_lazy_relative_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guilty = tmp_path / "phase1_dump" / "guilty.py"
    guilty.parent.mkdir()
    guilty.write_text("def f():\n    from ..phase2_merge import merge\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert offences("phase1_dump", {"shardmerge.phase2_merge"}) == [
        "phase1_dump/guilty.py:2 imports shardmerge.phase2_merge",
        "phase1_dump/guilty.py:2 imports shardmerge.phase2_merge.merge",
    ]


def test_no_module_is_longer_than_the_limit() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in _own_python()}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_function_is_longer_than_the_limit() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in _own_python()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert found == []


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(p.relative_to(ROOT)) for p in _own_python() if not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert silent == []


def test_no_module_is_named_after_nothing() -> None:
    empty_words = re.compile(r"(^|_)(utils?|helpers?|managers?|base|misc)(_|$)")
    assert [str(p.relative_to(ROOT)) for p in _own_python() if empty_words.search(p.stem)] == []


def test_top_level_holds_only_the_names_agreed_on() -> None:
    names = {name.split("/")[0] for name in tracked()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def test_packages_in_pyproject_are_those_on_disk() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for package in PACKAGES for path in modules(package)}
    assert sorted(listed["packages"]) == sorted(".".join(("shardmerge", *folder.parts)) for folder in folders)
    assert listed["package-dir"] == {f"shardmerge.{package}": package for package in PACKAGES}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_marked_as_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_shardmerge_is_a_namespace_that_others_may_share() -> None:
    import shardmerge

    assert getattr(shardmerge, "__file__", None) is None


def test_files_are_ascii_and_name_no_build_machine() -> None:
    found = []
    for name in tracked():
        path = ROOT / name
        if path.suffix in TEXT and path.is_file():
            data = path.read_bytes()
            found += [f"{name}: not ASCII"] * (not data.isascii())
            found += [f"{name}: {hit[0]}" for hit in BUILD_MACHINE.finditer(data.decode("latin-1"))]
    assert found == []


def _own_python() -> list[Path]:
    return [path for folder in (*PACKAGES, "tests") for path in modules(folder)]
