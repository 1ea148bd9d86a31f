"""What a command says to a person while it runs: on the stream that it was given, or not at all."""

from __future__ import annotations

from typing import TextIO

from ..errors import printable


def say(talk: TextIO | None, text: str) -> None:
    """Print a line to `talk`, if there is anybody to talk to. Nothing in it controls a terminal."""
    if talk:
        print(printable.lines(text), file=talk)
