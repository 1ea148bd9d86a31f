"""Which version of a program is installed, for what is written and told beside it; unknown where none is."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def version_of(program: str) -> str:
    """Return the version of an installed distribution, "unknown" for code that runs from a folder on the path."""
    try:
        return version(program)
    except PackageNotFoundError:
        return "unknown"
