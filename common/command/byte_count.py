"""Reads and shows sizes as people write them: `5GB` is 5,000,000,000 bytes, `5GiB` is 5,368,709,120.

Transformers and the Hub use the same units.
"""

from __future__ import annotations

import re

from ..errors import BadInputError

UNITS = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40,
}  # fmt: skip
_WRITTEN = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse(text: str) -> int:
    """Return the bytes that a text stands for. Raises BadInputError for anything but a positive number and a unit.

    A number alone is refused: whoever writes `5` means 5 GB, and would get a file for each tensor.
    """
    match = _WRITTEN.fullmatch(text.strip())
    if match and not match[2] and float(match[1]):
        raise BadInputError(f"{text!r} has no unit", f"Write {match[1]}GB, or {match[1]}B for bytes.")
    if (
        not match
        or match[2].upper() not in UNITS
        or not (count := int(float(match[1]) * UNITS[match[2].upper()]))
    ):
        raise BadInputError(
            f"{text!r} is not a size", "Write a number and a unit, for example 5GB or 512MiB."
        )
    return count


def show(count: int) -> str:
    """Return a number of bytes as messages show it, such as `1.4 GB`."""
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
