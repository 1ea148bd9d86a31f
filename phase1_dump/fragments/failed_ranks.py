"""What a failing rank does for the others: it records its failure beside its directory, and waits for them.

It waits because a launcher ends a whole node as soon as one of its processes fails.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from shardmerge.common import canonical_json, durable
from shardmerge.common.errors import ShardmergeError
from shardmerge.common.places import rank_failed, rank_name

LOOK_EVERY_SECONDS = 1.0


def record_failure(out: Path, rank: int, run_id: str, error: BaseException) -> None:
    """Write rank-NNNNN.failed.json, unless the rank is complete: then only a second attempt failed.

    If it cannot be written, the error says so in a note: what went wrong first must not be hidden.

    Args:
        out: the dump.
        rank: the rank that failed.
        run_id: name of the dump that it belongs to.
        error: what went wrong.
    """
    if (out / rank_name(rank)).exists():
        return
    facts = error.facts() if isinstance(error, ShardmergeError) else {"error": type(error).__name__}
    record = {"rank": rank, "run_id": run_id, "failure": facts | {"message": str(error)}}
    try:
        out.mkdir(parents=True, exist_ok=True)
        durable.write_file(rank_failed(out, rank), canonical_json.encode(record, indent=2))
    except OSError as refused:
        error.add_note(f"{rank_failed(out, rank)} could not be written: {refused}")


def forget_failure(out: Path, rank: int) -> None:
    """Remove what an earlier attempt of this rank recorded: otherwise others would take this attempt for failed."""
    with contextlib.suppress(OSError):
        rank_failed(out, rank).unlink()


def wait_for_others(
    out: Path, world_size: int, seconds: float, sleep: Callable[[float], None] = time.sleep
) -> tuple[int, ...]:
    """Wait until every rank is complete or has failed, or `seconds` have passed.

    It looks at the dump's directory only. On node-local disks only this node's ranks can ever be seen.

    Args:
        out: the dump.
        world_size: how many ranks there are.
        seconds: how long to wait at most.
        sleep: how to pass the time, for tests.

    Returns:
        The ranks that have neither finished nor failed.
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
