"""The documentation says what is there: generated parts are fresh, commands parse, links lead somewhere."""

from __future__ import annotations

import ast
import copy
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest

from shardmerge.common import manifest
from shardmerge.common.command.group import SUBCOMMANDS
from shardmerge.common.manifest import FragmentFile, Manifest, Placed
from shardmerge.common.manifest_facts import Facts
from shardmerge.common.rectangle import Rectangle
from tests import generate_docs

ROOT = generate_docs.ROOT
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\[[^\]]+\]\(([^)#]+)(?:#[^)]*)?\)")


# docs/inside/consolidation.md tells what one version of torch does: tests/faults/real/test_consolidator.py
FRESH = [path for path in generate_docs.GENERATED if path != generate_docs.CONSOLIDATION]


@pytest.mark.parametrize("path", FRESH, ids=lambda path: path.name)
def test_generated_documentation_is_fresh(path: Path) -> None:
    assert path.read_text() == generate_docs.GENERATED[path](), f"{path.name} is stale: run make docs"


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_command_has_a_help_with_an_example_that_parses(name: str) -> None:
    command = generate_docs.commands()[name]
    examples = list(_shell_commands(inspect.cleandoc(command.help or "").replace("\b", "")))
    assert examples, f"shardmerge {name} --help shows no example"
    for words in examples:
        _parse(words)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_option_says_what_it_is_for(name: str) -> None:
    options = [p for p in generate_docs.commands()[name].params if isinstance(p, click.Option)]
    assert [option.name for option in options if not option.help] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_exist(document: Path) -> None:
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for language, text in BLOCK.findall(document.read_text()):
        if language != "bash":
            continue
        for words in _shell_commands(text):
            _parse(words)
        for verb in re.findall(r"^make ([a-z-]+)", text, re.M):
            assert verb in verbs, f"{document.name}: make {verb}"


def test_options_that_messages_name_exist() -> None:
    """Those of other programs are listed: a hint that names an option which is gone is worse than none."""
    of_others = {"--exclude", "--load", "--ckpt-step", "--dist-ckpt-strictness"}  # hf download, Megatron-LM
    commands = generate_docs.commands().values()
    known = {option for command in commands for parameter in command.params for option in parameter.opts} | {
        "--help"
    }
    named = {
        (option, str(path.relative_to(ROOT)))
        for package in ("common", "phase1_dump", "phase2_merge")
        for path in (ROOT / package).rglob("*.py")
        for text in _texts(ast.parse(path.read_text()))
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)
    }
    assert len(named) > 20
    assert {one for one in named if one[0] not in known | of_others} == set()


def test_python_in_the_readme_calls_what_exists() -> None:
    blocks = [
        text for language, text in BLOCK.findall((ROOT / "README.md").read_text()) if language == "python"
    ]
    assert blocks
    for block in blocks:
        _check_python(ast.parse(block))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_in_documents_lead_somewhere(document: Path) -> None:
    targets = [target for target in LINK.findall(document.read_text()) if "://" not in target]
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_schema_accepts_what_encode_writes() -> None:
    _validator().validate(_example())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "something-else"),
        (("rank",), -1),
        (("step",), "120000"),
        (("coordinates",), {"sp": 0}),
        (("files", 0, "name"), "../whole-00001.safetensors"),
        (("columns", "global_shape"), []),
        (("columns", "begin"), [4096.5]),
        (("xxh3_128",), "0"),
        (("unknown",), 1),
    ],
)
def test_schema_refuses(path: tuple[Any, ...], value: object) -> None:
    example = copy.deepcopy(_example())
    target = example
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    assert not _validator().is_valid(example)


def _validator() -> Any:
    schema = json.loads((ROOT / "docs" / "reference" / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def _example() -> Any:
    rectangles = [
        Rectangle("model.norm.weight", "BF16", (64,), (0,), (64,)),
        Rectangle("model.embed_tokens.weight", "BF16", (211, 64), (0, 0), (128, 64)),
    ]
    placed = [Placed(r, at - 1, 4096, 4096 + r.num_bytes, at, "00" * 16) for at, r in enumerate(rectangles)]
    names, dtypes, columns = manifest.columns(placed)
    made = Manifest(
        run_id="schema",
        step=7,
        attempt="0",
        rank=1,
        world_size=2,
        coordinates={"tp": 1, "edp": 0},
        groups={"tp": [0, 1], "edp": [1]},
        architecture="LlamaForCausalLM",
        facts=Facts(dtype="BF16"),
        files=(FragmentFile("split-00001.safetensors", 20480, 4096, "0f" * 16),),
        names=names,
        dtypes=dtypes,
        columns=columns,
        drops={"rotary frequencies are recomputed": 2},
        producer={"shardmerge": "0.1.0"},
    )
    return json.loads(manifest.encode(made))


def _texts(tree: ast.Module) -> Iterator[str]:
    """All texts of a module but docstrings."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    first = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in first:
            yield node.value


def _shell_commands(text: str) -> Iterator[list[str]]:
    """Words of every line that calls shardmerge, continued lines joined, comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.strip(), comments=True)
        if words and ("shardmerge" in words[0] or "shardmerge.phase1_dump" in words):
            yield words


def _parse(words: list[str]) -> None:
    """Raise click's UsageError for an option or a command that does not exist."""
    if "shardmerge.phase1_dump" in words:
        name, arguments = "dump", words[words.index("shardmerge.phase1_dump") + 1 :]
    else:
        name, arguments = words[1], words[2:]
    if name.startswith("-"):
        return
    command = generate_docs.commands()[name]
    context = click.Context(command, info_name=name)
    command.make_parser(context).parse_args(arguments)


def _check_python(tree: ast.Module) -> None:
    imported = {
        alias.asname or alias.name: getattr(import_module(node.module), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("shardmerge.")
        for alias in node.names
    }
    assert imported
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Name) and call.func.id in imported:
            keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg}
            inspect.signature(imported[call.func.id]).bind(*call.args, **keywords)
