"""Which characters may reach a terminal, and how all others are shown: text that somebody else wrote is never trusted.

A terminal obeys control characters, a line feed fakes a line of ours, and marks of direction turn text around. Names
that hold any of them are refused where they are read. What comes by another way is shown escaped. Must not know what a
text says, nor who wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Collection

COLOUR = "\x1b\\[[0-9]{0,2}m"  # what click.style writes
_TEXT = re.compile(rf"(\n|{COLOUR})")


def is_printable(names: Collection[str]) -> bool:
    """Whether all of these names can be shown as they are. There may be millions."""
    return "".join(names).isprintable()


def one_line(text: str) -> str:
    """Return a text with every character escaped that cannot be printed, the end of a line included."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def lines(text: str) -> str:
    """Return a text as `one_line` does, but for its own ends of lines."""
    return "\n".join(map(one_line, text.split("\n")))


def coloured_lines(text: str) -> str:
    """Return a text as `lines` does, but for its colours too."""
    return "".join(part if _TEXT.fullmatch(part) else one_line(part) for part in _TEXT.split(text))


def json_text(text: str) -> str:
    """Return JSON that means the same, in which everything that cannot be printed is escaped."""
    return "\n".join(
        part if part.isprintable() else "".join(map(_in_json, part)) for part in text.split("\n")
    )


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def _in_json(char: str) -> str:
    if char.isprintable():
        return char
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
