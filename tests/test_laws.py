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
PROGRAM = Path("common/program")  # is installed as the folder shardmerge, which is a namespace
TOP_LEVEL = {
    "pyproject.toml", "phase1_dump", "phase2_merge", "common", "tests", "Makefile", "README.md", "CHANGELOG.md",
    "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "docs",
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
# Room -> the rooms of its phase that it may import; all may import common. A room is a folder or a module of the phase.
# docs/inside/design.md says why.
ROOMS = {
    "phase1_dump": {
        "__init__": {"background", "dump_in_background", "dump_model", "dump_torch_dist"},
        "__main__": set(),
        "cli": {"dump_model", "dump_torch_dist", "fragments", "preflight", "source"},
        "dump_torch_dist": {"checkpoint", "fragments", "generation", "quantized_checkpoint", "shares"},
        "quantized_checkpoint": {"checkpoint", "quantization", "rectangles", "source", "sources", "torch_dist"},
        "shares": {"checkpoint", "fragments", "torch_dist"},
        "preflight": set(),
        "providers": set(),
        "dump_model": {"fragments", "generation", "sources", "source", "world"},
        "dump_in_background": {"background", "dump_model", "fragments", "generation", "sources", "source"},
        "background": {"fragments", "generation", "source", "world"},
        "fragments": {"even_runs", "rectangles", "source", "world"},
        "settings": set(),
        "sources": {"generation", "quantization", "rectangles", "settings", "source", "world"},
        "quantization": {"rectangles", "source"},
        "rectangles": {"source", "world"},
        "source": {"generation", "world"},
        "checkpoint": {"even_runs", "generation", "rectangles", "settings", "source", "torch_dist", "world"},
        "torch_dist": set(),
        "even_runs": set(),
        "generation": set(),
        "world": set(),
    },
    "phase2_merge": {
        "__init__": {"commands"},
        "cli": {"assembly", "inspection", "options", "shards"},
        "commands": {
            "assembly", "corrections", "hf_files", "inspection", "ledger", "options", "output", "proof", "quantization",
            "shards", "disk",
        },
        "shards": {"assembly", "disk", "ledger", "options", "output", "proof", "quantization"},
        "assembly": {"disk", "output"},
        "inspection": {"ledger"},
        "proof": {"corrections", "disk", "ledger", "options", "output", "quantization"},
        "quantization": {"corrections", "hf_files", "ledger", "options"},
        "ledger": {"disk"},
        "output": {"disk"},
        "hf_files": set(),
        "disk": set(),
        "corrections": set(),
        "options": set(),
    },
}  # fmt: skip
# what runs where torch is not installed, or in a process that should not wait for it
WITHOUT_TORCH = (
    "phase1_dump/rectangles",
    "phase1_dump/fragments",
    "phase1_dump/background",
    "phase1_dump/settings/fields.py",
    "phase1_dump/source.py",
    "phase1_dump/checkpoint",
    "phase1_dump/torch_dist",
    "phase1_dump/shares",
    "phase1_dump/dump_torch_dist.py",
)
# the one module that may import what needs torch, and the room: when a checkpoint turns out to have quantizers
WHEN_QUANTIZED = "phase1_dump/dump_torch_dist.py", "shardmerge.phase1_dump.quantized_checkpoint"
API = {
    "check",
    "diff",
    "dump",
    "dump_async",
    "prepare",
    "dump_checkpoint",
    "inspect",
    "merge",
    "merge_part",
    "metadata",
    "verify",
}  # functions of the packages
RIDDLES = {"choices", "debt", "kept", "laps", "looking", "suspects", "telling", "told"}
MAX_MODULES = 12  # of a folder, and a thirteenth where no name would be better for two of them
MAX_UNNAMED = 2
MAX_LINES = 400
MAX_STATEMENTS = 30
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


def room_of(module: str, phase: str) -> str | None:
    """The room of a phase that a module is, or lies in; None for what is not of this phase."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["shardmerge", phase] and len(parts) > 2 else None


@pytest.mark.parametrize("phase", ROOMS)
def test_rooms_import_only_what_the_table_allows(phase: str) -> None:
    found = set()
    for path in modules(phase):
        room = path.relative_to(ROOT / phase).parts[0].removesuffix(".py")
        for line, module in imports(path):
            other = room_of(module, phase)
            if other in ROOMS[phase] and other not in (room, *ROOMS[phase][room]):
                found.add(f"{path.relative_to(ROOT)}:{line}: {room} may not import {other}")
    assert sorted(found) == []


@pytest.mark.parametrize("phase", ROOMS)
def test_the_table_of_rooms_is_what_is_on_disk(phase: str) -> None:
    assert {path.relative_to(ROOT / phase).parts[0].removesuffix(".py") for path in modules(phase)} == set(
        ROOMS[phase]
    )


@pytest.mark.parametrize("phase", ROOMS)
def test_no_arrow_between_rooms_runs_in_a_circle(phase: str) -> None:
    left = {room: set(others) for room, others in ROOMS[phase].items()}
    while leaves := [room for room, others in left.items() if not others]:
        left = {room: others - set(leaves) for room, others in left.items() if room not in leaves}
    assert left == {}


def test_no_room_hides_a_function_of_the_api() -> None:
    folders = {path.parent.name for phase in ROOMS for path in modules(phase) if path.parent != ROOT / phase}
    assert folders & API == set()


def test_geometry_and_fragments_never_reach_torch() -> None:
    known = {_dotted(path): path for package in PACKAGES for path in modules(package)}
    waiting = [
        path
        for place in WITHOUT_TORCH
        for path in ([ROOT / place] if place.endswith(".py") else modules(place))
    ]
    seen: set[Path] = set()
    heavy = []
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            names = [module for _, module in imports(path)]
            if path == ROOT / WHEN_QUANTIZED[0]:
                names = [module for module in names if not is_inside(module, WHEN_QUANTIZED[1])]
            heavy += [f"{path.relative_to(ROOT)} imports {m}" for m in names if m.split(".")[0] in ONLY_IN]
            waiting += [known[module] for module in names if module in known]
    assert len(seen) > len(WITHOUT_TORCH)
    assert heavy == []


def test_no_folder_holds_more_modules_than_can_be_taken_in() -> None:
    counts: dict[str, int] = {}
    for path in (path for package in PACKAGES for path in modules(package)):
        if path.stem != "__init__":
            folder = str(path.parent.relative_to(ROOT))
            counts[folder] = counts.get(folder, 0) + 1
    assert {folder: count for folder, count in counts.items() if count > MAX_MODULES + 1} == {}


def test_no_module_has_a_name_that_is_a_riddle() -> None:
    assert [
        str(p.relative_to(ROOT)) for package in PACKAGES for p in modules(package) if p.stem in RIDDLES
    ] == []


def _dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("shardmerge", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def test_no_module_is_longer_than_the_limit() -> None:
    """Docstrings are not counted."""
    assert {name: lines for name, lines in map(_length, _own_python()) if lines > MAX_LINES} == {}


def _length(path: Path) -> tuple[str, int]:
    text = path.read_text()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, documented)]
    first = [node.body[0] for node in nodes if ast.get_docstring(node) is not None]
    docstrings = sum((docstring.end_lineno or 0) - docstring.lineno + 1 for docstring in first)
    return str(path.relative_to(ROOT)), len(text.splitlines()) - docstrings


def test_no_function_has_more_statements_than_the_limit() -> None:
    """Its docstring and its signature are not counted, what is defined inside of it is."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {count} statements"
        for path in _own_python()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (count := _statements(node)) > MAX_STATEMENTS
    ]
    assert found == []


def _statements(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    within = sum(isinstance(node, ast.stmt) for node in ast.walk(function)) - 1
    return within - (ast.get_docstring(function) is not None)


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
    names = {".".join(("shardmerge", *folder.parts)) for folder in folders - {PROGRAM}}
    assert sorted(listed["packages"]) == sorted(names | {"shardmerge"})
    assert listed["package-dir"] == {f"shardmerge.{package}": package for package in PACKAGES} | {
        "shardmerge": str(PROGRAM)
    }
    assert [path.name for path in (ROOT / PROGRAM).glob("*.py")] == ["__main__.py"]


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


def test_public_functions_of_several_arguments_say_what_they_take_return_and_raise() -> None:
    """Those with more than MAX_UNNAMED arguments; options of a click command say it in their help."""
    silent = []
    for path in (path for package in PACKAGES for path in modules(package)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not _is_command(node):
                said = ast.get_docstring(node) or ""
                wanted = ["Args:"] * (len(_arguments(node)) > MAX_UNNAMED)
                wanted += ["Returns:"] * (bool(wanted) and _returns(node) and "Returns" not in said)
                if missing := [word for word in wanted if word not in said]:
                    silent.append(
                        f"{path.relative_to(ROOT)}:{node.lineno} {node.name} lacks {', '.join(missing)}"
                    )
    assert silent == []


def _arguments(function: ast.FunctionDef) -> list[str]:
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def _returns(function: ast.FunctionDef) -> bool:
    """Whether it returns something; a context manager, a generator and a property say it in their first sentence."""
    annotation = ast.unparse(function.returns) if function.returns else "None"
    return annotation not in ("None", "NoReturn") and not annotation.startswith(("Iterator", "Generator"))


def _is_command(function: ast.FunctionDef) -> bool:
    return any("click" in ast.unparse(one) or "option" in ast.unparse(one) for one in function.decorator_list)
