"""Everything in the documentation that is not written by hand: `python -m tests.generate_docs [MATRIX]`.

Decides what is generated and where it stands: docs/cli.md, docs/reference/settings.md and docs/inside/map.md whole, and
in README.md what lies between a pair of markers; docs/consolidation.md is the outcome of a run. Must not know what the
commands do or what was tested.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click

from tests import matrix

ROOT = Path(__file__).resolve().parents[1]
README, CLI, MATRIX = ROOT / "README.md", ROOT / "docs" / "cli.md", ROOT / "docs" / "matrix.json"
CONSOLIDATION = ROOT / "docs" / "consolidation.md"
MAP = ROOT / "docs" / "inside" / "map.md"
SETTINGS = ROOT / "docs" / "reference" / "settings.md"
FOLDERS = ("common", "phase1_dump", "phase2_merge", "tests", "docs")
TOP_FILES = ("Makefile", "pyproject.toml", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE")
# what cannot describe itself
DESCRIPTIONS = {
    "Makefile": "The verbs: setup, demo, test, lint and the rest",
    "pyproject.toml": "Package, extras, and the settings of every tool",
    "LICENSE": "Apache License 2.0",
    "docs": "What does not fit on the first page",
    "docs/guide": "How to use it in a job",
    "docs/inside": "How it is built, for those who change it",
    "docs/reference": "What it promises, and which test shows it",
    "tests/fuzz/corpus": "Inputs by target: sound ones, and those that once found a defect",
    "tests/oracles/records": "What other programs export, by family: written by `make test-oracles`",
    "tests/torture/shim.c": "Stands between a process and libc: counts file-system calls, and strikes one",
    "docs/matrix.json": "What the last full test run compared: the source of the table above",
    "docs/inspect.png": "The page of `shardmerge inspect --html`, of a dump with three ranks missing",
    "docs/manifest.schema.json": "JSON Schema of a manifest",
}
UNLISTED = {"__init__.py", "py.typed"}
CLOSED = {"tests/fuzz/corpus", "tests/oracles/records"}  # folders whose files are not listed
MAX_DESCRIPTION = 110


def commands() -> dict[str, click.Command]:
    """Every subcommand by name, imported."""
    from shardmerge.common.command.group import SUBCOMMANDS, load

    return {name: load(subcommand) for name, subcommand in SUBCOMMANDS.items()}


def cli_reference() -> str:
    """docs/cli.md: the help of the group and of every command."""
    from shardmerge.common.command.group import main

    parts = [
        "# Command line",
        "Written by `make docs` from the commands' own help.",
        _help("shardmerge", main),
    ]
    for name, command in commands().items():
        parts += [f"## shardmerge {name}", _help(f"shardmerge {name}", command)]
    return "\n\n".join(parts) + "\n"


def _help(name: str, command: click.Command) -> str:
    settings = (
        command.context_settings
    )  # read by an invocation only, and click keeps the first help option it made
    context = click.Context(command, info_name=name, max_content_width=110, terminal_width=110, **settings)
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    return f"```text\n{text}\n```"


def settings() -> str:
    """docs/reference/settings.md: what is compared of config.json."""
    from tests import settings_page

    return settings_page.page()


def consolidation() -> str:
    """docs/consolidation.md: two programs, run on the same faults."""
    from tests.faults.real import consolidator

    return consolidator.document()


def tree() -> str:
    """A line per folder: its name and the first sentence of what it says of itself."""
    folders = [line for folder in FOLDERS for line in _folder(ROOT / folder, 0) if line[0].endswith("/")]
    return _aligned(folders)


def every_file() -> str:
    """docs/inside/map.md: a line per file."""
    lines = [line for folder in FOLDERS for line in _folder(ROOT / folder, 0)]
    lines += [(name, describe(ROOT / name)) for name in TOP_FILES]
    head = "# Map of the files\n\nWritten by `make docs` from the first sentence of every module."
    return f"{head} Which room may import which: [design](design.md).\n\n{_aligned(lines)}\n"


def _aligned(lines: Iterable[tuple[str, str]]) -> str:
    every = list(lines)
    width = max(len(name) for name, _ in every) + 2
    return "```text\n" + "\n".join(f"{name:<{width}}{what}".rstrip() for name, what in every) + "\n```"


def _folder(folder: Path, depth: int) -> Iterator[tuple[str, str]]:
    """A folder, its files, then the folders in it."""
    yield "  " * depth + folder.name + "/", describe(folder)
    if folder.relative_to(ROOT).as_posix() in CLOSED:
        return
    entries = sorted(path for path in folder.iterdir() if _is_listed(path))
    for path in sorted(entries, key=lambda p: p.is_dir()):
        if path.is_dir():
            yield from _folder(path, depth + 1)
        else:
            yield "  " * (depth + 1) + path.name, describe(path)


def _is_listed(path: Path) -> bool:
    if path.is_dir():
        return not path.name.startswith(("__", ".")) and any(_is_listed(inner) for inner in path.iterdir())
    return path.name not in UNLISTED and not path.name.startswith(".") and path.suffix != ".pyc"


def describe(path: Path) -> str:
    """First sentence of a module, of a folder's __init__, or a document's title. Raises KeyError if there is none."""
    name = path.relative_to(ROOT).as_posix()
    if name in DESCRIPTIONS:
        return DESCRIPTIONS[name]
    if path.suffix == ".md":
        return path.read_text().partition("\n")[0].removeprefix("# ")
    source = path / "__init__.py" if path.is_dir() else path
    if (
        source.suffix == ".py"
        and source.is_file()
        and (text := ast.get_docstring(ast.parse(source.read_text())))
    ):
        return first_sentence(text)
    raise KeyError(
        f"{name} does not say what it is: give it a docstring, or a line in tests/generate_docs.py"
    )


def first_sentence(text: str) -> str:
    """The first sentence without its full stop; a long one loses clauses from its end."""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    sentence = re.split(r"(?<=[\w)`\"'])\.(?=\s|$)|(?<=\?)\s", paragraph)[0]
    while len(sentence) > MAX_DESCRIPTION and (cut := max(sentence.rfind(mark) for mark in ";:,")) > 0:
        sentence = sentence[:cut]
    return sentence


def tested() -> str:
    """The table of architectures and topologies, with its legend."""
    record = json.loads(MATRIX.read_text()) if MATRIX.is_file() else {}
    if not record:
        return "No full test run has been recorded yet."
    legend = [f"- `{matrix.SIGNS[how]}`: {what}" for how, what in matrix.HOW.items()]
    return "\n".join([*legend, "", matrix.draw(record)])


def readme() -> str:
    """README.md with its generated sections as they should be."""
    text = README.read_text()
    for section, content in {"matrix": tested(), "tree": tree()}.items():
        text = _fill(text, section, content)
    return text


def _fill(document: str, section: str, text: str) -> str:
    start, end = f"<!-- {section}: written by make docs -->\n", f"\n<!-- end of {section} -->"
    before, found, rest = document.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"README.md has no markers of section {section}")
    return before + start + text + end + after


def main(arguments: list[str]) -> None:
    """Adopt the record of the last test run, if there is one, and write everything again."""
    if arguments and Path(arguments[0]).is_file():
        shutil.copyfile(arguments[0], MATRIX)
    for path, generate in GENERATED.items():
        path.write_text(generate())
        print(f"wrote {path.relative_to(ROOT)}")


# in this order: the map lists the others
GENERATED: dict[Path, Callable[[], str]] = {
    CLI: cli_reference,
    CONSOLIDATION: consolidation,
    SETTINGS: settings,
    MAP: every_file,
    README: readme,
}


if __name__ == "__main__":
    main(sys.argv[1:])
