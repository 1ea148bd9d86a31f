"""How a failing rank waits for the others: a launcher ends a whole node as soon as one of its processes fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from shardmerge.common.places import rank_failed, rank_name

LOOK_EVERY_SECONDS = 1.0


def wait_for_others(
    out: Path, world_size: int, seconds: float, sleep: Callable[[float], None] = time.sleep
) -> tuple[int, ...]:
    """Return once every rank is complete or has failed, or `seconds` have passed; the ranks still missing then.

    Looks at the dump's directory only. On node-local disks only this node's ranks can ever be seen.
    """
    missing = _unfinished(out, world_size)
    deadline = time.monotonic() + seconds
    while missing and time.monotonic() < deadline:
        sleep(LOOK_EVERY_SECONDS)
        missing = _unfinished(out, world_size)
    return missing


def _unfinished(out: Path, world_size: int) -> tuple[int, ...]:
    return tuple(rank for rank in range(world_size) if not _is_settled(out, rank))


def _is_settled(out: Path, rank: int) -> bool:
    return (out / rank_name(rank)).exists() or rank_failed(out, rank).exists()
