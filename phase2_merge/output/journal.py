"""How files of a published output are replaced: each by one rename, all of them by a journal.

New files are prepared in OUT/.shardmerge/next, then the journal names them. Before the journal nothing has changed.
After it each file is old or new, never half, until the journal goes: if that is interrupted, the next `metadata` or
`merge` of OUT finishes it, and commands that only read say so. Shards are never replaced. The whole order stands in
`output/__init__`. Must not know what the files say.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TextIO

from shardmerge.common import canonical_json, durable, places, plausible_sizes, regular_files
from shardmerge.common.command.talk import say
from shardmerge.common.errors import CorruptFileError, LockLostError
from shardmerge.common.errors.output import COPY_OUTPUT
from shardmerge.common.places import JOURNAL, NEXT
from shardmerge.common.processes.owner import Owner

from . import lock
from .lock import Lock

REPORT = f"{places.RECORDS}/{places.REPORT}"
INTERRUPTED = (
    "a `shardmerge metadata` of {out} was interrupted: some JSON files are old and some new; "
    "run `shardmerge metadata {out}` to finish it"
)


@contextlib.contextmanager
def rewriting(
    out: Path, me: Owner, talk: TextIO | None, prepare: Callable[[], None], *, break_lock: bool = False
) -> Iterator[Lock]:
    """Keep others from rewriting `out` while the block runs. First finishes what an interrupted one began.

    Args:
        out: A published output.
        me: Who rewrites it.
        talk: Where to say what others left.
        prepare: Refuses `out` if it is not an output.
        break_lock: Take the lock from owners on other hosts.

    Returns:
        A context manager whose value is the lock of `out`.

    Raises:
        OutputLockedError: Another command is writing it.
        CorruptFileError: The journal, or something else is in place of our records.
        OSError: Reading or writing fails.
    """
    with lock.held(out, me, talk, prepare=prepare, break_lock=break_lock) as held:
        try:
            _finish(held)
            held.forget_ended()
            yield held
        except BaseException:
            for warning in interrupted(out):
                say(talk, f"Warning: {warning}")
            raise


def interrupted(out: Path) -> tuple[str, ...]:
    """Return a warning, for commands that only read, if some files of `out` are old and some new; else nothing."""
    return (INTERRUPTED.format(out=out),) if (places.records(out) / JOURNAL).is_file() else ()


def replace(
    held: Lock, files: Mapping[str, bytes], gone: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give an output these files, in this order, and delete `gone`. Call it inside `rewriting`.

    Args:
        held: The lock of the output.
        files: Names relative to the output, and what the files hold. Those that hold it already are not touched.
        gone: Names to delete, where they are there.

    Returns:
        The names of the files that changed or are new, and of those that were deleted.

    Raises:
        LockLostError: The lock was taken away.
        OSError: Some file could not be written. If the journal was, the next command finishes it.
    """
    out = held.folder
    changed, deleted = changes(out, files, gone)
    if changed or deleted:
        _prepare(out, {name: files[name] for name in changed})
        journal = {"schema_version": 1, "replace": changed, "remove": deleted}
        held.confirm()
        durable.write_file(places.records(out) / JOURNAL, canonical_json.encode(journal))
        _finish(held)
    return tuple(changed), tuple(deleted)


def changes(out: Path, files: Mapping[str, bytes], gone: Sequence[str]) -> tuple[list[str], list[str]]:
    """Find what `replace` would change.

    Args:
        out: The output.
        files: As for `replace`.
        gone: Likewise.

    Returns:
        The names of the files that do not hold their bytes yet, and of those that are there to be deleted.

    Raises:
        CorruptFileError: Something else is in place of a file.
        OSError: A file cannot be read.
    """
    assert all(map(_is_rewritten, (*files, *gone)))
    changed = [name for name, data in files.items() if not _holds(out / name, data, out)]
    return changed, [name for name in gone if (out / name).is_file()]


def _prepare(out: Path, files: Mapping[str, bytes]) -> None:
    """Put the new files, durable, where they wait for the journal."""
    waiting = places.records(out) / NEXT
    lock.make_folder(waiting)  # fails where something is left that could not be removed
    for name, data in files.items():
        if not (waiting / name).parent.exists():
            lock.make_folder((waiting / name).parent)
        durable.write_file(waiting / name, data)
        _belong_like(waiting / name, out / name, out)
    durable.sync_folder(waiting)  # it may have a folder of its own
    durable.sync_folder(waiting.parent)


def _belong_like(new: Path, old: Path, out: Path) -> None:
    """Give a new file mode and owner of the one that it replaces, or the owner of `out`: root may work for others."""
    before = os.lstat(old) if old.is_file() and not old.is_symlink() else None
    like = before or os.lstat(out)
    if os.geteuid() == 0:
        with contextlib.suppress(PermissionError):  # a file server may take root for nobody
            os.chown(new, like.st_uid, like.st_gid)
    if before:
        os.chmod(new, stat.S_IMODE(before.st_mode))


def _finish(held: Lock) -> None:
    """Do what a journal says and is not done yet, and forget it. Without one, forget what was prepared.

    The journal goes when every change is durable, and before what was prepared: without it nothing is left to do.
    """
    out = held.folder
    records = places.records(out)
    journal, waiting = records / JOURNAL, records / NEXT
    if regular_files.exists(journal, out):
        replaced, deleted = _read(journal, out)
        if os.path.lexists(waiting):
            lock.require_folder(waiting)
        held.confirm()
        folders = {(out / name).parent for name in (*replaced, *deleted)} - {out, records}
        for folder in folders:
            with contextlib.suppress(FileExistsError):
                lock.make_folder(folder)
            lock.require_folder(folder)
        for name in replaced:
            if regular_files.exists(waiting / name, waiting):
                (waiting / name).replace(out / name)
        for name in deleted:
            (out / name).unlink(missing_ok=True)
        for folder in (*sorted(folders), out):
            durable.sync_folder(folder)
        durable.sync_folder(records)
        journal.unlink()
        with contextlib.suppress(OSError):  # if it is there after a power loss, what it says is done again
            durable.sync_folder(records)
    with contextlib.suppress(OSError, LockLostError):  # everything is done; the next command forgets it
        held.confirm()
        _forget_leftovers(out, waiting)


def _forget_leftovers(out: Path, waiting: Path) -> None:
    """Remove what was prepared for a journal, temporary files, and what a merge left that was killed at its end."""
    if waiting.is_dir() and not waiting.is_symlink():
        shutil.rmtree(waiting)
    for folder, stale in (
        (places.records(out), lambda name: _is_temporary(name) or name == places.RENAMING),
        (places.receipts(out), lambda name: _is_temporary(name) or fnmatchcase(name, places.PART_RECORDS)),
    ):
        if folder.is_dir() and not folder.is_symlink():
            for path in folder.iterdir():
                if stale(path.name) and (path.is_symlink() or path.is_file()):
                    path.unlink()


def _is_temporary(name: str) -> bool:
    return places.TEMPORARY.fullmatch(name) is not None


def _read(journal: Path, out: Path) -> tuple[list[str], list[str]]:
    """Return the names of the files that are replaced, and of those that are deleted. Raises CorruptFileError."""
    try:
        content = canonical_json.decode(
            regular_files.read(journal, out, plausible_sizes.JOURNAL.limit(journal))
        )
        return _names(content["replace"]), _names(content["remove"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(str(journal), str(error), do=COPY_OUTPUT) from None


def _names(listed: Any) -> list[str]:
    """Return the names that a journal lists. Raises ValueError for one that is not of a file that is rewritten."""
    if not isinstance(listed, list):
        raise ValueError(f"expected a list of names, got {listed!r:.60}")
    for name in listed:
        if not isinstance(name, str) or not _is_rewritten(name):
            raise ValueError(f"{name!r:.60} is not a file that is rewritten")
    return listed


def _is_rewritten(name: str) -> bool:
    """Whether `metadata` ever writes or deletes a file of this name: JSON files, the report, and sidecars."""
    return name in places.JSON_FILES or name == REPORT or places.is_sidecar(name)


def _holds(path: Path, data: bytes, out: Path) -> bool:
    """Whether a file of `out` holds these bytes. Raises CorruptFileError for anything but a regular file."""
    if not regular_files.exists(path, out) or path.is_symlink() or path.stat().st_size != len(data):
        return False
    return regular_files.read(path, out, len(data)) == data
