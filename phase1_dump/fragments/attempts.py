"""The folder of one attempt at a rank: how it appears, how it goes, and what is done about those of other attempts.

Several processes may try the same rank at the same time: a job that was started twice, a launcher that restarts a rank
whose process still hangs. Each writes into a folder of its own, `.rank-NNNNN.TOKEN.partial`, and nobody touches the
folder of another whose process may still run. Only names that this project creates are ever removed. Must not know
what a rank writes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from shardmerge.common import canonical_json, durable, places
from shardmerge.common.command.talk import say
from shardmerge.common.errors import OutputLockedError
from shardmerge.common.processes.attempts import Attempt, attempts, is_own_folder
from shardmerge.common.processes.owner import Owner, State

TRIES = 20


def running(out: Path, rank: int) -> Attempt | None:
    """Return an attempt at this rank whose process still runs, if there is one. Raises OSError."""
    return next((attempt for attempt in attempts(out, rank) if attempt.state() is State.RUNS), None)


def make_way(out: Path, rank: int) -> None:
    """Remove what ended attempts at a rank left, and refuse to start beside one that runs.

    One of which cannot be known whether it runs stays and does not hinder: whoever finishes first has the rank.

    Raises OutputLockedError, OSError.
    """
    clear_ended(out, rank)
    if attempt := running(out, rank):
        raise OutputLockedError(str(out / places.rank_name(rank)), str(attempt))
    for attempt in attempts(out, rank):
        say(
            sys.stderr,
            f"{attempt.folder} belongs to {attempt}. Whether it still runs cannot be seen from here: it is left alone, "
            "and whoever finishes first has the rank. Remove the folder if that process has ended.",
        )


def clear_ended(out: Path, rank: int) -> None:
    """Remove what killed processes left of their attempts at a rank. Raises OSError if `out` cannot be listed."""
    for attempt in attempts(out, rank):
        if attempt.state() is State.ENDED:
            discard(attempt.folder, rank)
    for entry in list(out.iterdir()):
        if places.is_temporary_of(entry.name, out / places.rank_name(rank)) and is_own_folder(entry):
            discard(entry, rank)


def clear_all_ended(out: Path) -> None:
    """Remove what killed processes left of their attempts at any rank. Raises OSError if `out` cannot be listed.

    One that was killed when its rank had just got its name leaves a record, and nobody takes that rank again.
    """
    entries = os.listdir(out)
    partial = map(places.RANK_PARTIAL.fullmatch, entries)
    going = (
        places.RANK.fullmatch(found["name"]) for found in map(places.TEMPORARY.fullmatch, entries) if found
    )
    for rank in sorted({int(found[1]) for found in (*partial, *going) if found}):
        clear_ended(out, rank)


def begin(folder: Path, rank: int, owner: Owner) -> None:
    """Make the folder of an attempt. It holds its owner's record from the moment that it has its name.

    Before that it looks like something that a killed process left, and another attempt may remove it: begin again then.

    Args:
        folder: The folder.
        rank: The rank, whose own folder is made in it.
        owner: Who attempts.

    Raises:
        OSError: It cannot be made. Nothing is left of it.
    """
    for tries in range(TRIES):
        unfinished = places.temporary(folder.with_name(places.rank_name(rank)))
        unfinished.mkdir()
        try:
            durable.write_file(unfinished / places.OWNER, canonical_json.encode(owner.as_json(), indent=2))
            (unfinished / places.rank_name(rank)).mkdir()
            unfinished.rename(folder)
            return
        except FileNotFoundError:
            if tries == TRIES - 1:
                raise
        except BaseException:
            discard(unfinished, rank)
            raise


def discard(folder: Path, rank: int) -> None:
    """Remove the folder of an attempt. What cannot be removed stays, and stderr tells which.

    It gets another name first. Of several who remove it at the same time one goes on, and nobody finds half of it
    under the name of an attempt.
    """
    going = places.temporary(folder.with_name(places.rank_name(rank)))
    try:
        folder.rename(going)
        _remove(going / places.rank_name(rank), places.is_of_rank)
        _remove(going, places.is_of_attempt)
    except FileNotFoundError:
        return  # it was removed already, or another attempt does it now
    except OSError as error:
        say(sys.stderr, f"{folder} could not be removed: {error}")


def _remove(folder: Path, is_ours: Callable[[str], bool]) -> None:
    """Remove a folder and the files in it that are ours; no link is followed. Raises OSError if others are in it."""
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        for name in os.listdir(opened):
            if is_ours(name):
                with contextlib.suppress(FileNotFoundError):  # another attempt removes them too
                    os.unlink(name, dir_fd=opened)
    finally:
        os.close(opened)
    os.rmdir(folder)
