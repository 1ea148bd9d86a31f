"""The locks of an output: on OUT.partial while a merge writes it, on the records of OUT while they change.

Both are flock: they end with the process that holds them. The first has its holder's name in it, because a lock may
not reach across hosts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from shardmerge.common import places
from shardmerge.common.command.talk import say
from shardmerge.common.errors import OutputExistsError, OutputLockedError

NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}  # a file system that cannot lock


@contextlib.contextmanager
def held(partial: Path, talk: TextIO | None, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of OUT.partial, which is made if need be, while the block runs.

    What a dead process on this host left is taken over.

    Args:
        partial: OUT.partial, which may not be there yet.
        talk: Where to say what was taken over.
        shared: For one of several parts of a merge, which hold it together.

    Raises:
        OutputExistsError: There is a folder of this name that no merge of shardmerge made.
        OutputLockedError: Another merge holds it, or its holder is on a host that this lock may not reach.
        OSError: It cannot be made.
    """
    if os.path.lexists(partial) and not _ours(partial):
        raise OutputExistsError(str(partial), "it exists, and no merge of shardmerge made it")
    places.lock(partial).parent.mkdir(parents=True, exist_ok=True)
    file = os.open(places.lock(partial), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _acquire(file, partial, talk, shared=shared)
        yield
    finally:
        os.close(file)


def _acquire(file: int, partial: Path, talk: TextIO | None, *, shared: bool) -> None:
    """Lock an open file, and say in it who holds it. Raises OutputLockedError."""
    holder = os.pread(file, 4096, 0).decode(errors="replace").strip()
    reaches = holder.endswith(f" on {socket.gethostname()}")  # a lock may not reach across hosts
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputLockedError(str(partial), holder or "another process (a part of it, perhaps)") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        reaches = False
    if holder and not reaches:
        raise OutputLockedError(str(partial), f"{holder} (if it is dead, remove the folder)")
    if holder:
        say(talk, f"{partial} was left by {holder}, which is dead: finished shards are kept.")
    os.ftruncate(file, 0)
    if not shared:  # several parts hold it together, and none is the holder
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _ours(partial: Path) -> bool:
    """Whether it holds records, or nothing yet: a merge may be killed before it has written anything."""
    return partial.is_dir() and (places.records(partial).is_dir() or not any(partial.iterdir()))


@contextlib.contextmanager
def records_held(out: Path) -> Iterator[None]:
    """Lock the folder of records of a published output, which no command ever replaces, while the block runs.

    Raises OutputLockedError, OSError.
    """
    folder = os.open(places.records(out), os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock_folder(folder, out)
        yield
    finally:
        os.close(folder)


def _lock_folder(folder: int, out: Path) -> None:
    """Lock an open folder, where its file system can. Raises OutputLockedError, OSError."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputLockedError(str(out), "another shardmerge metadata") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
