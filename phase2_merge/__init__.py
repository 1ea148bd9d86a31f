"""Phase two: one CPU job proves that a dump is whole and publishes the checkpoint.

`check`, `merge` and `verify` are imported when they are first used: the processes that assemble shards import this
package too, and need neither Arrow nor the ledger.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .commands.check import check
    from .commands.diff import diff
    from .commands.inspect import inspect
    from .commands.merge import merge
    from .commands.merge_part import merge_part
    from .commands.metadata import metadata
    from .commands.verify import verify

__all__ = ["check", "diff", "inspect", "merge", "merge_part", "metadata", "verify"]

HOMES = {
    "check": "commands.check",
    "diff": "commands.diff",
    "inspect": "commands.inspect",
    "merge": "commands.merge",
    "merge_part": "commands.merge_part",
    "metadata": "commands.metadata",
    "verify": "commands.verify",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{HOMES[name]}", __name__), name)
