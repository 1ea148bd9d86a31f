"""Types of arguments that the commands of both phases share: a folder, a file, and a size as people write it.

Decides how one that cannot be meant is refused before a command begins. Must not know what any command does with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ..errors import BadInputError
from . import byte_count


class _NamedPath(click.Path):
    """A path. An empty text, as of a variable that is not set, would mean the folder that we are in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read an argument. Args: see click.ParamType. Returns a Path."""
        if value == "":
            self.fail("the path is empty, perhaps because a variable is not set.", param, ctx)
        return super().convert(value, param, ctx)


class _Directory(_NamedPath):
    """The path of a folder, as the shell completes it."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Let the shell complete folders. Args: see click.ParamType. Returns what tells it so."""
        return [CompletionItem(incomplete, type="dir")]


class _Size(click.ParamType):  # type: ignore[type-arg]  # older clicks take no argument here
    """A size in bytes, written as `byte_count` reads it."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read an argument. Args: see click.ParamType. Returns bytes."""
        if isinstance(value, int):
            return value
        try:
            return byte_count.parse(value)
        except BadInputError as error:
            self.fail(error.message(), param, ctx)


DIRECTORY = _Directory(path_type=Path)
FILE = _NamedPath(dir_okay=False, path_type=Path)
SIZE = _Size()
