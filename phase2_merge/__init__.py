"""Phase two: one CPU job proves that a dump is whole and publishes the checkpoint.

`check`, `merge` and `verify` are imported when they are first used: the processes that assemble shards import this
package too, and need neither Arrow nor the ledger.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .check_dump import check
    from .compare import diff
    from .inspect_path import inspect
    from .merge_dump import merge
    from .rewrite_metadata import metadata
    from .verify_output import verify
    from .write_part import merge_part

__all__ = ["check", "diff", "inspect", "merge", "merge_part", "metadata", "verify"]

HOMES = {
    "check": "check_dump",
    "diff": "compare",
    "inspect": "inspect_path",
    "merge": "merge_dump",
    "merge_part": "write_part",
    "metadata": "rewrite_metadata",
    "verify": "verify_output",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{HOMES[name]}", __name__), name)
