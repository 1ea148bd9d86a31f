"""The lock of an output: one for each, whatever its folder is called at the moment, held by everyone who writes there.

It has two halves. `.shardmerge/lock` is locked with flock, which ends with its process, but which some file systems do
not have and others keep on one host. Beside it every writer leaves a record of itself (`common/processes/owner`), which
all hosts see, but which outlives its process. A writer first writes its own record and then reads those of others, so
of two that come at once at most one goes on. Before it publishes or removes something, it looks whether its own is
still there: `--break-lock` takes it away.

The lock file holds nothing, is never removed, and goes with its folder when that is renamed. Therefore whoever has
locked it looks whether it is still the one at the path, and otherwise begins anew. Must not know what is written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from shardmerge.common import canonical_json, durable, places
from shardmerge.common.command.talk import say
from shardmerge.common.errors import CorruptFileError, LockLostError, OutputLockedError
from shardmerge.common.processes import owner
from shardmerge.common.processes.owner import Owner, State

NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}  # a file system that cannot lock
SOMEBODY = "another process"
AWAY = "Move it away, and run the same command again."


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock that is held.

    Attributes:
        folder: OUT.partial or OUT, as it was called when it was locked.
        owner: This process.
        records: The folder of all owners' records, open: it stays the same when its path changes.
        ended: The names of records in it whose owners have ended without removing them.
    """

    folder: Path
    owner: Owner
    records: int
    ended: tuple[str, ...]

    def confirm(self) -> None:
        """Look whether our record is still there. Call it before anything is published or removed.

        Raises LockLostError.
        """
        try:
            os.close(os.open(_name(self.owner), os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self.records))
        except FileNotFoundError:
            raise LockLostError(str(self.folder)) from None

    def forget_ended(self) -> None:
        """Remove the records of owners that have ended. Call it once what they left unfinished was looked after."""
        for name in self.ended:
            with contextlib.suppress(FileNotFoundError):  # another part does the same
                _forget(self.folder, self.records, name)


@contextlib.contextmanager
def held(
    folder: Path,
    me: Owner,
    talk: TextIO | None,
    *,
    prepare: Callable[[], None],
    break_lock: bool = False,
) -> Iterator[Lock]:
    """Hold the lock of an output while the block runs.

    Args:
        folder: OUT.partial or OUT.
        me: Who wants it. Owners of one `subject` share it, unless they have the same task.
        talk: Where to say what others left.
        prepare: Makes the folder, or refuses it. It is called again when the folder was renamed meanwhile.
        break_lock: Take it from owners on other hosts, of which nobody can say from here whether they still run.

    Returns:
        A context manager whose value is the lock.

    Raises:
        OutputLockedError: Another command is writing there.
        CorruptFileError: Something else is in place of the lock or of our records.
        OSError: It cannot be made. What `prepare` raises.
    """
    file, flock_works = _locked(folder, me, prepare)
    try:
        with _recorded(folder, me) as records:
            yield Lock(folder, me, records, _ended(folder, me, records, talk, flock_works, break_lock))
    finally:
        if flock_works:
            # A child of a caller's executor may have inherited the open file, and closing ours would not unlock that.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)


def _locked(folder: Path, me: Owner, prepare: Callable[[], None]) -> tuple[int, bool]:
    """Open the lock file and lock it. Returns it, and whether the file system can lock."""
    while True:
        prepare()
        try:
            file = _opened(folder)
        except FileNotFoundError:  # the folder was renamed just now
            continue
        try:
            flock_works = _flocked(file, folder, me)
            if _is_at(places.lock(folder), file):
                return file, flock_works
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _opened(folder: Path) -> int:
    """Open the lock file, which is made if need be. Raises CorruptFileError if it is anything but a regular file."""
    path = places.lock(folder)
    require_folder(places.records(folder))
    how = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        try:
            file = os.open(path, how | os.O_CREAT | os.O_EXCL, 0o666)
            _belong_like_folder(file, path)
        except FileExistsError:
            file = os.open(path, how)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise CorruptFileError(str(path), "it is not a regular file, which a lock is", do=AWAY) from None
        raise
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise CorruptFileError(str(path), "it is not a regular file, which a lock is", do=AWAY)
    return file


def make_folder(path: Path) -> None:
    """Make a folder of our records, for whoever owns the folder that it is in. Raises FileExistsError, OSError."""
    path.mkdir()
    made = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _belong_like_folder(made, path)
    finally:
        os.close(made)


def _belong_like_folder(made: int, path: Path) -> None:
    """Give something that was made just now the owner of its folder: root may work for others, who come again."""
    if os.geteuid() == 0:
        above = os.lstat(path.parent)
        with contextlib.suppress(PermissionError):  # a file server may not let root be root
            os.fchown(made, above.st_uid, above.st_gid)


def require_folder(path: Path) -> None:
    """Raise CorruptFileError if there is anything but a folder, such as a link that leads to one elsewhere."""
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise CorruptFileError(str(path), "it is not a folder of its own", do=AWAY)


def _flocked(file: int, folder: Path, me: Owner) -> bool:
    """Lock an open file. Returns whether its file system can do that. Raises OutputLockedError, OSError."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if me.subject else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputLockedError(str(folder), _holder(folder, me)) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def _is_at(path: Path, file: int) -> bool:
    """Whether an open file is the one at `path`."""
    try:
        there, opened = os.lstat(path), os.fstat(file)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)


def _holder(folder: Path, me: Owner) -> str:
    """Return in words who holds the lock, as far as records say it."""
    others = [other for other in _others(folder) if other and _excludes(me, other)]
    running = [other for other in others if other.state() is not State.ENDED]
    return str((running or others)[0]) if others else SOMEBODY


@contextlib.contextmanager
def _recorded(folder: Path, me: Owner) -> Iterator[int]:
    """Leave the record of an owner while the block runs. The value is the open folder that it lies in."""
    path = places.owners(folder)
    with contextlib.suppress(FileExistsError):
        make_folder(path)
    require_folder(path)
    records = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        durable.write_file(places.owner_record(folder, me.token), canonical_json.encode(me.as_json()))
        try:
            yield records
        finally:
            # The record may have been taken away. If it cannot be removed, others will see that its owner has ended.
            with contextlib.suppress(OSError):
                os.unlink(_name(me), dir_fd=records)
    finally:
        os.close(records)


def _ended(
    folder: Path, me: Owner, records: int, talk: TextIO | None, flock_works: bool, break_lock: bool
) -> tuple[str, ...]:
    """Judge the records of all others. Returns the names of those that can go. Raises OutputLockedError."""
    # Who comes just now may be writing a record under a temporary name, unless flock gave the whole lock to us.
    others_may_come = bool(me.subject) or not flock_works
    ended = []
    for name in sorted(os.listdir(records)):
        path = places.owners(folder) / name
        if name == _name(me) or (others_may_come and places.TEMPORARY.fullmatch(name)):
            continue
        other = owner.read(path, folder)
        if other is None:  # no owner that runs has such a record: it is durable before it gets its name
            ended.append(name)
            continue
        state = _state(other, me, flock_works=flock_works)
        if break_lock and state is State.UNKNOWN and _excludes(me, other):
            _forget(folder, records, name)  # at once: its owner, if it still runs, must see that it is gone
        elif state is State.ENDED:
            ended.append(name)
        elif _excludes(me, other):
            raise OutputLockedError(str(folder), str(other), state is State.UNKNOWN)
        else:
            continue
        say(talk, f"{folder} was left by {other}: finished shards are kept.")
    return tuple(ended)


def _forget(folder: Path, records: int, name: str) -> None:
    """Remove a record from the open folder of all records. Raises OSError, which names the whole path."""
    try:
        os.unlink(name, dir_fd=records)
    except OSError as error:
        error.filename = str(places.owners(folder) / name)
        raise


def _state(other: Owner, me: Owner, *, flock_works: bool) -> State:
    """Return whether an owner still runs. If we have the whole lock, nobody else under this kernel has a part of it."""
    state = other.state()
    if state is State.UNKNOWN and flock_works and not me.subject and other.on_this_kernel():
        return State.ENDED
    return state


def _excludes(me: Owner, other: Owner) -> bool:
    """Whether two owners may not write at the same time."""
    return not me.subject or me.subject != other.subject or me.task == other.task


def _others(folder: Path) -> list[Owner | None]:
    """Return what all records say. They may go while they are read."""
    try:
        names = sorted(os.listdir(places.owners(folder)))
    except OSError:  # whoever holds the lock has not made it yet
        return []
    return [owner.read(places.owners(folder) / name, folder) for name in names]


def _name(of: Owner) -> str:
    return f"{of.token}.json"
