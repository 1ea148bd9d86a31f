"""docs/reference/api.md: the functions of both phases, with their signatures and docstrings.

Decides which functions are public: those that `__all__` of either phase names.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

PHASES = ("shardmerge.phase1_dump", "shardmerge.phase2_merge")
HEAD = """# API

Written by `make docs` from the functions' own docstrings. Nothing else is public."""
SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes):$")
ITEM = re.compile(r"^    ([\w., ]+): (.*)$")


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for phase in PHASES:
        module = import_module(phase)
        parts.append(f"## {phase}")
        for name in sorted(module.__all__):
            parts += _entry(name, getattr(module, name))
    return "\n\n".join(parts) + "\n"


def _entry(name: str, public: Callable[..., Any]) -> Iterator[str]:
    yield f"### {name}"
    yield f"```text\n{_signature(name, public)}\n```"
    yield "\n".join(_markdown(inspect.getdoc(public) or ""))


def _signature(name: str, public: Callable[..., Any]) -> str:
    """Return a signature, a line for each parameter, annotations as they are written."""
    found = inspect.signature(public)
    lines = list[str]()
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in lines:
            lines.append("*")
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        lines.append(f"{parameter.name}: {parameter.annotation}{default}")
    return f"{name}(\n    " + ",\n    ".join(lines) + f",\n) -> {found.return_annotation}"


def _markdown(text: str) -> Iterator[str]:
    """Yield a docstring's lines, its sections as lists."""
    inside = False
    for line in text.splitlines():
        if heading := SECTION.match(line):
            inside = True
            yield f"**{heading[1]}**"
            yield ""
        elif inside and (item := ITEM.match(line)):
            yield f"- `{item[1]}`: {item[2]}"
        elif inside and line.startswith("    "):
            yield f"  {line.strip()}" if line.startswith("        ") else f"- {line.strip()}"
        else:
            yield line
