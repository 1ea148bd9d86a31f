"""What a failing rank does for the others: it records its failure beside its directory, and waits for them.

It waits because a launcher ends a whole node as soon as one of its processes fails.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shardmerge.common import canonical_json, durable, places, regular_files
from shardmerge.common.command.talk import say
from shardmerge.common.errors import CorruptFileError, ShardmergeError
from shardmerge.common.processes import owner
from shardmerge.common.processes.attempts import is_complete
from shardmerge.common.processes.owner import Owner, State

from .attempts import running

LOOK_EVERY_SECONDS = 1.0
MAX_RECORD_BYTES = 1 << 24


def record_failure(out: Path, rank: int, run_id: str, error: BaseException) -> None:
    """Write rank-NNNNN.failed.json, unless the rank is complete or another attempt at it runs: only this one failed.

    If it cannot be written, the error says so in a note: what went wrong first must not be hidden.

    Args:
        out: the dump.
        rank: the rank that failed.
        run_id: name of the dump that it belongs to.
        error: what went wrong.
    """
    path = places.rank_failed(out, rank)
    try:
        durable.make_folder(out)
        if is_complete(out, rank) or running(out, rank):
            return
        if os.path.lexists(path) and not _is_regular(path):
            raise FileExistsError("there is something else of that name")
        durable.write_file(path, canonical_json.encode(_record(rank, run_id, error), indent=2))
    except (
        OSError,
        ValueError,
    ) as refused:  # the latter of a path that is not Unicode: JSON does not hold it
        error.add_note(f"{path} could not be written: {refused}")


def _record(rank: int, run_id: str, error: BaseException) -> dict[str, Any]:
    facts = error.facts() if isinstance(error, ShardmergeError) else {"error": type(error).__name__}
    return {
        "rank": rank,
        "run_id": run_id,
        "failure": facts | {"message": str(error)},
        "owner": owner.here(f"the dump of rank {rank}").as_json(),
    }


def forget_failure(out: Path, rank: int) -> None:
    """Remove what an earlier attempt of this rank recorded: otherwise others would take this attempt for failed.

    What another process recorded that still runs stays, for those who wait with it.
    """
    path = places.rank_failed(out, rank)
    if _is_regular(path) and not _is_another_that_runs(_recorded_by(path, out)):
        _remove(path)


def forget_failures(out: Path, rank: int) -> None:
    """Remove what all attempts of this rank recorded, also half of a record: the rank is complete."""
    path = places.rank_failed(out, rank)
    try:
        found = [entry for entry in out.iterdir() if places.is_temporary_of(entry.name, path)]
    except OSError as error:
        say(sys.stderr, f"{out} could not be searched for records of failures: {error}")
        found = []
    for entry in filter(_is_regular, (path, *found)):
        _remove(entry)


def _remove(path: Path) -> None:
    """Remove a record, or say that it stays: that is not worth the failure of a rank."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        say(sys.stderr, f"{path} of an earlier attempt could not be removed: {error}")


def recorded_error(path: Path, out: Path) -> str | None:
    """Return the name of the error that a record tells, None if there is none that can be read."""
    failure = _record_in(path, out).get("failure")
    return failure.get("error") if isinstance(failure, dict) else None


def _recorded_by(path: Path, out: Path) -> Owner | None:
    """Return who recorded a failure, or None if the record does not tell."""
    try:
        return owner.of_json(_record_in(path, out).get("owner"))
    except (ValueError, CorruptFileError):
        return None


def _record_in(path: Path, out: Path) -> dict[str, Any]:
    """Return a record, an empty one if it cannot be read."""
    try:
        record = canonical_json.decode(regular_files.read(path, out, MAX_RECORD_BYTES))
    except (OSError, ValueError, CorruptFileError):
        return {}
    return record if isinstance(record, dict) else {}


def _is_another_that_runs(recorded_by: Owner | None) -> bool:
    if recorded_by is None or recorded_by.is_this_process():
        return False
    return recorded_by.state() is State.RUNS


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
    return is_complete(out, rank) or _is_regular(places.rank_failed(out, rank))


def _is_regular(path: Path) -> bool:
    """Whether it is a regular file, and no link to one. Nothing is opened: a FIFO would wait for ever."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:  # it is not there, or its folder cannot be looked into
        return False
