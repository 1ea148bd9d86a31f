"""How files of a published output are replaced: all at once where the file system can exchange two folders.

Elsewhere each at once; all of them or, after a crash, all by the next command: new files are written beside the
records, then a journal that names them. The journal is the mark: before it nothing has changed, after it every command
that opens the output first moves what is left to move. Shards are never replaced.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shardmerge.common import canonical_json, durable, places
from shardmerge.common.errors import CorruptFileError, OutputLockedError
from shardmerge.common.places import JOURNAL, NEXT, RECORDS
from shardmerge.common.reference import stays_inside

from . import exchange
from .publish import NO_LOCKS


@contextlib.contextmanager
def rewriting(out: Path) -> Iterator[None]:
    """Keep others from rewriting `out`, after finishing what one that crashed began. Raises OutputLockedError."""
    folder = os.open(out / RECORDS, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(folder, out)
        _finish(out)
        yield
    finally:
        os.close(folder)


def finish(out: Path) -> None:
    """Finish a rewriting that crashed, if there is one. Raises OutputLockedError while one is going on."""
    if (out / RECORDS / JOURNAL).is_file():
        with rewriting(out):
            pass


def replace(out: Path, files: Mapping[str, bytes], gone: Sequence[str]) -> tuple[str, ...]:
    """Give `out` these files, in this order, and remove `gone`; the names that changed. Call it inside `rewriting`."""
    assert not any(name.endswith(".safetensors") for name in (*files, *gone))
    changed = [name for name, data in files.items() if _content(out / name) != data]
    removed = [name for name in gone if (out / name).is_file()]
    if not changed and not removed:
        return ()
    if not exchange.replaced(out, {name: files[name] for name in changed}, removed):
        _replace_each(out, {name: files[name] for name in changed}, removed)
    return (*changed, *removed)


def _replace_each(out: Path, files: Mapping[str, bytes], removed: Sequence[str]) -> None:
    """By a journal."""
    stage = out / RECORDS / NEXT
    shutil.rmtree(stage, ignore_errors=True)
    for name, data in files.items():
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        durable.write_file(stage / name, data)
    journal = {"schema_version": 1, "replace": list(files), "remove": list(removed)}
    durable.write_file(out / RECORDS / JOURNAL, canonical_json.encode(journal))
    _finish(out)


def _finish(out: Path) -> None:
    """Move what the journal names and is not moved yet; without a journal, forget what was prepared."""
    exchange.forget(out)
    journal, stage = out / RECORDS / JOURNAL, out / RECORDS / NEXT
    if journal.is_file():
        try:
            told = canonical_json.read_object(journal)
            replaced, removed = _names(told["replace"]), _names(told["remove"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(str(journal), str(error)) from None
        for name in replaced:
            if (stage / name).is_file():
                (stage / name).replace(out / name)
        for name in removed:
            (out / name).unlink(missing_ok=True)
        durable.sync_folder(out)
        durable.sync_folder(out / RECORDS)
    shutil.rmtree(stage, ignore_errors=True)
    for left in (journal, places.lock(out), *(out / RECORDS).glob(f".{JOURNAL}.*.tmp")):
        left.unlink(missing_ok=True)


def _names(told: Any) -> list[str]:
    """Files of ours in the output. Raises ValueError for anything else: what a journal names is replaced or removed."""
    if not isinstance(told, list):
        raise ValueError(f"expected a list of names, got {told!r:.60}")
    for name in told:
        if not isinstance(name, str) or not stays_inside(name) or name.endswith(".safetensors"):
            raise ValueError(f"{name!r:.60} is not a file that is rewritten")
    return told


def _lock(folder: int, out: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputLockedError(str(out), "another shardmerge metadata") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    if not os.path.samestat(os.fstat(folder), os.stat(out / RECORDS)):  # it was exchanged while we asked
        raise OutputLockedError(str(out), "another shardmerge metadata")


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
