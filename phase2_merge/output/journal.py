"""How files of a published output are replaced: each by one rename, all of them by a journal.

New files are prepared in OUT/.shardmerge/next, then the journal names them. Before the journal nothing has changed.
After it each file is old or new, never half, until the journal goes: if that is interrupted, the next `metadata` or
`merge` of OUT finishes it, and commands that only read say so. Shards are never replaced. The whole order stands in
`output/__init__`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shardmerge.common import canonical_json, durable, places
from shardmerge.common.errors import CorruptFileError
from shardmerge.common.places import JOURNAL, NEXT
from shardmerge.common.reference import stays_inside

from . import lock

INTERRUPTED = (
    "a `shardmerge metadata` of {out} was interrupted: some JSON files are old and some new; "
    "run `shardmerge metadata {out}` to finish it"
)


@contextlib.contextmanager
def rewriting(out: Path) -> Iterator[None]:
    """Keep others from rewriting `out` while the block runs. First finishes what an interrupted one began.

    Raises OutputLockedError (another command is rewriting it), CorruptFileError (the journal), OSError.
    """
    with lock.records_held(out):
        _finish(out)
        yield


def interrupted(out: Path) -> tuple[str, ...]:
    """Return a warning, for commands that only read, if some files of `out` are old and some new; else nothing."""
    return (INTERRUPTED.format(out=out),) if (places.records(out) / JOURNAL).is_file() else ()


def replace(out: Path, files: Mapping[str, bytes], gone: Sequence[str]) -> tuple[str, ...]:
    """Give `out` these files, in this order, and delete `gone`. Call it inside `rewriting`.

    Args:
        out: A published output.
        files: Names relative to `out`, and what the files hold. Those that hold it already are not touched.
        gone: Names to delete, where they are there.

    Returns:
        The names that changed, those that were deleted last.

    Raises:
        OSError: Some file could not be written. If the journal was, the next command finishes it.
    """
    assert not any(name.endswith(".safetensors") for name in (*files, *gone))
    changed = [name for name, data in files.items() if _content(out / name) != data]
    deleted = [name for name in gone if (out / name).is_file()]
    if changed or deleted:
        _prepare(out, {name: files[name] for name in changed})
        journal = {"schema_version": 1, "replace": changed, "remove": deleted}
        durable.write_file(places.records(out) / JOURNAL, canonical_json.encode(journal))
        _finish(out)
    return (*changed, *deleted)


def _prepare(out: Path, files: Mapping[str, bytes]) -> None:
    """Put the new files, durable, where they wait for the journal."""
    waiting = places.records(out) / NEXT
    waiting.mkdir()
    for name, data in files.items():
        (waiting / name).parent.mkdir(parents=True, exist_ok=True)
        durable.write_file(waiting / name, data)
    durable.sync_folder(waiting)  # it may have folders of its own


def _finish(out: Path) -> None:
    """Do what a journal says and is not done yet, and forget it. Without one, forget what was prepared.

    The journal goes when every change is durable, and before what was prepared: without it nothing is left to do.
    """
    records = places.records(out)
    journal, waiting = records / JOURNAL, records / NEXT
    if journal.is_file():
        replaced, deleted = _read(journal)
        for name in replaced:
            if (waiting / name).is_file():
                (waiting / name).replace(out / name)
        for name in deleted:
            (out / name).unlink(missing_ok=True)
        durable.sync_folder(out)
        durable.sync_folder(records)
        journal.unlink()
        durable.sync_folder(records)
    shutil.rmtree(waiting, ignore_errors=True)
    unfinished = [path for path in records.iterdir() if places.is_temporary_of(path.name, journal)]
    for stale in (places.lock(out), *unfinished):
        stale.unlink(missing_ok=True)


def _read(journal: Path) -> tuple[list[str], list[str]]:
    """Return the names of the files that are replaced, and of those that are deleted. Raises CorruptFileError."""
    try:
        content = canonical_json.read_object(journal)
        return _names(content["replace"]), _names(content["remove"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(str(journal), str(error)) from None


def _names(listed: Any) -> list[str]:
    """Return the names that a journal lists. Raises ValueError for one that is not of a file that is rewritten."""
    if not isinstance(listed, list):
        raise ValueError(f"expected a list of names, got {listed!r:.60}")
    for name in listed:
        if not isinstance(name, str) or not stays_inside(name) or name.endswith(".safetensors"):
            raise ValueError(f"{name!r:.60} is not a file that is rewritten")
    return listed


def _content(path: Path) -> bytes | None:
    """Return what a file holds, None if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
