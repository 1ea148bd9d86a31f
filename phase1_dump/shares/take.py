"""Takes shares of a checkpoint that nobody has, one after another, until none is left.

A process that is killed costs the share that it was writing: somebody else takes it, in the same run or in a later one.
Must not know what a share holds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from shardmerge.common import places
from shardmerge.common.errors import OutputExistsError, OutputLockedError, ShardmergeError
from shardmerge.common.processes import memory
from shardmerge.common.processes.attempts import Attempt, attempts, is_complete
from shardmerge.common.processes.owner import State

from ..checkpoint.plan import Plan
from ..checkpoint.share import share_of
from ..fragments.failed_ranks import forget_failure, record_failure
from ..fragments.write_rank import write_rank

LOOK_EVERY_SECONDS = 1.0
CACHED = (
    3  # a dump so many of which exceed the free memory passes the page cache: no merge would find it there
)
STALE_SECONDS = 60.0  # an attempt on another host that writes nothing for so long is taken for ended


@dataclass(slots=True)
class Watch:
    """Attempts of which cannot be known whether their process runs: whether their files still change."""

    seen: dict[Path, tuple[tuple[int, int], float]] = field(default_factory=dict)

    def is_stale(self, attempt: Attempt, seconds: float) -> bool:
        """Whether nothing in its folder changed for so many seconds, as far as this process looked."""
        state, now = _state(attempt.folder), time.monotonic()
        before = self.seen.get(attempt.folder)
        if before is None or before[0] != state:
            self.seen[attempt.folder] = state, now
            return False
        return now - before[1] >= seconds


@dataclass(slots=True)
class Taken:
    """What one process did: the shares it wrote, their bytes, and by share what went wrong.

    `unchecked` are keys of tensors with chunks of which no CRC-32 was recorded.
    """

    shares: list[int] = field(default_factory=list)
    num_bytes: int = 0
    problems: dict[int, ShardmergeError] = field(default_factory=dict)
    unchecked: set[str] = field(default_factory=set)


def take(
    plan: Plan,
    out: Path,
    run_id: str,
    *,
    first: int = 0,
    advance: Callable[[int], None],
    patience: float = 600.0,
    stale: float = STALE_SECONDS,
) -> Taken:
    """Write every share that nobody has, and those that others give up while this process waits for them.

    Args:
        plan: Of the checkpoint.
        out: The dump.
        run_id: Its name.
        first: Where to begin, so that processes which start together begin at different shares.
        advance: Called with numbers of bytes that are written.
        patience: Seconds to wait for others without seeing that they write anything.
        stale: Seconds after which an attempt on another host that changes nothing is taken for ended.

    Returns:
        What was done. A share that cannot be written for its own sake is recorded as failed, and others go on.

    Raises:
        OSError: files cannot be written; the shares that are complete stay.
    """
    taken, watch = Taken(), Watch()
    past_the_cache = CACHED * sum(share.num_bytes for share in plan.shares) > memory.available_bytes()
    order = [(first + number) % len(plan.shares) for number in range(len(plan.shares))]
    deadline, before = time.monotonic() + patience, None
    while left := [share for share in order if share not in taken.problems and not is_complete(out, share)]:
        free = next((share for share in left if _is_free(out, share, watch, stale)), None)
        now = free, len(left), [_state(attempt.folder) for share in left for attempt in _attempts(out, share)]
        if now != before:
            deadline, before = time.monotonic() + patience, now
        if free is not None and _write(
            plan, out, run_id, free, taken, advance, past_the_cache=past_the_cache
        ):
            continue
        if time.monotonic() >= deadline:
            break
        time.sleep(min(LOOK_EVERY_SECONDS, patience))
    return taken


def missing(out: Path, num_shares: int) -> tuple[int, ...]:
    """Return the shares that are not complete."""
    return tuple(share for share in range(num_shares) if not is_complete(out, share))


def _is_free(out: Path, share: int, watch: Watch, stale: float) -> bool:
    """Whether nobody writes a share, as far as can be seen from here."""
    for attempt in _attempts(out, share):
        state = attempt.state()
        if state is State.RUNS or (state is State.UNKNOWN and not watch.is_stale(attempt, stale)):
            return False
    return True


def _attempts(out: Path, share: int) -> list[Attempt]:
    return attempts(out, share) if out.is_dir() else []


def _write(
    plan: Plan,
    out: Path,
    run_id: str,
    share: int,
    taken: Taken,
    advance: Callable[[int], None],
    *,
    past_the_cache: bool,
) -> bool:
    """Write one share, unless somebody else turns out to have it. Returns whether it is written, or failed."""
    try:
        source = share_of(plan, share, run_id)
        forget_failure(out, share)
        manifest = write_rank(
            source,
            out,
            max_fragment_bytes=max(1, plan.shares[share].num_bytes),
            advance=advance,
            most_streams=1,
            past_the_cache=past_the_cache,
        )
    except (OutputExistsError, OutputLockedError) as error:
        if not is_complete(out, share) and not os.path.lexists(out / places.rank_name(share)):
            return False  # another process was faster
        if not is_complete(out, share):
            taken.problems[share] = error
    except ShardmergeError as error:
        record_failure(out, share, run_id, error)
        taken.problems[share] = error
    else:
        taken.shares.append(share)
        taken.num_bytes += sum(file.num_bytes for file in manifest.files)
        taken.unchecked |= source.files.unchecked
    return True


def _state(folder: Path) -> tuple[int, int]:
    """Return the bytes of all files below a folder, and the last time that one was written to."""
    size = written = 0
    for above, _, names in os.walk(folder):
        for name in names:
            try:
                found = os.lstat(os.path.join(above, name))
            except FileNotFoundError:
                continue
            size, written = size + found.st_size, max(written, found.st_mtime_ns)
    return size, written
