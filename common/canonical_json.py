"""JSON as shardmerge writes and reads it: sorted keys, a newline at the end, duplicate keys refused.

What is read may come from anybody: a text that is too deep or too long raises ValueError, as all other bad JSON does.
Must not know what an object means.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from . import plausible_sizes, regular_files
from .errors import printable
from .plausible_sizes import Plausible

HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")  # or one of two that make a whole one


def encode(value: Any, *, indent: int | None = None) -> bytes:
    """Return canonical bytes: the same value always gives the same bytes.

    Raises ValueError for NaN, for text that is not Unicode, and for too deep a nesting.
    """
    return _text(value, indent).encode() + b"\n"


def readable(value: Any, *, indent: int | None = None) -> bytes:
    """Return canonical JSON in which everything that a terminal would obey is escaped. Raises ValueError for NaN."""
    return printable.json_text(_text(value, indent)).encode() + b"\n"


def decode(data: bytes) -> Any:
    """Parse JSON in UTF-8.

    Raises ValueError for anything that is not JSON, a duplicate key, too deep a nesting, or half of a character, which
    could not be written again.
    """
    try:
        value = json.loads(str(data, "utf-8"), object_pairs_hook=_no_duplicates)
        if HALF_CHARACTER.search(data):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_object(
    path: Path, root: Path | None = None, plausible: Plausible = plausible_sizes.RECORD
) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Args:
        path: The file.
        root: The folder that was given, which the file lies in; by default the one that it lies in itself.
        plausible: How large such a file can be, beside the weights of `root`.

    Returns:
        The object, its keys in order.

    Raises:
        ValueError: It holds anything else.
        CorruptFileError: It is not a regular file, is too large, or is reached by a link that leads out of `root`.
        OSError: It cannot be read.
    """
    # without a folder nobody says where its weights are
    most = plausible.ceiling_bytes if root is None else plausible.limit(path, root)
    value = decode(regular_files.read(path, root or path.parent, most))
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    return value


def _text(value: Any, indent: int | None) -> str:
    separators = (",", ":") if indent is None else (",", ": ")
    try:
        return json.dumps(
            value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    by_key = dict(pairs)
    if len(by_key) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} occurs twice")
    return by_key
