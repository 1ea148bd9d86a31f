"""Which file lies at a path, and since when it is as it is: enough to see that somebody replaced or changed it.

Must not know what a change means.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from shardmerge.common.errors import CorruptFileError


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file, its size, and the times in nanoseconds when its bytes and its inode changed. The same on all hosts."""

    inode: int
    num_bytes: int
    modified_ns: int
    changed_ns: int


def stamp(path: Path) -> Stamp:
    """Return the stamp of a regular file. Raises CorruptFileError for anything else, FileNotFoundError, OSError."""
    return _stamp(os.lstat(path), path)


def stamp_of(file: int, path: Path) -> Stamp:
    """Return the stamp of an open file, which a network file system asks its server for. Raises as `stamp` does."""
    return _stamp(os.fstat(file), path)


def _stamp(seen: os.stat_result, path: Path) -> Stamp:
    if not stat.S_ISREG(seen.st_mode):
        raise CorruptFileError(str(path), "it is not a regular file")
    return Stamp(seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
