"""How an output appears: built in OUT.partial beside it under a lock, made durable, renamed once.

Whoever looks sees no OUT or a finished one. What a crash leaves, and who finishes it, stands in `output/__init__`. Must
not know what an output holds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from shardmerge.common import canonical_json, durable, places
from shardmerge.common.command.talk import say
from shardmerge.common.errors import BadInputError, OutputExistsError
from shardmerge.common.processes.owner import Owner

from . import lock
from .lock import Lock

APPEARED = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}  # what renaming a folder says if the name is taken
STAYS = "Nothing was published. What was written stays in {} for the next attempt."
PUBLISHED = "{} is published and whole: the command ended after that."


def is_taken(out: Path) -> bool:
    """Whether there is anything at `out` but an empty folder, whose place an output can take.

    Raises OutputExistsError for an empty folder of which that is not so: nothing can be renamed to a mount point; and
    BadInputError for a name that leaves no room for that of OUT.partial.
    """
    refuse_long_name(out)
    if not os.path.lexists(out):
        return False
    if out.is_symlink() or not out.is_dir() or any(out.iterdir()):
        return True
    if out.is_mount():
        raise OutputExistsError(str(out), "it is a mount point, and a finished output is renamed to its name")
    return False


def refuse_long_name(out: Path) -> None:
    """Raise BadInputError if OUT.partial would be too long for a name."""
    partial = places.partial(out)
    if len(os.fsencode(partial.name)) > places.NAME_BYTES:
        raise BadInputError(f"{out.name} is too long for a name", f"{partial.name} must fit into one, too.")


def refuse_existing(out: Path) -> None:
    """Raise OutputExistsError if `out` is taken."""
    if is_taken(out):
        raise OutputExistsError(str(out))


def refuse_foreign(partial: Path) -> None:
    """Raise OutputExistsError if OUT.partial is there, and is not what a merge makes."""
    if os.path.lexists(partial) and not _ours(partial):
        raise OutputExistsError(str(partial), "it exists, and no merge of shardmerge made it")


@contextlib.contextmanager
def building(out: Path, me: Owner, talk: TextIO | None, *, break_lock: bool = False) -> Iterator[Lock]:
    """Hold OUT.partial, which is made if need be. It stays, however the block ends, unless it was published.

    Args:
        out: Must not exist, or be an empty folder.
        me: Who builds: a merge, or one of several parts, which share it.
        talk: Where to say what another merge left, and what stays.
        break_lock: Take the lock from owners on other hosts.

    Returns:
        A context manager whose value is the lock of OUT.partial, in which the folders of records are.

    Raises:
        OutputExistsError: There is something at `out`, or an OUT.partial that is not ours.
        OutputLockedError: Another merge is writing it.
        OSError: It cannot be made.
    """
    partial = places.partial(out)
    with (
        _not_published(out, partial),
        lock.held(partial, me, talk, prepare=lambda: _make(partial, out), break_lock=break_lock) as held,
    ):
        refuse_existing(out)  # another merge may have published it while we asked for the lock
        refuse_published(partial)
        if os.path.lexists(places.commit(partial)):
            _take_back(partial)
        held.forget_ended()
        places.receipts(partial).mkdir(exist_ok=True)
        lock.require_folder(places.receipts(partial))
        try:
            yield held
        except BaseException:
            if partial.exists():
                say(talk, STAYS.format(partial))
            elif _is_published(held, out):
                say(talk, PUBLISHED.format(out))
            raise


@contextlib.contextmanager
def _not_published(out: Path, partial: Path) -> Iterator[None]:
    """Remove an OUT.partial that was made while another merge published OUT, and that holds nothing but a lock."""
    try:
        yield
    except OutputExistsError:
        if is_taken(out) and not places.receipts(partial).exists():
            with contextlib.suppress(OSError):  # another process uses it, or removed it
                places.owners(partial).rmdir()
                places.lock(partial).unlink()
                places.records(partial).rmdir()
                partial.rmdir()
        raise


def commit(held: Lock, out: Path, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Give OUT.partial its name. Everything in it is proven, and whoever calls it holds its lock.

    Args:
        held: The lock of OUT.partial.
        out: The name.
        facts: What the commit record says.

    Returns:
        Warnings about what failed when OUT had its name already: it is published all the same.

    Raises:
        LockLostError: The lock was taken away.
        OutputExistsError: There is something at `out`.
        OSError: Making it durable or renaming it fails. OUT.partial is then as it was.
    """
    partial = held.folder
    for folder in (places.receipts(partial), places.records(partial), partial):
        durable.sync_folder(folder)
    held.confirm()
    refuse_existing(out)
    try:
        durable.write_file(places.renaming(partial), b"")
        durable.write_file(places.commit(partial), canonical_json.encode(facts))
        _belong_like(out, partial)
        partial.rename(out)
    except BaseException as error:
        _take_back(partial)
        if isinstance(error, OSError) and error.errno in APPEARED:
            raise OutputExistsError(str(out), "it appeared while the merge ran") from error
        raise
    return tuple(_after_the_rename(out))


def _belong_like(out: Path, partial: Path) -> None:
    """Give OUT.partial owner and mode of the empty folder whose place it takes, if somebody made one for it."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        there = os.lstat(out)
        os.chown(partial, there.st_uid, there.st_gid)
        os.chmod(partial, stat.S_IMODE(there.st_mode))


def _after_the_rename(out: Path) -> Iterator[str]:
    """Do what is left when OUT has its name. Yields a warning for what fails."""
    try:
        durable.sync_folder(out.parent)
    except OSError as error:  # what stays marks it as not published, in case the name is lost
        yield f"{out} is published, but a power loss may still take away its name: {error}"
        return
    try:
        places.renaming(out).unlink(missing_ok=True)
        for record in places.receipts(out).glob(places.PART_RECORDS):
            record.unlink()
    except OSError as error:
        yield f"{out} is published, but not all records of its merge could be removed: {error}"


def _make(partial: Path, out: Path) -> None:
    """Make OUT.partial and its folder of records. Raises BadInputError, OutputExistsError, OSError."""
    refuse_existing(out)
    refuse_foreign(partial)
    durable.make_folder(partial.parent)
    partial.mkdir(exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # it was renamed just now; `lock` then calls this again
        places.records(partial).mkdir(exist_ok=True)


def _ours(partial: Path) -> bool:
    """Whether it holds records, or nothing yet: a merge may be killed before it has written anything."""
    if partial.is_symlink() or not partial.is_dir():
        return False
    return places.records(partial).is_dir() or not any(partial.iterdir())


def refuse_published(partial: Path) -> None:
    """Raise OutputExistsError for a published checkpoint that is called OUT.partial.

    One whose merge was killed between commit record and rename is not published: its mark is still there, which a
    published one keeps only if its merge was killed right after the rename, and until it is written again.
    """
    if os.path.lexists(places.commit(partial)) and not os.path.lexists(places.renaming(partial)):
        raise OutputExistsError(str(partial), "it is a checkpoint that was published, not an unfinished one")


def _take_back(partial: Path) -> None:
    """Remove the commit record, and then the mark that it was not published yet."""
    places.commit(partial).unlink(missing_ok=True)
    if places.renaming(partial).exists():
        durable.sync_folder(places.records(partial))
        places.renaming(partial).unlink()


def _is_published(held: Lock, out: Path) -> bool:
    """Whether the folder that was locked is called `out` now."""
    try:
        return os.path.samestat(os.lstat(places.owners(out)), os.fstat(held.records))
    except FileNotFoundError:
        return False
