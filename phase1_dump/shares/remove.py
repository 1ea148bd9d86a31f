"""Removes the dump of a checkpoint when it is not needed any more: what phase one can have written there, no more."""

from __future__ import annotations

from pathlib import Path

from shardmerge.common import places
from shardmerge.common.processes.attempts import is_own_folder

from ..fragments.attempts import clear_all_ended, discard


def remove(dump: Path) -> None:
    """Remove a dump: its ranks, records of failures, and what killed processes left of their attempts.

    A rank goes as the folder of an ended attempt does: it loses its name first, so that nobody takes a part of it for
    the whole, and whoever dumps again removes what was left of it.

    Raises OSError if something cannot be removed, or something else lies there; all else is removed then.
    """
    clear_all_ended(dump)
    for path in list(dump.iterdir()):
        if places.RANK_FAILED.fullmatch(path.name):
            path.unlink()
        elif (rank := places.RANK.fullmatch(path.name)) and is_own_folder(path):
            going = places.temporary(path)
            going.mkdir()
            path.rename(going / path.name)
            discard(going, int(rank[1]))
    dump.rmdir()
