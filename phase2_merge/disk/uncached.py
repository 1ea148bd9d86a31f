"""A file that is written past the page cache, where its file system can do that (O_DIRECT).

A checkpoint of terabytes would push everything else out of memory, and finding pages for it costs more time than the
disk needs. Only whole pages can pass, from memory that begins on one, to a place in the file that does; all else is
appended as usual. A file system may take the flag and use the cache all the same: it is asked to write back early too.
Source: open(2), "O_DIRECT".
"""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shardmerge.common import durable
from shardmerge.common.safetensors_header import PAGE

from .reflink import clone_range

Bytes = NDArray[np.uint8]
CANNOT_BYPASS = {errno.EINVAL, errno.EOPNOTSUPP}  # no O_DIRECT here, or only in larger units than a page


def aligned(num_bytes: int) -> Bytes:
    """Return memory that begins on a page."""
    memory = np.empty(num_bytes + PAGE, np.uint8)
    begin = -memory.ctypes.data % PAGE
    return memory[begin : begin + num_bytes]


@dataclass(slots=True)
class Uncached:
    """An open file that grows at its end, which lies on a page until `finish`."""

    end: durable.Appending
    direct: bool = field(init=False)
    clones: bool = True  # until the file system refuses
    cloned_bytes: int = 0

    def __post_init__(self) -> None:
        self.direct = _switch(self.end.file, on=True)

    def write(self, pages: memoryview) -> None:
        """Write all of it: whole pages of `aligned` memory. Raises OSError."""
        while pages and self.direct:
            try:
                count = os.write(self.end.file, pages)
            except OSError as error:
                if error.errno not in CANNOT_BYPASS:
                    raise
                self._use_the_cache()
            else:
                self.end.wrote(count)
                pages = pages[count:]
        self.end.write(pages)

    def clone(self, file: int, at: int, num_bytes: int) -> bool:
        """Append bytes of another file by sharing its blocks.

        Args:
            file: Open for reading.
            at: Where in it the bytes begin, on a page.
            num_bytes: How many, in whole pages.

        Returns:
            False, and nothing changed, where blocks cannot be shared; it is then not tried again.

        Raises:
            OSError: Anything else.
        """
        self.clones = self.clones and clone_range(self.end.file, self.end.written, file, at, num_bytes)
        if self.clones:
            os.lseek(self.end.file, num_bytes, os.SEEK_CUR)
            self.end.wrote(num_bytes)
            self.cloned_bytes += num_bytes
        return self.clones

    def finish(self, rest: memoryview) -> None:
        """Write what is left, less than a page. Raises OSError."""
        self._use_the_cache()
        self.end.write(rest)

    def _use_the_cache(self) -> None:
        _switch(self.end.file, on=False)
        self.direct = False


def _switch(file: int, *, on: bool) -> bool:
    """Switch O_DIRECT on or off. Returns whether the file is now written past the cache."""
    flags = fcntl.fcntl(file, fcntl.F_GETFL) & ~os.O_DIRECT
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, flags | (os.O_DIRECT if on else 0))
    except OSError as error:
        if error.errno not in CANNOT_BYPASS:
            raise
        return False
    return on
