"""Phase one: every rank writes the rectangles it owns, without entering a collective.

`dump` and its like are imported when they are first used: what writes fragments (`fragments/`), the geometry
(`rectangles/`) and the process that writes beside training (`background/`) can be imported where there is no torch. No
module here is called dump or dump_async: once imported, it would stand where the function does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .background.dumping import Dumping
    from .dump_in_background import dump_async, prepare
    from .dump_model import dump

__all__ = ["Dumping", "dump", "dump_async", "prepare"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "dump":
        from .dump_model import dump

        return dump
    from . import dump_in_background

    return getattr(dump_in_background, name)
