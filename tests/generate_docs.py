"""Everything in the documentation that is not written by hand: `python -m tests.generate_docs [MATRIX]`.

Decides what is generated and where it stands: pages of docs/reference and docs/inside/map.md whole, and in README.md
what lies between a pair of markers; docs/inside/consolidation.md is the outcome of a run. Must not know what the
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
README, REFERENCE, INSIDE = ROOT / "README.md", ROOT / "docs" / "reference", ROOT / "docs" / "inside"
CLI, SETTINGS, ERRORS, API, ARCHITECTURES = (
    REFERENCE / f"{name}.md" for name in ("cli", "settings", "errors", "api", "architectures")
)
MATRIX = REFERENCE / "matrix.json"
MAP, CONSOLIDATION = INSIDE / "map.md", INSIDE / "consolidation.md"
FOLDERS = ("common", "phase1_dump", "phase2_merge", "tests", "docs")
TOP_FILES = ("Makefile", "pyproject.toml", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE")
# what cannot describe itself
DESCRIPTIONS = {
    "Makefile": "The verbs: setup, demo, test, lint and the rest",
    "pyproject.toml": "Package, extras, and the settings of every tool",
    "LICENSE": "Apache License 2.0",
    "docs": "What does not fit on the first page",
    "common/program": "Makes `python -m shardmerge` the same as `shardmerge`, which is a namespace",
    "docs/contribute": "How to add what is added often: the files in order, and which test to write first",
    "docs/guide": "How to use it, step by step",
    "docs/inside": "How it is built, for those who change it",
    "docs/reference": "What it says and promises: commands, functions, formats, errors, guarantees",
    "tests/fuzz/corpus": "Inputs by target: sound ones, and those that once found a defect",
    "tests/dumps/saved/files": "A small checkpoint as two versions save it: `python -m tests.dumps.saved.record`",
    "tests/oracles/confirmed.json": "Records that mcore-bridge's export equals: written by `make test-oracles`",
    "tests/oracles/adapters.json": "Keys of models with LoRA adapters: written by `make test-oracles`",
    "tests/oracles/records": "What other programs export, by family: written by `make test-oracles`",
    "tests/phase1_dump/checkpoint/saved_by_older": "What older programs saved, as `older.py` tells",
    "tests/torture/shim.c": "Stands between a process and libc: counts file-system calls, and strikes one",
    "docs/reference/matrix.json": "What the last full test run compared, by architecture and topology",
    "docs/guide/inspect.png": "The page of `shardmerge inspect --html`, of a dump with three ranks missing",
    "docs/reference/manifest.schema.json": "JSON Schema of a manifest",
}
ARCHITECTURES_HEAD = """# Architectures

Written by `make docs`. What `shardmerge architectures` lists: which models there are tables of, how their routed
experts may be spelled (as published files are first, and of multi-token prediction after a semicolon), whether there
are rows for multi-token prediction (MTP), and which programs that do not know the table tests compare it with. A model
that is not here: [write its table](../contribute/architecture.md).
"""
TOPOLOGIES_HEAD = """
## Topologies

Small models of every architecture, on every topology that fits them. Beside the table,
`tests/journeys/test_first_case.py` sends 108 layers with 512 experts over 72 ranks, a TP 4 x EP 8 world of 16 ranks
and one of 1,024 ranks through dump and merge, rank by rank in one process, and compares values.
"""
UNLISTED = {"__init__.py", "py.typed"}
CLOSED = {
    "tests/dumps/saved/files",
    "tests/fuzz/corpus",
    "tests/phase1_dump/checkpoint/saved_by_older",
    "tests/oracles/records",
}  # folders whose files are not listed
MAX_DESCRIPTION = 110


def commands() -> dict[str, click.Command]:
    """Every subcommand by name, imported."""
    from shardmerge.common.command.group import SUBCOMMANDS, load

    return {name: load(subcommand) for name, subcommand in SUBCOMMANDS.items()}


def cli_reference() -> str:
    """docs/reference/cli.md: the help of the group and of every command."""
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
    from tests.documents import settings_page

    return settings_page.page()


def errors() -> str:
    """docs/reference/errors.md: every class of errors."""
    from tests.documents import errors_page

    return errors_page.page()


def api() -> str:
    """docs/reference/api.md: the public functions."""
    from tests.documents import api_page

    return api_page.page()


def consolidation() -> str:
    """docs/inside/consolidation.md: two programs, run on the same faults."""
    from tests.faults.real import consolidator

    return consolidator.document()


def tree() -> str:
    """A line for each room of both phases, and one for each other folder: its name and its own first sentence."""
    lines = [
        (name, what)
        for folder in FOLDERS
        for name, what in _folder(ROOT / folder, 0)
        if name.endswith("/")
        and not name.startswith("    ")
        and not (name.startswith(" ") and not folder.startswith("phase"))
    ]
    return _aligned(lines)


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


def architectures() -> str:
    """docs/reference/architectures.md: what each table knows; architectures and topologies, with a legend."""
    record = json.loads(MATRIX.read_text()) if MATRIX.is_file() else {}
    legend = [f"- `{matrix.SIGNS[how]}`: {what}" for how, what in matrix.HOW.items()]
    parts = [
        ARCHITECTURES_HEAD,
        *_tables(),
        *_without_table(),
        TOPOLOGIES_HEAD,
        *legend,
        "",
        matrix.draw(record),
    ]
    return "\n".join(parts) + "\n"


def _tables() -> Iterator[str]:
    """The rows of the table of architectures. How a spelling is refused follows as a list."""
    from shardmerge.common.architectures import TABLES
    from shardmerge.common.command.architectures import layouts_of

    yield "| architecture | other names | experts | MTP | layouts | oracles |"
    yield "|---|---|---|---|---|---|"
    refused: dict[str, list[str]] = {}
    for table in TABLES:
        experts, mtp = table.experts, table.mtp
        spelled = ", ".join(experts.decoder) if experts else ""
        spelled += f"; {', '.join(experts.mtp)}" if experts and mtp else ""
        cells = (
            table.name,
            ", ".join(table.aliases),
            spelled,
            "yes" if mtp else "",
            ", ".join(layouts_of(table)),
        )
        yield f"| {' | '.join((*cells, ', '.join(table.oracles)))} |"
        if experts and experts.only:
            refused.setdefault(experts.only, []).append(table.name.removesuffix("ForCausalLM"))
    yield "\nWhy `--experts` has no choice:\n"
    yield from (f"- {', '.join(names)}: {reason}" for reason, names in refused.items())


def _without_table() -> Iterator[str]:
    """Published architectures that are refused by name."""
    from shardmerge.common.architectures.without_table import WITHOUT_TABLE

    yield "\nNo table yet, so that these are refused by name; one of your own can be given with `--architecture`:\n"
    yield from (f"- {one.models} ({', '.join(one.names)}): {one.reason}" for one in WITHOUT_TABLE)


def readme() -> str:
    """README.md with its generated section as it should be."""
    return _fill(README.read_text(), "tree", tree())


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
    ERRORS: errors,
    API: api,
    ARCHITECTURES: architectures,
    MAP: every_file,
    README: readme,
}


if __name__ == "__main__":
    main(sys.argv[1:])
