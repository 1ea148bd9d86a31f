"""Phase one: every rank writes the rectangles it owns, without entering a collective.

`dump` is imported when it is first used: what writes fragments (`fragments/`) and the geometry (`rectangles/`) can be
imported where there is no torch. No module here is called dump: once imported, it would stand where the function does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dump_model import dump

__all__ = ["dump"]


def __getattr__(name: str) -> Any:
    if name != "dump":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .dump_model import dump

    return dump
