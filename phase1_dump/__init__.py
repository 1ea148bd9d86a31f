"""Phase one: every rank writes the rectangles it owns, without entering a collective.

`dump` and its like are imported when they are first used: they need torch, and `dump_checkpoint`, everything that
writes fragments (`fragments/`) and the process that writes beside training (`background/`) do not. No module here has
the name of a function: once imported, it would stand where the function does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .background.dumping import Dumping
    from .dump_in_background import dump_async, prepare
    from .dump_model import dump
    from .dump_torch_dist import dump_checkpoint

__all__ = ["Dumping", "dump", "dump_async", "dump_checkpoint", "prepare"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "dump":
        from .dump_model import dump

        return dump
    if name == "dump_checkpoint":
        from .dump_torch_dist import dump_checkpoint

        return dump_checkpoint
    from . import dump_in_background

    return getattr(dump_in_background, name)
