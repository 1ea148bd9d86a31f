"""Lets one process read the description of a large checkpoint, and all others what it wrote down of it.

It is read in a child, whose memory goes when it ends, and the file lies in the dump. Who comes meanwhile waits for the
lock, which the kernel takes from a process that ends. Where locks hold on one host only, one process of each host
reads; where there are none, each does. Must not know what is read.
"""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from shardmerge.common import durable, places
from shardmerge.common.architectures import Blueprint
from shardmerge.common.command.termination import TerminatedError

from ..checkpoint import contents_file
from ..checkpoint.contents import Contents
from ..checkpoint.plan import Options, ReadContents, read_contents
from ..torch_dist.folder import Folder

LARGE_BYTES = 16 << 20  # of a description with some hundred thousand chunks
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def reading_once(out: Path, large_bytes: int = LARGE_BYTES) -> ReadContents:
    """Return a function that reads what a checkpoint holds, once for all who write its dump.

    Args:
        out: The dump.
        large_bytes: Descriptions that are smaller are read by everybody.

    Returns:
        The function, for `plan_of`.
    """
    return partial(_read, out, large_bytes)


def forget(out: Path) -> None:
    """Remove what was written down of a description, when all shares are complete. Raises OSError."""
    for path in list(out.iterdir()) if out.is_dir() else ():
        if places.is_of_contents(path.name):
            path.unlink(missing_ok=True)


def _read(out: Path, large_bytes: int, folder: Folder, bound: Blueprint, options: Options) -> Contents:
    if folder.metadata.num_bytes < large_bytes or folder.has_modelopt_state:
        return read_contents(folder, bound, options)
    durable.make_folder(out)
    identity = contents_file.identity_of(
        folder, bound, drop_mtp=options.drop_mtp, drop_vision=options.drop_vision
    )
    path = places.contents(out, identity)
    with _alone(places.contents_lock(out)):
        found = contents_file.read(path, out, identity)
        if found is None:
            _write_in_child(path, identity, folder, bound, options)
            found = contents_file.read(path, out, identity)
    return found if found is not None else read_contents(folder, bound, options)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock while the block runs, where there are locks. Raises OSError."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with durable.naming(path):
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
        yield
    finally:
        os.close(file)


def _write_in_child(path: Path, identity: str, folder: Folder, bound: Blueprint, options: Options) -> None:
    """Read what a checkpoint holds in a process of its own, and write it down unless it has quantizers.

    Raises what reading raised. A child that was killed has written nothing.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_be_the_child, args=(theirs, path, identity, folder, bound, options))
    child.start()
    theirs.close()
    try:
        with suppress(EOFError):  # it was killed
            if isinstance(error := ours.recv(), Exception):
                raise error
    except BaseException:
        child.terminate()
        raise
    finally:
        child.join()
        ours.close()


def _be_the_child(
    answer: Connection, path: Path, identity: str, folder: Folder, bound: Blueprint, options: Options
) -> None:
    with suppress(KeyboardInterrupt, TerminatedError):  # the parent tells
        try:
            contents = read_contents(folder, bound, options)
            if contents.quantizers is None:
                contents_file.write(path, contents, identity)
            answer.send(None)
        except Exception as error:
            answer.send(error)
