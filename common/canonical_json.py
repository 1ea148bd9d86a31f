"""JSON as shardmerge writes and reads it: sorted keys, a newline at the end, duplicate keys refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def encode(value: Any, *, indent: int | None = None) -> bytes:
    """Return canonical bytes: the same value always gives the same bytes. Raises ValueError for NaN."""
    separators = (",", ":") if indent is None else (",", ": ")
    text = json.dumps(
        value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators
    )
    return text.encode() + b"\n"


def decode(data: bytes) -> Any:
    """Parse JSON. Raises ValueError for anything that is not JSON, a duplicate key, or too deep a nesting."""
    try:
        return json.loads(data, object_pairs_hook=_no_duplicates)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`. Raises ValueError if it holds anything else, OSError if it cannot be read."""
    value = decode(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    by_key = dict(pairs)
    if len(by_key) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} occurs twice")
    return by_key
