"""Gives files their final names: write under a temporary name beside it, fsync, rename, fsync the folder.

A reader therefore sees a file whole or not at all, also after a power cut. A failed fsync is never retried
(the kernel may have dropped the pages): the caller writes the file again.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import file_systems, places

# of one call. Each costs a turn of the interpreter; but from 2 MiB on, Linux 6.18 took up to 8 times as long on ext4
WRITE_BYTES, LARGE_WRITE_BYTES = 1 << 20, 4 << 20
# file systems whose pages grow with a write, or that may lie over such a one, by their names in mountinfo
GROWING_PAGES = {"", "btrfs", "ext4", "overlay", "xfs"}
WRITEBACK_BYTES = 8 << 20  # written since the kernel was last asked to start
PAGE = 4096
CANNOT_BYPASS = {errno.EINVAL, errno.EOPNOTSUPP}  # no O_DIRECT here, or only in larger units than a page


def write_file(path: Path, data: bytes) -> None:
    """Create or replace `path` with `data`, atomically. File mode follows the umask."""
    with naming(path):
        with appearing(path) as temporary, open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yield a temporary name. The block writes, closes and syncs a file of it, which then gets the name `path`.

    If the block raises, the file is removed.
    """
    temporary = places.temporary(path)
    try:
        yield temporary
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    _sync(path, os.O_DIRECTORY)


def sync_file(path: Path) -> None:
    """Make the bytes of a file durable that somebody else may have written; no link is followed. Raises OSError."""
    _sync(path, os.O_NOFOLLOW)


def _sync(path: Path, flags: int) -> None:
    opened = os.open(path, os.O_RDONLY | flags)
    try:
        with naming(path):
            os.fsync(opened)
    finally:
        os.close(opened)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are not there yet, and make their names durable. Raises OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of the system that the block raises the path of what it was about, unless it names a file itself.

    What fails on an open file, as a full disk does, names none.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_all(file: int, data: memoryview, call_bytes: int = WRITE_BYTES) -> None:
    """Write everything at the file's position, a little at a time.

    Args:
        file: An open file.
        data: What to write.
        call_bytes: How many bytes each call is given. The kernel may take less.

    Raises:
        OSError: It cannot be written.
    """
    done = 0
    while done < len(data):
        done += os.write(file, data[done : done + call_bytes])


def call_bytes(file: int) -> int:
    """Return how many bytes to write to an open file with one call, where many threads write."""
    return (
        WRITE_BYTES
        if file_systems.kind_of(file_systems.mount_number(file)) in GROWING_PAGES
        else LARGE_WRITE_BYTES
    )


@dataclass(slots=True)
class Appending:
    """An open file that grows at its end. The kernel starts writing to the disk early, so that fsync waits for little.

    POSIX_FADV_DONTNEED starts writeback of dirty pages and does not wait (Linux, mm/fadvise.c). It drops pages that
    are clean: those just written are not. It is advice: fsync alone says what is durable, and reports every error.
    """

    file: int
    call_bytes: int = WRITE_BYTES
    written: int = 0
    started: int = 0

    def write(self, data: memoryview) -> None:
        """Write all of `data`. Raises OSError."""
        write_all(self.file, data, self.call_bytes)
        self.wrote(len(data))

    def wrote(self, num_bytes: int) -> None:
        """Account for `num_bytes` that the caller appended itself."""
        self.written += num_bytes
        if self.written - self.started >= WRITEBACK_BYTES:
            os.posix_fadvise(self.file, self.started, self.written - self.started, os.POSIX_FADV_DONTNEED)
            self.started = self.written


@dataclass(slots=True)
class Uncached(Appending):
    """An `Appending` that passes the page cache, where its file system and what is written let it (O_DIRECT).

    A checkpoint of terabytes would push everything else out of memory, and finding pages for it costs more time than
    the disk needs. Only whole pages can pass, from memory that begins on one, to a place in the file that does; all
    else is appended as usual. A file system may take the flag and use the cache all the same: it is asked to write
    back early too. Source: open(2), "O_DIRECT".

    `direct`: the flag is on. `can`: the file system has not refused it yet.
    """

    direct: bool = False
    can: bool = True

    def write(self, data: memoryview) -> None:
        """Write all of `data`. Raises OSError."""
        while data and self._may_pass(data):
            try:
                count = os.write(self.file, data)
            except OSError as error:
                if error.errno not in CANNOT_BYPASS:
                    raise
                self.can = False
            else:
                self.wrote(count)
                data = data[count:]
        if data:
            self._switch(on=False)
            Appending.write(self, data)

    def _may_pass(self, data: memoryview) -> bool:
        if not self.can or (len(data) | self.written | _address(data)) % PAGE:
            return False
        self._switch(on=True)
        return self.direct

    def _switch(self, *, on: bool) -> None:
        if on == self.direct:
            return
        flags = fcntl.fcntl(self.file, fcntl.F_GETFL) & ~os.O_DIRECT
        try:
            fcntl.fcntl(self.file, fcntl.F_SETFL, flags | (os.O_DIRECT if on else 0))
        except OSError as error:
            if error.errno not in CANNOT_BYPASS:
                raise
            self.can = False
        else:
            self.direct = on


def _address(data: memoryview) -> int:
    """Return where in memory some bytes begin; 1 of those that are read-only, whose place ctypes does not tell."""
    return 1 if data.readonly else ctypes.addressof(ctypes.c_char.from_buffer(data))
