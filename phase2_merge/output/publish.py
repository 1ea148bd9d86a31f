"""How an output appears: built in OUT.partial beside it under a lock, made durable, renamed once.

Whoever looks sees no OUT or a finished one. What a crash leaves, and who finishes it, stands in `output/__init__`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from shardmerge.common import durable, places
from shardmerge.common.command.talk import say
from shardmerge.common.errors import OutputExistsError

from . import lock

REMOVALS = 20


def refuse_existing(out: Path) -> None:
    """Raise OutputExistsError if there is anything at `out`."""
    if os.path.lexists(out):
        raise OutputExistsError(str(out))


@contextlib.contextmanager
def publishing(out: Path, talk: TextIO | None, *, keep: bool = False) -> Iterator[Path]:
    """Make a folder that becomes `out` if the block ends well.

    Args:
        out: Must not exist.
        talk: Where to say what another merge left, and what was removed.
        keep: Leave the folder if the block raises. Otherwise it is removed then.

    Returns:
        A context manager whose value is OUT.partial, with the folders of records in it.

    Raises:
        OutputExistsError: There is something at `out`, or an OUT.partial that is not ours.
        OutputLockedError: Another merge is writing it.
        OSError: Making it durable or renaming it fails.
    """
    refuse_existing(out)
    partial = places.partial(out)
    with lock.held(partial, talk):
        try:
            refuse_existing(out)  # another merge may have published it while we asked for the lock
            places.receipts(partial).mkdir(parents=True, exist_ok=True)
            yield partial
            _commit(partial, out)
        except BaseException:
            if not keep:
                _remove(partial)
                say(talk, f"Nothing was published: {partial} was removed.")
            raise


@contextlib.contextmanager
def sharing(out: Path, talk: TextIO | None) -> Iterator[Path]:
    """Open OUT.partial for one of several parts, which write to it at the same time. It stays, however the block ends.

    Raises OutputExistsError, OutputLockedError (a merge that is not in parts is writing it), OSError.
    """
    partial = places.partial(out)
    with lock.held(partial, talk, shared=True):
        refuse_existing(out)  # the other parts may have been published while we asked for the lock
        places.receipts(partial).mkdir(parents=True, exist_ok=True)
        yield partial


def _remove(partial: Path) -> None:
    """Remove OUT.partial, if need be several times.

    A task that was cancelled may still run on somebody else's executor, and put a last file there.
    """
    for tries_left in reversed(range(REMOVALS)):
        try:
            shutil.rmtree(partial)
        except OSError as error:
            if not os.path.lexists(partial):  # another merge has just published it
                return
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or not tries_left:
                raise
            time.sleep(0.1)
        else:
            return


def _commit(partial: Path, out: Path) -> None:
    """Give OUT.partial its name, and then remove the lock: a partial output without a lock would be a stranger's."""
    for folder in (places.receipts(partial), places.records(partial), partial):
        durable.sync_folder(folder)
    refuse_existing(out)
    try:
        partial.rename(out)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise OutputExistsError(str(out), "it appeared while the merge ran") from error
        raise
    durable.sync_folder(out.parent)
    places.lock(out).unlink()
