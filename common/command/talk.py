"""What a command says to a person while it runs: on the stream that it was given, or not at all.

Nothing that is said here is a result, so a stream that takes nothing, as a log on a full disk, does not end the work.
"""

from __future__ import annotations

import contextlib
from typing import TextIO

from ..errors import printable


def say(talk: TextIO | None, text: str) -> None:
    """Print a line to `talk`, if there is anybody to talk to. Nothing in it controls a terminal."""
    if talk:
        with contextlib.suppress(OSError):
            print(printable.lines(text), file=talk)
