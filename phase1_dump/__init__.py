"""Phase one: every rank writes the rectangles it owns, without entering a collective.

`dump` is imported when it is first used: it needs torch, and `dump_checkpoint` and everything that writes fragments do
not. No module here has the name of a function: once imported, it would stand where the function does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dump_model import dump
    from .dump_torch_dist import dump_checkpoint

__all__ = ["dump", "dump_checkpoint"]


def __getattr__(name: str) -> Any:
    if name == "dump":
        from .dump_model import dump

        return dump
    if name == "dump_checkpoint":
        from .dump_torch_dist import dump_checkpoint

        return dump_checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
