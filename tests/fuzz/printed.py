"""What a command prints of an outcome or a refusal: the command line itself is asked, as a person and as a machine.

Must not know what was read.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from typing import Any

import click

from shardmerge.common.command import outcome

COLOURS = re.compile("\x1b\\[[0-9]{0,2}m")


class UnprintableError(AssertionError):
    """Something reaches a terminal that the terminal would obey."""


def as_command(end: Callable[[], Any]) -> None:
    """Let a command end as `end` does, which returns an outcome or raises an error.

    Raises UnprintableError, and whatever printing raises: a person would see its traceback.
    """
    for options in ([], ["--json"]):
        text = _printed(end, options)
        if strange := {char for char in COLOURS.sub("", text) if not char.isprintable() and char != "\n"}:
            raise UnprintableError(f"a terminal gets {sorted(strange)!r:.60}: {text!r:.200}")


def _printed(end: Callable[[], Any], options: list[str]) -> str:
    """Return what a command prints that ends so. Nothing that cannot be encoded gets through, as in a terminal."""
    command = click.command()(outcome.reported(end))
    out, err = _stream("strict"), _stream("backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        command.main(options, standalone_mode=False, color=True)  # or click removes what a terminal would get
    return "".join(stream.buffer.getvalue().decode() for stream in map(_flushed, (out, err)))


def _stream(errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors)


def _flushed(stream: io.TextIOWrapper) -> Any:
    stream.flush()
    return stream
