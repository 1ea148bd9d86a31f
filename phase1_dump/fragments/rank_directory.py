"""The directory of one rank: built in the folder of an attempt, made durable, renamed when it is complete.

A rank that a killed job left unfinished begins anew; one that is complete is refused.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from shardmerge.common import durable
from shardmerge.common.errors import OutputExistsError
from shardmerge.common.places import MODELS, rank_name, rank_partial
from shardmerge.common.processes import owner
from shardmerge.common.processes.attempts import is_complete

from .attempts import begin, clear_ended, discard, make_way
from .failed_ranks import forget_failures


def refuse_existing(out: Path, rank: int) -> None:
    """Raise OutputExistsError if there is anything where this rank belongs: a live dump never replaces single ranks."""
    refuse_models(out)
    final = out / rank_name(rank)
    if is_complete(out, rank):
        clear_ended(out, rank)  # a process that is killed just after its rank is complete leaves its record
        raise OutputExistsError(str(final), "this rank was dumped there before")
    if os.path.lexists(final):
        raise OutputExistsError(str(final), "it is not what a dump of this rank leaves")


def refuse_models(out: Path) -> None:
    """Raise OutputExistsError if a folder is a model or a checkpoint: ranks in it would hide it from all readers."""
    for name in MODELS:
        if os.path.lexists(out / name):
            raise OutputExistsError(str(out), f"it holds {name}, so it is a model or a checkpoint")


@contextlib.contextmanager
def building(out: Path, rank: int) -> Iterator[Path]:
    """Yield a fresh folder that becomes `out/rank-NNNNN` if the block ends well, and is removed if it does not.

    Raises OutputExistsError if the rank is there, also if another attempt finished first; OutputLockedError if another
    attempt runs; OSError.
    """
    _make_dump(out)
    refuse_existing(out, rank)
    make_way(out, rank)
    mine = owner.here(f"the dump of rank {rank}")
    attempt = rank_partial(out, rank, mine.token)
    try:
        begin(attempt, rank, mine)
        yield attempt / rank_name(rank)
        _publish(attempt / rank_name(rank), out / rank_name(rank))
    finally:
        discard(attempt, rank)
    forget_failures(out, rank)


def _make_dump(out: Path) -> None:
    """Make the folder of all ranks, and its name durable.

    Every rank syncs the folder above, not only the one that made it: that one may not have come so far. Where it may
    not be opened, or is another file system, whoever made it has to.
    """
    if os.path.lexists(out) and not out.is_dir():
        raise OutputExistsError(str(out), "it is not a directory")
    durable.make_folder(out)
    above = Path(os.path.realpath(out)).parent
    if os.access(above, os.R_OK) and not os.path.ismount(out):
        durable.sync_folder(above)


def _publish(folder: Path, final: Path) -> None:
    """Give a folder its final name, or raise and leave it where it is. The first attempt to do so has the rank."""
    durable.sync_folder(folder)
    try:
        os.rename(folder, final)
    except OSError as error:
        if os.path.lexists(final):
            raise OutputExistsError(str(final), "another attempt at this rank finished first") from error
        raise
    try:
        durable.sync_folder(final.parent)
    except OSError:
        os.rename(final, folder)  # whether it survives a loss of power is not known
        raise
